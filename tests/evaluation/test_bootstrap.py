"""Resamples draw whole groups, the same every time, and their intervals cover what they should."""

import numpy as np
import pytest

from mtlops.evaluation import bootstrap
from mtlops.evaluation.bootstrap import interval, resample_groups


def test_a_resample_draws_as_many_groups_as_there_are_and_whole_ones() -> None:
    samples = resample_groups(["x", "y", "x", "z"], num_samples=200, seed=0)
    (weights,) = samples.row_weights()
    assert samples.num_groups == 3
    assert np.array_equal(weights[:, 0], weights[:, 2])
    assert np.array_equal(weights[:, [0, 1, 3]].sum(axis=1), np.full(200, 3))
    assert weights[:, 0].mean() == pytest.approx(1, abs=0.2)


def test_sums_are_those_of_the_rows_written_out() -> None:
    samples = resample_groups(["b", "a", "b", "c"], num_samples=50, seed=3)
    column, matrix = np.asarray([1.0, 2.0, 4.0, 8.0]), np.asarray([[1, 0], [0, 1], [1, 1], [0, 0]], dtype=bool)
    sums = samples.sums({"column": column, "matrix": matrix})
    (weights,) = samples.row_weights()
    assert np.allclose(sums["column"], weights @ column)
    assert np.allclose(sums["matrix"], weights @ matrix)


def test_the_same_seed_gives_the_same_samples_whatever_the_size_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    groups = [str(i) for i in range(20)]
    column = {"x": np.arange(20.0)}
    whole = resample_groups(groups, num_samples=30, seed=7).sums(column)["x"]
    monkeypatch.setattr(bootstrap, "_BLOCK_CELLS", 60)
    assert np.array_equal(resample_groups(groups, num_samples=30, seed=7).sums(column)["x"], whole)
    assert not np.array_equal(resample_groups(groups, num_samples=30, seed=8).sums(column)["x"], whole)


def test_the_order_of_rows_does_not_matter() -> None:
    values = np.asarray([3.0, 1.0, 2.0])
    forward = resample_groups(["a", "b", "c"], num_samples=9, seed=0).sums({"x": values})
    backward = resample_groups(["c", "b", "a"], num_samples=9, seed=0).sums({"x": values[::-1]})
    assert np.array_equal(forward["x"], backward["x"])


def test_the_interval_is_the_middle_of_the_resampled_values() -> None:
    found = interval(0.5, np.linspace(0, 1, 101), confidence=0.9)
    assert (found.value, found.low, found.high) == pytest.approx((0.5, 0.05, 0.95))


def _coverage(*, by_group: bool, repeats: int = 300) -> float:
    """Share of 90 % intervals for a mean that hold the true one, when rows of a group are alike."""
    random, hits = np.random.default_rng(0), 0
    groups = np.repeat(np.arange(60), 5)
    names = [str(g) for g in (groups if by_group else np.arange(300))]
    for seed in range(repeats):
        rows = random.normal(size=60)[groups] + 0.5 * random.normal(size=300)
        samples = resample_groups(names, num_samples=300, seed=seed)
        found = interval(
            rows.mean(), samples.sums({"x": rows})["x"] / samples.sums({"n": np.ones(300)})["n"], confidence=0.9
        )
        hits += found.low <= 0 <= found.high
    return hits / repeats


def test_intervals_over_groups_cover_the_truth_as_often_as_they_say() -> None:
    assert _coverage(by_group=True) == pytest.approx(0.9, abs=0.04)


def test_intervals_over_single_rows_would_cover_far_too_rarely() -> None:
    assert _coverage(by_group=False, repeats=150) < 0.75
