"""The chi-square with a floor: against SciPy, at its floor, and the merging of bins."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mtlops.drift import chi_square
from mtlops.drift.chi_square import LEAST_EXPECTED, neighbours, rarest


def compare(a, b, *, floor=0.02, groups=rarest):
    return chi_square.compare(
        np.asarray(a), np.asarray(b), groups=groups, parts=lambda k: f"bin {k}", floor=floor, min_rows=20
    )


def test_without_a_floor_it_is_pearsons_test() -> None:
    a, b = [30, 50, 40, 80], [20, 60, 70, 40]
    expected = stats.chi2_contingency([a, b], correction=False)
    found = compare(a, b, floor=1e-300)
    assert found.statistic == pytest.approx(expected.statistic)
    assert found.p_value == pytest.approx(expected.pvalue)


def test_with_a_floor_it_is_the_non_central_distribution() -> None:
    found = compare([300, 500, 400], [400, 460, 340])
    effective = 1200 * 1200 / 2400
    assert found.p_value == pytest.approx(stats.ncx2.sf(found.statistic, 2, effective * 0.02))
    assert found.low == pytest.approx(_non_centrality(found.statistic, 0.975) / effective, abs=1e-6)
    assert found.high == pytest.approx(_non_centrality(found.statistic, 0.025) / effective, abs=1e-6)


def test_half_and_half_against_57_percent_is_an_effect_of_0_02() -> None:
    found = compare([500_000, 500_000], [570_711, 429_289])
    assert found.effect == pytest.approx(0.02, rel=0.01)
    assert found.p_value == pytest.approx(0.5, abs=0.15)


def test_below_the_floor_more_rows_never_alarm_above_they_always_do() -> None:
    for rows in (10_000, 1_000_000, 100_000_000):
        half = np.asarray([0.5, 0.5]) * rows
        below, above = (compare(half, (np.asarray([0.5 + d, 0.5 - d]) * rows)).p_value for d in (0.05, 0.1))
        assert below > 0.5
        assert above < 0.001


def test_what_moved_is_named_with_its_shares() -> None:
    moved = compare([100, 100, 100, 100], [100, 100, 20, 180]).moved
    assert (moved.part, moved.reference, moved.current) == ("bin 2", 0.25, 0.05)


def test_a_value_that_the_reference_lacks_is_evidence_in_proportion() -> None:
    assert compare([1000, 0], [999, 1]).p_value is None
    assert compare([1000, 0], [990, 10]).p_value > 0.4
    assert compare([1000, 0], [900, 100]).p_value < 0.001


def test_rare_values_only_are_no_answer() -> None:
    found = compare([60, 1], [30, 2])
    assert found.p_value is None and "more rows" in found.reason


counts = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40)), min_size=1, max_size=30)


@given(counts)
def test_merging_keeps_every_row_and_leaves_no_small_group(pairs) -> None:
    a, b = np.asarray(pairs, dtype=np.int64).T
    if min(a.sum(), b.sum()) == 0:
        return
    expected = (a + b) * (min(a.sum(), b.sum()) / (a + b).sum())
    for merge in (neighbours, rarest):
        group = merge(expected)
        assert set(group) == set(range(group.max() + 1))
        totals = np.bincount(group, weights=expected)
        assert totals.sum() == pytest.approx(expected.sum())
        assert len(totals) == 1 or totals.min() >= LEAST_EXPECTED - 1e-9


def test_neighbours_merges_only_neighbours_and_rarest_only_rare_values() -> None:
    assert neighbours(np.asarray([9.0, 2, 2, 2, 9, 1])).tolist() == [0, 1, 1, 1, 2, 2]
    assert rarest(np.asarray([9.0, 2, 20, 3, 30.0])).tolist() == [1, 0, 2, 0, 3]
    assert rarest(np.asarray([9.0, 2, 20.0])).tolist() == [0, 0, 1]
    assert rarest(np.asarray([9.0, 8.0])).tolist() == [1, 0]


def _non_centrality(statistic: float, tail: float) -> float:
    grid = np.linspace(0, 200, 200_001)
    return float(grid[np.abs(stats.ncx2.cdf(statistic, 2, grid) - tail).argmin()])
