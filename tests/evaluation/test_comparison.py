"""Two models on the same rows: the difference, what it proves, and what it does not."""

import numpy as np
import pytest

from mtlops.decoding import Outputs, decode
from mtlops.evaluation.bootstrap import holm, p_value, resample_groups
from mtlops.evaluation.comparison import Change, are_identical, compare, seed_noise
from mtlops.params import Gates
from mtlops.tasks import Task

TONE = Task("tone", "multiclass", ("bad", "mixed", "good"))
VALUE = Task("value", "regression")
NO_SEEDS = Gates(resamples=500, seed_noise={"tone": 0.0})


def _outputs(answers: np.ndarray) -> Outputs:
    return decode(TONE, np.log(0.1 + 0.7 * np.eye(3, dtype=np.float32)[answers]).astype(np.float32))


def _answers(labels: np.ndarray, random: np.random.Generator, *, right: float) -> np.ndarray:
    return np.where(random.random(len(labels)) < right, labels, (labels + random.integers(1, 3, len(labels))) % 3)


def _compare(ours: np.ndarray, theirs: np.ndarray, labels: np.ndarray, gates: Gates = NO_SEEDS) -> Change:
    samples = resample_groups([str(i) for i in range(len(labels))], num_samples=gates.resamples, seed=gates.seed)
    return compare(TONE, labels, _outputs(ours), _outputs(theirs), samples=samples, gates=gates)


def test_a_clear_gain_is_better_and_a_clear_loss_worse() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, size=800)
    good, bad = (_answers(labels, random, right=right) for right in (0.85, 0.7))
    gain, loss = _compare(good, bad, labels), _compare(bad, good, labels)
    assert gain.change.value == pytest.approx(-loss.change.value)
    assert gain.p_better < 0.01 < 0.5 < gain.p_worse
    assert loss.p_worse < 0.01 < 0.5 < loss.p_better
    assert gain.p_drop < 0.01 and loss.p_drop > 0.5
    assert gain.metrics["macro_f1"].value == pytest.approx(0.7, abs=0.05)


def test_seed_noise_widens_what_chance_explains_but_not_what_the_rows_rule_out() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, size=800)
    good, bad = (_answers(labels, random, right=right) for right in (0.83, 0.77))
    rows_alone = _compare(good, bad, labels)
    noisy = _compare(good, bad, labels, Gates(resamples=500, seed_noise={"tone": 0.05}))
    assert rows_alone.p_better < 0.05 < noisy.p_better
    assert rows_alone.p_drop == noisy.p_drop
    assert rows_alone.change == noisy.change


def test_the_same_answers_are_identical_and_differ_by_exactly_0() -> None:
    labels = np.arange(60) % 3
    found = _compare(labels, labels, labels, Gates(resamples=100))
    assert found.is_identical
    assert (found.change.value, found.change.low, found.change.high) == (0.0, 0.0, 0.0)
    assert (found.p_better, found.p_worse) == (1.0, 1.0)
    assert found.p_drop == pytest.approx(1 / 101)


def test_rounding_is_no_difference_but_another_answer_is() -> None:
    labels = np.arange(60) % 3
    ours = _outputs(labels)
    assert ours.probabilities is not None and ours.labels is not None
    rounded = Outputs(probabilities=ours.probabilities + np.float32(1e-6), labels=ours.labels)
    assert are_identical(ours, rounded, labels)
    flipped = ours.labels.copy()
    flipped[0] = 2
    assert not are_identical(ours, Outputs(probabilities=ours.probabilities, labels=flipped), labels)
    shifted = Outputs(probabilities=ours.probabilities + np.float32(1e-3), labels=ours.labels)
    assert not are_identical(ours, shifted, labels)


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_a_regression_is_identical_relative_to_its_labels_spread(scale: float) -> None:
    labels = (np.random.default_rng(0).normal(size=50) * scale).astype(np.float32)
    ours, near, far = (decode(VALUE, (labels + shift * scale)[:, None]) for shift in (0.0, 1e-6, 1e-2))
    assert are_identical(ours, near, labels)
    assert not are_identical(ours, far, labels)


def test_few_rows_that_all_point_one_way_are_no_proof() -> None:
    """Four rows of 800 are better and none is worse: a sign test says 1/16, and so must this one, about."""
    labels = np.arange(800) % 3
    theirs = labels.copy()
    theirs[:4] = (labels[:4] + 1) % 3
    assert _compare(labels, theirs, labels).p_better > 0.03


def _p_values(*, groups: int, rows_a_group: int, repeats: int) -> np.ndarray:
    """p-values of "better" for two models that are equally good, when the rows of a group err together."""
    random, found = np.random.default_rng(7), []
    for seed in range(repeats):
        labels = random.integers(0, 3, size=groups * rows_a_group)
        names = np.repeat(np.arange(groups), rows_a_group)
        ours, theirs = (
            np.where(
                (random.random(groups) < 0.7)[names] & (random.random(len(labels)) < 0.95), labels, (labels + 1) % 3
            )
            for _ in range(2)
        )
        samples = resample_groups([str(n) for n in names], num_samples=200, seed=seed)
        gates = Gates(resamples=200, seed_noise={"tone": 0.0})
        found.append(compare(TONE, labels, _outputs(ours), _outputs(theirs), samples=samples, gates=gates).p_better)
    return np.asarray(found)


def test_equally_good_models_are_called_better_as_rarely_as_stated() -> None:
    found = _p_values(groups=100, rows_a_group=4, repeats=300)
    assert (found <= 0.05).mean() == pytest.approx(0.05, abs=0.035)
    assert (found <= 0.5).mean() == pytest.approx(0.5, abs=0.1)


def test_a_p_value_counts_the_resamples_that_reach_the_value() -> None:
    resampled = np.asarray([0.0, 0.1, 0.2, 0.3])  # around 0.15: deviations -0.15, -0.05, 0.05, 0.15
    assert p_value(0.15, resampled, beyond=0.0) == pytest.approx(2 / 5)
    assert p_value(0.15, resampled, beyond=0.1) == pytest.approx(3 / 5)
    assert p_value(0.15, resampled, beyond=-0.1) == pytest.approx(1 / 5)


def test_of_a_skewed_distribution_the_side_that_claims_less_counts() -> None:
    tail_below = np.asarray([-0.3, 0.3, 0.3, 0.35])
    assert p_value(0.2, tail_below, beyond=0.0) == pytest.approx(2 / 5)  # by deviations alone it would be 1 / 5
    tail_above = np.asarray([0.1, 0.1, 0.1, 0.6])
    assert p_value(0.2, tail_above, beyond=0.0) == pytest.approx(2 / 5)  # by values alone it would be 1 / 5


def test_seeds_move_a_slice_more_than_the_whole() -> None:
    whole, part = (seed_noise(TONE, Gates(), 5000, share=share) for share in (1.0, 0.25))
    assert whole.std() == pytest.approx(np.sqrt(2) * 0.02, rel=0.05)
    assert np.allclose(part, 2 * whole)


def test_holm_s_correction() -> None:
    assert holm({}) == {}
    assert holm({"a": 0.2}) == {"a": 0.2}
    found = holm({"a": 0.04, "b": 0.01, "c": 0.03, "d": 0.9})
    assert found == pytest.approx({"a": 0.09, "b": 0.04, "c": 0.09, "d": 0.9})
    assert list(found) == ["a", "b", "c", "d"]
