"""A column of words: how often each value occurs."""

import zlib
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtlops.drift import chi_square
from mtlops.drift.finding import Finding, Settings
from mtlops.drift.sketch import Arrays, Facts, Keys

MOST_VALUES = 1000
"""With more different values than this, values are counted in buckets by hash."""

NUM_BUCKETS = 64

MISSING = "(missing)"


@dataclass(frozen=True)
class Categories:
    """Rows of each value; beyond `MOST_VALUES` values, rows of each bucket of values.

    Values are counted as they come on both sides, without a list of known ones: a value that the reference happens to
    lack would otherwise count against every current sample, and columns of many rare values would alarm on nothing.
    Going over to buckets depends only on the values seen in all, so merging in any order ends in the same state.

    Attributes:
        counts: value -> rows, sorted by value; or bucket `#<number>` -> rows.
        is_hashed: whether these are buckets.
    """

    counts: Mapping[str, int]
    is_hashed: bool = False

    @classmethod
    def fit(cls, values: Any, *, keys: Keys | None = None, settings: Settings) -> "Categories":
        """Returns the counts of `values`: N words, or None where one is missing."""
        return cls({}).of(values)

    def of(self, values: Any, *, keys: Keys | None = None) -> "Categories":
        """Returns the counts of other `values`."""
        column = values if isinstance(values, pa.Array | pa.ChunkedArray) else pa.array(values, type=pa.string())
        found = pc.value_counts(column.cast(pa.string()))
        names = [MISSING if name is None else name for name in found.field("values").to_pylist()]
        counts: Counter[str] = Counter()
        for name, rows in zip(names, found.field("counts").to_pylist(), strict=True):
            counts[name] += rows
        return _bounded(counts, is_hashed=False)

    @property
    def rows(self) -> int:
        """Rows counted, missing ones included."""
        return sum(self.counts.values())

    def same_shape(self, other: "Categories") -> bool:
        """Returns True: any two can be merged and compared."""
        return True

    def merge(self, other: "Categories") -> "Categories":
        """Returns the counts of both samples."""
        a, b, is_hashed = _alike(self, other)
        return _bounded(Counter(a) + Counter(b), is_hashed=is_hashed)

    def compare(self, current: "Categories", settings: Settings) -> Finding:
        """Returns whether `current` differs from this reference by more than `settings.effect_floor`."""
        a, b, _ = _alike(self, current)
        names = sorted(a.keys() | b.keys())
        return chi_square.compare(
            _column(a, names), _column(b, names), groups=chi_square.rarest, parts=names.__getitem__,
            floor=settings.effect_floor, min_rows=settings.min_rows,
        )  # fmt: skip

    def state(self) -> tuple[Facts, Arrays]:
        """Returns what `restore` reads."""
        return {"counts": dict(self.counts), "is_hashed": self.is_hashed}, {}

    @classmethod
    def restore(cls, facts: Facts, arrays: Arrays) -> "Categories":
        """Returns the counts that `state` described."""
        return cls(facts["counts"], facts["is_hashed"])


def _alike(a: Categories, b: Categories) -> tuple[Mapping[str, int], Mapping[str, int], bool]:
    """The counts of both by value, or by bucket when one of them is."""
    is_hashed = a.is_hashed or b.is_hashed
    left, right = (x.counts if x.is_hashed == is_hashed else _buckets(x.counts) for x in (a, b))
    return left, right, is_hashed


def _bounded(counts: Mapping[str, int], *, is_hashed: bool) -> Categories:
    if not is_hashed and len(counts) > MOST_VALUES:
        counts, is_hashed = _buckets(counts), True
    return Categories(dict(sorted(counts.items())), is_hashed)


def _buckets(counts: Mapping[str, int]) -> dict[str, int]:
    buckets: Counter[str] = Counter()
    for name, rows in counts.items():
        buckets[f"#{zlib.crc32(name.encode()) % NUM_BUCKETS}"] += rows
    return dict(buckets)


def _column(counts: Mapping[str, int], names: list[str]) -> NDArray[np.int64]:
    return np.asarray([counts.get(name, 0) for name in names], dtype=np.int64)
