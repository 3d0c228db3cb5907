"""The open window of a task: counts so far, in the shape of its reference, and a bounded sample of its answers."""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load, save

from mtlops.drift.profile import Profile
from mtlops.watch.references import Reference
from mtlops.watch.rows import Sample

TRAFFIC = "traffic"
LABELS = "labels"
_OF_LABELS = ("label", "quality")
_OF_TRAFFIC = ("input", "embedding", "prediction", "estimate")

MOST_ANSWERS = 5_000
"""Answers of a window that are kept one by one, the first ones: for estimates that need more than counts."""


@dataclass
class Stream:
    """What has come in of one source of one task since its last window.

    Attributes:
        name: the task, or `encoder`.
        source: `traffic` or `labels`.
        version: of the reference that the counts fit.
        profile: counts in the reference's shape.
        rows: rows counted.
        start: time of the first row, microseconds; None while there is none.
        stop: newest time of a row.
        last: when the window before ended; None for the first.
        late: rows older than that.
        faults: rows that could not be used, by reason.
        kept: arrays of at most `MOST_ANSWERS` rows by name: `probabilities`, `labels`, `values`, `encoded`.
    """

    name: str
    source: str
    version: str
    profile: Profile
    rows: int = 0
    start: int | None = None
    stop: int = 0
    last: int | None = None
    late: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    kept: dict[str, NDArray[Any]] = field(default_factory=dict)

    @classmethod
    def fresh(cls, reference: Reference, source: str, *, last: int | None = None) -> "Stream":
        """Returns an empty stream against a reference."""
        shape = basis(reference, source)
        return cls(reference.name, source, reference.version, shape.of({}), last=last)

    @property
    def bad(self) -> int:
        """Rows that could not be used."""
        return sum(self.faults.values())

    def add(self, sample: Sample, reference: Reference) -> None:
        """Counts the rows of a sample."""
        columns = sample.columns(reference.task, width=reference.width)
        more = basis(reference, self.source).of(columns, keys=sample.vector_keys() if "embedding" in columns else None)
        self.profile = self.profile + more
        self.rows += len(sample)
        oldest, newest = int(sample.times.min()), int(sample.times.max())
        self.start = oldest if self.start is None else min(self.start, oldest)
        self.stop = max(self.stop, newest)
        if self.last is not None:
            self.late += int((sample.times < self.last).sum())
        self._keep(sample)

    def merged(self, other: "Stream") -> "Stream":
        """Returns the rows of this window and of a later one of the same reference as one."""
        kept = {name: np.concatenate([values, other.kept[name]])[:MOST_ANSWERS] if name in other.kept else values
                for name, values in self.kept.items()}  # fmt: skip
        starts = [start for start in (self.start, other.start) if start is not None]
        return replace(
            self, profile=self.profile + other.profile, rows=self.rows + other.rows, start=min(starts, default=None),
            stop=max(self.stop, other.stop), late=self.late + other.late, faults=self.faults + other.faults,
            kept=kept or other.kept,
        )  # fmt: skip

    def pack(self) -> tuple[str, bytes]:
        """Returns what `unpack` reads."""
        profile, arrays = self.profile.pack()
        facts = {
            "profile": profile, "rows": self.rows, "start": self.start, "stop": self.stop, "last": self.last,
            "late": self.late, "faults": dict(self.faults),
        }  # fmt: skip
        kept = save({name: np.ascontiguousarray(values) for name, values in sorted(self.kept.items())})
        return json.dumps(facts), len(arrays).to_bytes(8, "little") + arrays + kept

    @classmethod
    def unpack(cls, row: Mapping[str, Any]) -> "Stream":
        """Returns the stream of a row of the table `streams`."""
        facts, content = json.loads(row["facts"]), bytes(row["arrays"])
        middle = 8 + int.from_bytes(content[:8], "little")
        return cls(
            row["name"], row["source"], row["version"], Profile.unpack(facts["profile"], content[8:middle]),
            facts["rows"], facts["start"], facts["stop"], facts["last"], facts["late"], Counter(facts["faults"]),
            dict(load(content[middle:])),
        )  # fmt: skip

    def _keep(self, sample: Sample) -> None:
        shares = None if sample.outputs is None else sample.outputs.probabilities
        if sample.outputs is None or (shares is not None and shares.ndim == 3):
            return  # Words: their number differs from row to row, and counts say what is estimated of them.
        have = len(next(iter(self.kept.values()))) if self.kept else 0
        room = MOST_ANSWERS - have
        found = {**vars(sample.outputs), "encoded": sample.encoded}
        for name, values in found.items():
            if values is not None and room > 0:
                some = np.asarray(values[:room])
                self.kept[name] = np.concatenate([self.kept[name], some]) if name in self.kept else some


def basis(reference: Reference, source: str) -> Profile:
    """Returns the part of a reference that a source is compared with."""
    return reference.profile.without(*(_OF_TRAFFIC if source == LABELS else _OF_LABELS))


def num_cells(reference: Reference) -> int:
    """Returns how many detectors a reference gives: one for each kind, and one for the number of a task's rows."""
    return len({part.kind for part in reference.profile.parts.values()}) + (reference.task is not None)
