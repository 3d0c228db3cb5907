"""Bootstrap samples of groups of rows, and the intervals that they give.

Rows of one group (an author, a product, a thread) are alike, so they are no independent evidence. The
bootstrap therefore draws whole groups with replacement.

Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapters 6 and 13 (percentile
interval); Field and Welsh 2007, "Bootstrapping clustered data", J. R. Statist. Soc. B 69(3), section 3.1
(the cluster bootstrap: groups are drawn, rows within a group are kept as they are).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_BLOCK_CELLS = 4_000_000


@dataclass(frozen=True)
class Resamples:
    """B samples of N rows: sample b holds every row of group g as often as g was drawn.

    The draws are made again from the seed whenever they are needed, a block at a time, so that memory
    stays bounded and every metric of every model sees the same samples.

    Attributes:
        group_of_row: (N,) int64 position of each row's group.
        num_groups: G, groups in all.
        num_samples: B; 0 is the one sample that holds every row once.
        seed: of the draws.
    """

    group_of_row: NDArray[np.int64]
    num_groups: int
    num_samples: int
    seed: int = 0

    def sums(self, columns: Mapping[str, NDArray[np.generic]]) -> dict[str, Floats]:
        """Returns the sum of each column over the rows of each sample.

        Any metric that is a function of sums over rows is exact this way, at the cost of one matrix product.

        Shapes: each column: (N,) or (N, K); each sum: (max(B, 1),) or (max(B, 1), K), float64.
        """
        num_rows = len(self.group_of_row)
        flat = {name: column.reshape(num_rows, -1) for name, column in columns.items()}
        ends = np.cumsum([column.shape[1] for column in flat.values()])[:-1]
        parts = np.split(self._sum(np.concatenate(list(flat.values()), axis=1, dtype=np.float64)), ends, axis=1)
        return {n: p[:, 0] if columns[n].ndim == 1 else p for n, p in zip(columns, parts, strict=True)}

    def row_weights(self) -> Iterator[Floats]:
        """Yields blocks of (b, N): how often each sample of the block holds each row."""
        for weights in self._group_weights(columns=len(self.group_of_row)):
            yield weights[:, self.group_of_row]

    def _sum(self, columns: Floats) -> Floats:
        order = np.argsort(self.group_of_row, kind="stable")
        starts = np.searchsorted(self.group_of_row[order], np.arange(self.num_groups))
        totals = np.add.reduceat(columns[order], starts, axis=0)
        return np.concatenate([weights @ totals for weights in self._group_weights(columns=self.num_groups)])

    def _group_weights(self, *, columns: int) -> Iterator[Floats]:
        if self.num_samples == 0:
            yield np.ones((1, self.num_groups))
            return
        generator = np.random.default_rng(self.seed)
        step = max(1, _BLOCK_CELLS // max(columns, self.num_groups))
        for start in range(0, self.num_samples, step):
            rows = min(step, self.num_samples - start)
            drawn = generator.integers(self.num_groups, size=(rows, self.num_groups))
            drawn += np.arange(rows)[:, None] * self.num_groups
            counts = np.bincount(drawn.ravel(), minlength=rows * self.num_groups)
            yield counts.reshape(rows, self.num_groups).astype(np.float64)


def every_row(num_rows: int) -> Resamples:
    """Returns the one sample that holds each of N rows once: it gives a metric's plain value."""
    return Resamples(np.zeros(num_rows, dtype=np.int64), num_groups=1, num_samples=0)


def resample_groups(groups: Sequence[str], *, num_samples: int, seed: int) -> Resamples:
    """Returns samples that draw as many groups as there are, with replacement.

    Shapes: groups: (N,) name of each row's group, N at least 1.
    """
    names, group_of_row = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    return Resamples(group_of_row.astype(np.int64), num_groups=len(names), num_samples=num_samples, seed=seed)


@dataclass(frozen=True)
class Interval:
    """A metric's value on all rows, and the ends of its interval."""

    value: float
    low: float
    high: float


def interval(value: float, resampled: Floats, *, confidence: float) -> Interval:
    """Returns the percentile interval: the middle `confidence` of the resampled values.

    Shapes: resampled: (B,) the metric on each sample.
    """
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(resampled, [tail, 1.0 - tail])
    return Interval(value, float(low), float(high))


def p_value(value: float, resampled: Floats, *, beyond: float) -> float:
    """Returns the one-sided p-value of "the true value is at most `beyond`", small when `value` is well above it.

    Two bootstrap tests are made, and the larger p-value is returned: the share of resampled values that are not above
    `beyond` (percentile), and the share of their deviations from `value` that would carry `beyond` up to it (basic).
    Where the distribution is skewed, as that of a macro-F1 with a rare class is, one of them claims too much, and which
    one depends on the side; and few rows that all point one way are proof for the first alone (Hall and Wilson 1991,
    Biometrics 47; rates in docs/benchmarks.md). Counting the observed value as one of the resamples keeps p above 0
    (Davison and Hinkley 1997, section 4.2).

    Shapes: resampled: (B,) the value on each sample.
    """
    percentile = np.count_nonzero(resampled <= beyond)
    basic = np.count_nonzero(resampled - value + beyond >= value)
    return (1 + int(max(percentile, basic))) / (1 + len(resampled))


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Returns p-values by name, corrected so that those at most alpha are all true but for a chance of alpha.

    Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6(2).
    """
    corrected: dict[str, float] = {}
    largest = 0.0
    for position, name in enumerate(sorted(p_values, key=lambda name: (p_values[name], name))):
        largest = max(largest, min(1.0, p_values[name] * (len(p_values) - position)))
        corrected[name] = largest
    return {name: corrected[name] for name in p_values}
