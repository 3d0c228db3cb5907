"""The profile of a task, or of all rows that reach the encoder: one sketch a column, bound to what embeds its texts.

profile.json          columns with their kinds, tests, edges and counts; whose it is; which trunk
profile.safetensors   the large arrays
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, load_file, save

from mtlops import catalog
from mtlops.drift.columns import Columns
from mtlops.drift.finding import Finding, Settings
from mtlops.drift.sketch import Keys, Sketch
from mtlops.errors import ArtefactError
from mtlops.files import atomic_path, read_json, write_json

SCHEMA_VERSION = 1
ENCODER = "encoder"
"""Name of the profile of all rows, whatever their task; no task may have this name."""

_MADE_BY = "mtlops export"


@dataclass(frozen=True)
class Part:
    """One column of a profile: its kind (`columns.KINDS`), its test (`catalog.DRIFT`) and its sketch."""

    kind: str
    test: str
    sketch: Sketch


@dataclass(frozen=True)
class Profile:
    """Sketches of the columns of one task.

    Attributes:
        name: the task, or `ENCODER`.
        trunk: digest of what made the embeddings: trunk, its depth, tokenizer (`Bundle.embedding_digest`).
        parts: the columns by name.
    """

    name: str
    trunk: str
    parts: Mapping[str, Part]

    @classmethod
    def fit(
        cls, name: str, columns: Columns, *, trunk: str, settings: Settings, keys: Keys | None = None,
        like: "Profile | None" = None,
    ) -> "Profile":  # fmt: skip
        """Returns the profile of a reference.

        Args:
            name: the task, or `ENCODER`.
            columns: what to profile; columns need not have the same number of rows.
            trunk: see above.
            settings: bins and floors.
            keys: the unit that each row of an embedding column belongs to.
            like: a profile whose embedding scale is used, so that two profiles read the same features.
        """
        parts = {}
        for column, found in columns.items():
            if like is not None and found.kind == "embedding":
                sketch = like.parts[column].sketch.of(found.values, keys=keys)
            else:
                test: type[Sketch] = catalog.load(catalog.DRIFT[found.test].code)
                sketch = test.fit(found.values, keys=keys, settings=settings)
            parts[column] = Part(found.kind, found.test, sketch)
        return cls(name, trunk, parts)

    def of(self, columns: Columns, *, keys: Keys | None = None) -> "Profile":
        """Returns the profile of another sample, in the shapes of this one.

        A column that this profile lacks is left out; one that the sample lacks has no rows, and its test will say so.
        """
        parts = {}
        for name, part in self.parts.items():
            sketch = part.sketch.of(columns[name].values, keys=keys) if name in columns else part.sketch.of([])
            parts[name] = replace(part, sketch=sketch)
        return replace(self, parts=parts)

    def __add__(self, other: "Profile") -> "Profile":
        """Returns the profile of both samples; the order of adding does not change a bit.

        Raises:
            ArtefactError: the two do not belong to the same reference.
        """
        self._check_alike(other)
        merged = {
            name: replace(part, sketch=part.sketch.merge(other.parts[name].sketch)) for name, part in self.parts.items()
        }
        return replace(self, parts=merged)

    def compare(self, current: "Profile", settings: Settings) -> dict[str, dict[str, Finding]]:
        """Returns by kind, by column, whether `current` drifted from this reference.

        Raises:
            ArtefactError: `current` does not have this reference's shapes, or was made by another encoder.
        """
        self._check_alike(current)
        findings: dict[str, dict[str, Finding]] = {}
        for name, part in self.parts.items():
            found = part.sketch.compare(current.parts[name].sketch, settings)
            findings.setdefault(part.kind, {})[name] = found
        return findings

    def without(self, *kinds: str) -> "Profile":
        """Returns the profile without the columns of some kinds."""
        return replace(self, parts={name: part for name, part in self.parts.items() if part.kind not in kinds})

    def save(self, folder: Path) -> None:
        """Writes the profile's files into `folder`; the same profile gives the same bytes."""
        folder.mkdir(parents=True, exist_ok=True)
        facts, arrays = self.pack()
        with atomic_path(folder / "profile.safetensors") as path:
            path.write_bytes(arrays)
        write_json(folder / "profile.json", facts)

    def pack(self) -> tuple[dict[str, Any], bytes]:
        """Returns the profile as plain JSON values and a safetensors file: what `unpack` reads."""
        states = {name: part.sketch.state() for name, part in self.parts.items()}
        arrays = {f"{name}/{key}": array for name, (_, found) in states.items() for key, array in found.items()}
        columns = {
            name: {"kind": part.kind, "test": part.test, "rows": part.sketch.rows, **states[name][0]}
            for name, part in self.parts.items()
        }
        facts = {"schema_version": SCHEMA_VERSION, "name": self.name, "trunk_sha256": self.trunk, "columns": columns}
        return facts, save({name: np.ascontiguousarray(array) for name, array in sorted(arrays.items())})

    @classmethod
    def unpack(cls, facts: Mapping[str, Any], arrays: bytes) -> "Profile":
        """Returns the profile that `pack` described."""
        own = load(arrays)
        parts = {name: _restore(facts["name"], name, column, own) for name, column in facts["columns"].items()}
        return cls(facts["name"], facts["trunk_sha256"], parts)

    @classmethod
    def load(cls, folder: Path, *, trunk: str) -> "Profile":
        """Returns the profile in `folder`.

        Raises:
            ArtefactError: a file is missing, damaged or of another version, or the profile is of another encoder
                than `trunk`: numbers that another encoder made cannot be compared.
        """
        facts = read_json(folder / "profile.json", made_by=_MADE_BY)
        version = facts.get("schema_version") if isinstance(facts, dict) else None
        if version != SCHEMA_VERSION:
            raise ArtefactError(
                f"{folder}/profile.json: schema_version {version}, this mtlops reads {SCHEMA_VERSION}. "
                f"Run `{_MADE_BY}` again."
            )
        if facts["trunk_sha256"] != trunk:
            raise ArtefactError(
                f"{folder}/profile.json: the profile belongs to encoder {facts['trunk_sha256'][:16]}, the rows were "
                f"read by {trunk[:16]}. Use the bundle that made the rows, or export a new reference."
            )
        arrays = _read_arrays(folder / "profile.safetensors")
        parts = {name: _restore(folder, name, column, arrays) for name, column in facts["columns"].items()}
        return cls(facts["name"], trunk, parts)

    def _check_alike(self, other: "Profile") -> None:
        if self.trunk != other.trunk:
            raise ArtefactError(
                f"profile {self.name}: encoder {self.trunk[:16]} against {other.trunk[:16]}: not comparable. "
                f"Profile the rows with the encoder of the reference."
            )
        different = sorted(self.parts.keys() ^ other.parts.keys()) or [
            name for name, part in self.parts.items()
            if part.test != other.parts[name].test or not part.sketch.same_shape(other.parts[name].sketch)
        ]  # fmt: skip
        if different:
            raise ArtefactError(
                f"profile {self.name}: column {different[0]!r} was counted against another reference. Profile the "
                f"rows again with `reference.of(...)`."
            )


def _restore(folder: Path | str, name: str, column: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Part:
    entry = catalog.look_up(catalog.DRIFT, column["test"], where=f"{folder}/profile.json: {name}")
    own = {key.removeprefix(f"{name}/"): array for key, array in arrays.items() if key.startswith(f"{name}/")}
    return Part(column["kind"], column["test"], catalog.load(entry.code).restore(column, own))


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}). Run `{_MADE_BY}` again.") from None
