"""A numeric column: counts between quantiles of the reference."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.drift import chi_square
from mtlops.drift.finding import Finding, Settings
from mtlops.drift.sketch import Arrays, Facts, Keys

ROWS_PER_BIN = 50
"""Rows of the reference for each bin: shares of fewer rows are too uncertain to divide by."""


@dataclass(frozen=True)
class Histogram:
    """Rows below, between and above fixed edges; a last bin holds missing values (not-a-number).

    Bin k holds values from edge k - 1 up to, but without, edge k. Counts are integers, so profiles of parts merge to
    the same bits in any order.

    Attributes:
        edges: (K - 2,) float64, ascending.
        counts: (K,) int64.
    """

    edges: NDArray[np.float64]
    counts: NDArray[np.int64]

    @classmethod
    def fit(cls, values: Any, *, keys: Keys | None = None, settings: Settings) -> "Histogram":
        """Returns the histogram of `values` (N,) between their own quantiles.

        A value that fills a bin alone gets a bin for itself, so that a constant, or a peak at zero, can be told from
        its neighbourhood.
        """
        numbers = np.asarray(values, dtype=np.float64)
        known = numbers[~np.isnan(numbers)]
        bins = int(np.clip(len(known) // ROWS_PER_BIN, 2, settings.bins))
        ordered = np.sort(known)
        edges = np.unique(ordered[(np.arange(1, bins) * len(known)) // bins]) if len(known) else np.zeros(0)
        times = np.searchsorted(ordered, edges, side="right") - np.searchsorted(ordered, edges, side="left")
        edges = np.union1d(edges, np.nextafter(edges[times * bins >= len(known)], np.inf))
        return cls(edges, np.zeros(len(edges) + 2, dtype=np.int64)).of(numbers)

    def of(self, values: Any, *, keys: Keys | None = None) -> "Histogram":
        """Returns the counts of other `values` (N,) between the same edges."""
        numbers = np.asarray(values, dtype=np.float64)
        bins = np.searchsorted(self.edges, numbers, side="right")
        bins[np.isnan(numbers)] = len(self.edges) + 1
        return replace(self, counts=np.bincount(bins, minlength=len(self.counts)).astype(np.int64))

    @property
    def rows(self) -> int:
        """Rows counted, missing ones included."""
        return int(self.counts.sum())

    def same_shape(self, other: "Histogram") -> bool:
        """Returns whether the two count between the same edges."""
        return np.array_equal(self.edges, other.edges)

    def merge(self, other: "Histogram") -> "Histogram":
        """Returns the counts of both samples."""
        return replace(self, counts=self.counts + other.counts)

    def compare(self, current: "Histogram", settings: Settings) -> Finding:
        """Returns whether `current` differs from this reference by more than `settings.effect_floor`."""
        return chi_square.compare(
            self.counts, current.counts, groups=chi_square.neighbours, parts=self._part,
            floor=settings.effect_floor, min_rows=settings.min_rows,
        )  # fmt: skip

    def state(self) -> tuple[Facts, Arrays]:
        """Returns what `restore` reads."""
        return {"edges": self.edges.tolist(), "counts": self.counts.tolist()}, {}

    @classmethod
    def restore(cls, facts: Facts, arrays: Arrays) -> "Histogram":
        """Returns the histogram that `state` described."""
        return cls(np.asarray(facts["edges"], dtype=np.float64), np.asarray(facts["counts"], dtype=np.int64))

    def _part(self, k: int) -> str:
        if k == len(self.edges) + 1:
            return "missing"
        if len(self.edges) == 0:
            return "any number"
        if k == 0:
            return f"below {self.edges[0]:.4g}"
        low = self.edges[k - 1]
        # The edge after a value that has a bin for itself is the next number that a computer has.
        is_next = k > 1 and low == np.nextafter(self.edges[k - 2], np.inf)
        said = f"above {self.edges[k - 2]:.4g}" if is_next else f"from {low:.4g}"
        if k == len(self.edges):
            return said
        if self.edges[k] == np.nextafter(low, np.inf):
            return f"{low:.4g}"
        return f"{said if is_next else f'{low:.4g}'} to {self.edges[k]:.4g}"
