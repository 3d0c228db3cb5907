"""The bundle: a model directory whose manifest names the hash of every other file.

manifest.json       what the bundle is; its own hash is the bundle's id
trunk/              config.json, model.safetensors, tokenizer.json
tasks/<task>/       adapter.safetensors, head.safetensors, task.json
reference/<task>/   profile.json, profile.safetensors: what drift of the task is measured against
reference/encoder/  the same of the inputs of all tasks together
model.onnx          one graph for all tasks; the trunk's large tensors lie in model.onnx.data
model.<variant>.onnx  the same in a smaller number format, with a file of large tensors of its own
golden.json         inputs and expected logits
card.md             model card
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtlops.catalog import REFERENCE_VARIANT
from mtlops.decoding import Calibration
from mtlops.errors import ArtefactError
from mtlops.files import read_json, sha256_file, sha256_tree, write_json
from mtlops.tasks import Task

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Bundle:
    """A bundle whose files have been checked against its manifest.

    Attributes:
        folder: where it lies.
        manifest: content of manifest.json.
    """

    folder: Path
    manifest: Mapping[str, Any]

    @classmethod
    def open(cls, folder: Path) -> "Bundle":
        """Returns the bundle in `folder` after checking the hash of every file.

        Raises:
            ArtefactError: it is no bundle, of another version, or a file is missing, changed or not in the manifest.
        """
        manifest = read_json(folder / MANIFEST, made_by="mtlops export")
        version = manifest.get("schema_version") if isinstance(manifest, dict) else None
        if version != SCHEMA_VERSION:
            raise ArtefactError(
                f"{folder}/{MANIFEST}: schema_version {version}, this mtlops reads {SCHEMA_VERSION}. "
                f"Export the bundle again, or use the mtlops that made it."
            )
        _check_files(folder, manifest["files"])
        return cls(folder, manifest)

    @property
    def id(self) -> str:
        """The bundle's name: 16 hex digits of the sha256 of its manifest."""
        return sha256_file(self.folder / MANIFEST)[:16]

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks in the order of their positions in the graph."""
        return tuple(Task.from_facts(name, facts) for name, facts in self.manifest["tasks"].items())

    @property
    def calibrations(self) -> dict[str, Calibration]:
        """How each task's logits become answers, by task."""
        return {name: Calibration.from_facts(facts) for name, facts in self.manifest["tasks"].items()}

    @property
    def embedding_digest(self) -> str:
        """Names all that the graph's output `embedding` depends on beside the text; profiles are bound to it.

        Raises:
            ArtefactError: the bundle was made before graphs had that output.
        """
        if "embedding" not in self.manifest:
            raise ArtefactError(f"{self.folder}: its graph has no output `embedding`. Export the bundle again.")
        return str(self.manifest["embedding"]["digest"])

    @property
    def variants(self) -> tuple[str, ...]:
        """Names of the variants of the graph."""
        return (REFERENCE_VARIANT, *self.manifest.get("variants", {}))

    def variant(self, name: str) -> Mapping[str, Any]:
        """Returns what the manifest says of a variant: `file`, and of all but the first what `mtlops export` measured.

        Raises:
            ArtefactError: the bundle has no such variant.
        """
        if name not in self.variants:
            raise ArtefactError(
                f"{self.folder}: bundle {self.id} has no variant {name!r}; it has {', '.join(self.variants)}. Choose "
                f"one of them, or name it in export.variants of params.yaml and export again."
            )
        facts: Mapping[str, Any] = self.manifest.get("variants", {}).get(name, {"file": "model.onnx"})
        return facts

    def golden(self) -> list[dict[str, Any]]:
        """Returns the golden rows: each a text, the expected logits by task, and those of the variants by name."""
        rows: list[dict[str, Any]] = read_json(self.folder / "golden.json", made_by="mtlops export")["rows"]
        return rows


def write_manifest(folder: Path, facts: Mapping[str, Any]) -> None:
    """Writes manifest.json with the hash of every file that lies in `folder` now."""
    paths = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != MANIFEST)
    files = {p.relative_to(folder).as_posix(): sha256_file(p) for p in paths}
    write_json(folder / MANIFEST, {"schema_version": SCHEMA_VERSION, **facts, "files": files})


@dataclass(frozen=True)
class Difference:
    """How one part of two bundles compares.

    Attributes:
        files: `identical`, `changed`, `added` or `removed`.
        outputs: the same for golden outputs on the texts that both bundles hold; None where there are none.
        largest: largest absolute difference of a golden logit.
    """

    files: str
    outputs: str | None = None
    largest: float | None = None


def diff(a: Bundle, b: Bundle) -> dict[str, Difference]:
    """Returns per task, and for `trunk`, whether files and golden outputs of two bundles are the same to the bit."""
    result = {"trunk": Difference(_compare(_hashes(a, "trunk/"), _hashes(b, "trunk/")))}
    golden_a, golden_b = ({row["text"]: row["logits"] for row in bundle.golden()} for bundle in (a, b))
    for name in dict.fromkeys([*a.manifest["tasks"], *b.manifest["tasks"]]):
        files = _compare(_hashes(a, f"tasks/{name}/"), _hashes(b, f"tasks/{name}/"))
        pairs = [
            (golden_a[text][name], golden_b[text][name])
            for text in golden_a.keys() & golden_b.keys()
            if name in golden_a[text] and name in golden_b[text]
        ]
        comparable = [(x, y) for x, y in pairs if len(x) == len(y)]
        if not comparable:
            result[name] = Difference(files)
            continue
        largest = max(float(np.abs(np.subtract(x, y)).max()) for x, y in comparable)
        result[name] = Difference(files, "identical" if largest == 0.0 else "changed", largest)
    return result


def code_digest() -> str:
    """Returns the sha256 over this package's Python files: the code version that a manifest records."""
    return sha256_tree(Path(__file__).parent, keep=lambda path: path.suffix == ".py")


def _check_files(folder: Path, files: Mapping[str, str]) -> None:
    present = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()} - {MANIFEST}
    for name, digest in files.items():
        if name not in present:
            raise ArtefactError(f"{folder}/{name}: missing. The bundle is incomplete: export or fetch it again.")
        if sha256_file(folder / name) != digest:
            raise ArtefactError(
                f"{folder}/{name}: its sha256 is not the one in manifest.json. The file was changed or damaged: "
                f"export or fetch the bundle again."
            )
    if extra := sorted(present - files.keys()):
        raise ArtefactError(f"{folder}/{extra[0]}: is not in manifest.json. Remove it: a bundle never changes.")


def _hashes(bundle: Bundle, prefix: str) -> dict[str, str]:
    return {name: digest for name, digest in bundle.manifest["files"].items() if name.startswith(prefix)}


def _compare(a: Mapping[str, str], b: Mapping[str, str]) -> str:
    if a == b:
        return "identical"
    if not a:
        return "added"
    return "changed" if b else "removed"
