"""The encoder's files: from a pinned package or the user's folder into one folder of our own."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlops import catalog
from mtlops.catalog import suggest
from mtlops.data.archives import read_members
from mtlops.data.packages import fetch
from mtlops.errors import DataError, UsageError
from mtlops.files import sha256_file, to_json

FILES = ("config.json", "model.safetensors", "tokenizer.json")


@dataclass(frozen=True)
class EncoderFiles:
    """The bytes of an encoder and where they come from.

    Attributes:
        name: the catalogue's name, or the folder's.
        requirement: `name==version` of the package; None for a user's folder.
        licence: of the weights; None for a user's folder.
        content: file name of `FILES` -> bytes; the tokenizer's truncation and padding are removed, since
            ours sets them.
    """

    name: str
    requirement: str | None
    licence: str | None
    content: dict[str, bytes]


def read_encoder(source: str, *, base: Path, raw: Path) -> EncoderFiles:
    """Returns the files of a built-in encoder, or of a folder (relative to `base`) that holds `FILES`.

    Raises:
        UsageError: `source` is neither.
        DataError: a file of the folder is missing or not what its name says.
        PlatformError: the package cannot be fetched.
    """
    entry = catalog.ENCODERS.get(source)
    if entry is not None and entry.package is not None:
        members = read_members(fetch(entry.package, raw=raw), [f"{entry.folder}/{name}" for name in FILES])
        content = {name: member.content for name, member in zip(FILES, members, strict=True)}
        return _checked(source, source, content, package=entry.package)
    folder = base / source
    if not folder.is_dir():
        raise UsageError(
            f"params.yaml: encoder.source: {source!r} is no built-in encoder and no folder. "
            f"{suggest(source, list(catalog.ENCODERS))}"
        )
    for name in FILES:
        if not (folder / name).is_file():
            raise DataError(f"{folder}: has no {name}, which encoder.source needs beside {', '.join(FILES)}.")
    return _checked(folder.name, str(folder), {name: (folder / name).read_bytes() for name in FILES})


def write_encoder(folder: Path, files: EncoderFiles) -> str:
    """Writes the files and `encoder.json` (name, provenance, hashes) to a folder; returns the tokenizer's sha256."""
    for name, content in files.content.items():
        (folder / name).write_bytes(content)
    facts = {
        "schema_version": 1,
        "name": files.name,
        "requirement": files.requirement,
        "licence": files.licence,
        "trunk_sha256": sha256_file(folder / "model.safetensors"),
        "tokenizer_sha256": sha256_file(folder / "tokenizer.json"),
    }
    (folder / "encoder.json").write_text(to_json(facts) + "\n", encoding="utf-8")
    return str(facts["tokenizer_sha256"])


def _checked(
    name: str, where: str, content: dict[str, bytes], *, package: catalog.Package | None = None
) -> EncoderFiles:
    _json_object(content["config.json"], where=f"{where}: config.json")
    tokenizer = _json_object(content["tokenizer.json"], where=f"{where}: tokenizer.json")
    tokenizer |= {"truncation": None, "padding": None}
    weights = content["model.safetensors"]
    if len(weights) < 8 or not 2 <= int.from_bytes(weights[:8], "little") <= len(weights) - 8:
        raise DataError(f"{where}: model.safetensors is not a safetensors file, or cut short. Copy it again.")
    return EncoderFiles(
        name=name,
        requirement=package.requirement if package else None,
        licence=package.licence if package else None,
        content=content | {"tokenizer.json": (json.dumps(tokenizer, ensure_ascii=False) + "\n").encode()},
    )


def _json_object(content: bytes, *, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}). Copy it again.") from None
    if not isinstance(value, dict):
        raise DataError(f"{where} is not a JSON object. Copy it again.")
    return value
