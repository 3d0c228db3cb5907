"""A numeric column of which only the mean matters: a two-sample test of means with a floor inside.

With means a and b and standard error s of their difference, the p-value is the chance of a difference at least as large
when the true one is the floor: that of a folded normal distribution around floor / s. Sums are integers in units of
1 / `SCALE`, so parts merge to the same bits in any order.

Source: Wellek 2010, "Testing statistical hypotheses of equivalence and noninferiority", section 9.2 (a margin inside
the test).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import ndtr

from mtlops.drift.finding import Finding, Moved, Settings
from mtlops.drift.sketch import Arrays, Facts, Keys

SCALE = 1 << 20
"""A value, and its square, is stored as the nearest multiple of 1 / SCALE."""

_Z = 1.959964
_SMALLEST_P = 1e-15


@dataclass(frozen=True)
class Mean:
    """Number, sum and sum of squares of a column, without the rows whose value is missing.

    Attributes:
        rows: values counted.
        total: sum of the values, in units of 1 / SCALE.
        squares: sum of their squares, in the same units.
    """

    rows: int = 0
    total: int = 0
    squares: int = 0

    @classmethod
    def fit(cls, values: Any, *, keys: Keys | None = None, settings: Settings) -> "Mean":
        """Returns the sums over `values` (N,)."""
        return cls().of(values)

    def of(self, values: Any, *, keys: Keys | None = None) -> "Mean":
        """Returns the sums over other `values` (N,)."""
        numbers = np.asarray(values, dtype=np.float64)
        known = numbers[~np.isnan(numbers)]
        total, squares = (int(np.rint(part * SCALE).astype(np.int64).sum()) for part in (known, known**2))
        return Mean(len(known), total, squares)

    def same_shape(self, other: "Mean") -> bool:
        """Returns True: any two can be merged and compared."""
        return True

    def merge(self, other: "Mean") -> "Mean":
        """Returns the sums over both samples."""
        return Mean(self.rows + other.rows, self.total + other.total, self.squares + other.squares)

    @property
    def mean(self) -> float:
        """The mean; 0 of no rows."""
        return self.total / SCALE / self.rows if self.rows else 0.0

    @property
    def variance(self) -> float:
        """The unbiased variance of the values; 0 of fewer than two."""
        if self.rows < 2:
            return 0.0
        return max(0.0, self.squares / SCALE - self.rows * self.mean**2) / (self.rows - 1)

    def compare(self, current: "Mean", settings: Settings) -> Finding:
        """Returns whether the mean of `current` differs from this one's by more than `settings.metric_floor`."""
        n, m, floor = self.rows, current.rows, settings.metric_floor
        if min(n, m) < settings.min_rows:
            return Finding(n, m, floor, reason=f"{min(n, m)} rows, {settings.min_rows} are needed")
        change = abs(current.mean - self.mean)
        error = max((self.variance / n + current.variance / m) ** 0.5, 1.0 / SCALE)
        p_value = float(ndtr((floor - change) / error) + ndtr((-floor - change) / error))
        return Finding(
            n, m, floor, statistic=change / error, effect=change,
            low=max(0.0, change - _Z * error), high=change + _Z * error,
            p_value=min(1.0, max(p_value, _SMALLEST_P)), moved=Moved("mean", self.mean, current.mean),
        )  # fmt: skip

    def state(self) -> tuple[Facts, Arrays]:
        """Returns what `restore` reads."""
        return {"sums": [self.rows, self.total, self.squares]}, {}

    @classmethod
    def restore(cls, facts: Facts, arrays: Arrays) -> "Mean":
        """Returns the sums that `state` described."""
        return cls(*facts["sums"])
