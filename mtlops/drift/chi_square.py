"""Pearson's chi-square for two samples of counts, with an effect floor inside the test.

With n and m rows, n_eff = n m / (n + m), shares p and q and pooled shares s, the statistic is n_eff * w^2 with
w^2 = sum (p - q)^2 / s. It is compared with the non-central chi-square of K - 1 degrees of freedom and
non-centrality n_eff * floor: the distribution that it has when the true w^2 is the floor. So one rule holds from a
hundred rows to millions: a shift that does not matter gives no alarm, however many rows there are.

Source: Cohen 1988, "Statistical power analysis for the behavioral sciences", chapter 7 (w, and its non-central
distribution); Wellek 2010, "Testing statistical hypotheses of equivalence and noninferiority", section 9.2 (a margin
inside the test). Bins with few expected rows are merged (Cochran 1954, "Some methods for strengthening the common
chi-square tests", section 2): by pooled counts, which say nothing about a difference.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.special import chndtr, chndtrinc

from mtlops.drift.finding import Finding, Moved

Counts = NDArray[np.int64]

LEAST_EXPECTED = 5.0
"""Least expected rows of the smaller sample in a bin."""

SMALLEST_P = 1e-15
"""p-values below it cannot be told from it: the distribution function is computed in float64."""

_TAIL = 0.025


def compare(
    reference: Counts,
    current: Counts,
    *,
    groups: Callable[[NDArray[np.float64]], NDArray[np.int64]],
    parts: Callable[[int], str],
    floor: float,
    min_rows: int,
) -> Finding:
    """Returns whether two samples differ by more than the floor.

    Shapes: reference, current: (K,) rows in each bin.

    Args:
        reference: counts of the reference.
        current: counts of the current sample.
        groups: which bins to merge: `neighbours` or `rarest`.
        parts: what a bin is called.
        floor: smallest w^2 that matters.
        min_rows: with fewer rows on either side there is no answer.
    """
    n, m = int(reference.sum()), int(current.sum())
    if min(n, m) < min_rows:
        return Finding(n, m, floor, reason=f"{min(n, m)} rows, {min_rows} are needed")
    pooled = reference + current
    group = groups(pooled.astype(np.float64) * (min(n, m) / (n + m)))
    if group.max() == 0:
        if np.count_nonzero(pooled) > 1:
            return Finding(n, m, floor, reason="all rows but a few have one value; more rows are needed")
        return Finding(n, m, floor, statistic=0.0, effect=0.0, low=0.0, high=0.0, p_value=1.0)
    a, b = (np.bincount(group, weights=counts) for counts in (reference, current))
    change = (a / n - b / m) ** 2 * (n + m) / (a + b)
    effective = n * m / (n + m)
    statistic, degrees = float(change.sum()) * effective, len(a) - 1
    low, high = (_non_centrality(statistic, degrees, tail) for tail in (1.0 - _TAIL, _TAIL))
    p_value = float(1.0 - chndtr(statistic, degrees, effective * floor))
    worst = int(change.argmax())
    name = _name(np.flatnonzero((group == worst) & (pooled > 0)), parts)
    return Finding(
        n, m, floor, statistic=statistic, effect=max(0.0, statistic - degrees) / effective,
        low=low / effective, high=high / effective, p_value=max(p_value, SMALLEST_P),
        moved=Moved(name, float(a[worst] / n), float(b[worst] / m)),
    )  # fmt: skip


def _non_centrality(statistic: float, degrees: int, tail: float) -> float:
    """The non-centrality at which `tail` of the distribution lies below the statistic; 0 where there is none."""
    found = float(chndtrinc(statistic, degrees, tail))
    return found if found > 1e-9 else 0.0


def neighbours(expected: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the group of each bin of an ordered scale: neighbours join until each group expects enough rows."""
    group = np.empty(len(expected), dtype=np.int64)
    number, total = 0, 0.0
    for k, rows in enumerate(expected):
        group[k] = number
        total += rows
        if total >= LEAST_EXPECTED:
            number, total = number + 1, 0.0
    if total < LEAST_EXPECTED and number > 0:
        group[group == number] = number - 1
    return group


def rarest(expected: NDArray[np.float64]) -> NDArray[np.int64]:
    """Returns the group of each bin of a scale without order: the rarest join until they expect enough rows."""
    order = np.argsort(expected, kind="stable")
    ascending = expected[order]
    num_rare = int(np.searchsorted(ascending, LEAST_EXPECTED))
    if num_rare > 0:
        num_rare = max(num_rare, 1 + int(np.searchsorted(np.cumsum(ascending), LEAST_EXPECTED)))
    group = np.empty(len(expected), dtype=np.int64)
    group[order] = np.maximum(np.arange(len(expected)) - max(num_rare - 1, 0), 0)
    return group


def _name(bins: NDArray[np.int64], parts: Callable[[int], str]) -> str:
    names = [parts(int(k)) for k in bins[:3]]
    return ", ".join(names) + (f" and {len(bins) - 3} more" if len(bins) > 3 else "")
