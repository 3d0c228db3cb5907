"""Temperature and thresholds fitted on validation rows: what they find, and when they refuse."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from mtlops import catalog
from mtlops.decoding import UNCALIBRATED, Calibration, decode, softmax
from mtlops.evaluation.calibration import LEAST_POSITIVES, LEAST_ROWS, TEMPERATURES, fit
from mtlops.tasks import Task

CLASSES = ("a", "b", "c")


def _drawn(logits: NDArray[np.float32], seed: int = 0) -> NDArray[np.int64]:
    """Labels drawn from the very probabilities of `logits`: temperature 1 is the truth."""
    random = np.random.default_rng(seed)
    return (np.cumsum(softmax(logits), axis=1) < random.random((len(logits), 1))).sum(axis=1).clip(max=2)


def _logits(rows: int, columns: int = 3, seed: int = 1) -> NDArray[np.float32]:
    return (2 * np.random.default_rng(seed).normal(size=(rows, columns))).astype(np.float32)


@pytest.mark.parametrize("kind", ["multiclass", "ordinal"])
@pytest.mark.parametrize("truth", [0.5, 1.0, 3.0])
def test_the_planted_temperature_is_found(kind: str, truth: float) -> None:
    logits = _logits(4000)
    fitted = fit(Task("t", kind, CLASSES), logits * np.float32(truth), _drawn(logits), thresholds="fixed")
    assert fitted.calibration.temperature == pytest.approx(truth, rel=0.08)
    assert fitted.log_loss is not None and fitted.log_loss[1] <= fitted.log_loss[0] + 1e-9
    assert fitted.calibration.thresholds == () and fitted.notes == ()


def test_one_temperature_for_all_sigmoids_of_a_multilabel_task() -> None:
    logits = _logits(4000)
    labels = np.random.default_rng(2).random(logits.shape) < 1 / (1 + np.exp(-logits))
    fitted = fit(Task("t", "multilabel", CLASSES), logits * 2, labels.astype(np.float32), thresholds="fixed")
    assert fitted.calibration.temperature == pytest.approx(2.0, rel=0.08)


def test_an_overconfident_task_is_calibrated_on_other_rows() -> None:
    task, logits = Task("t", "multiclass", CLASSES), _logits(3000)
    labels, metrics = _drawn(logits), catalog.load(catalog.KINDS["multiclass"].metrics)
    fitted = fit(task, 4 * logits[:1000], labels[:1000], thresholds="fixed")
    before, after = (
        metrics(task, labels[1000:], decode(task, 4 * logits[1000:], c))["ece"]
        for c in (UNCALIBRATED, fitted.calibration)
    )
    assert before > 0.1 and after < 0.04


def test_rows_that_are_all_right_stop_at_the_bound() -> None:
    logits = 5 * np.eye(3, dtype=np.float32)[np.arange(90) % 3]
    fitted = fit(Task("t", "multiclass", CLASSES), logits, np.arange(90) % 3, thresholds="fixed")
    assert TEMPERATURES[0] <= fitted.calibration.temperature < 1


def test_too_few_rows_keep_a_temperature_of_1_and_say_so() -> None:
    rows = LEAST_ROWS - 1
    fitted = fit(Task("t", "multiclass", CLASSES), _logits(rows), np.arange(rows) % 3, thresholds="fixed")
    assert fitted.calibration == UNCALIBRATED
    assert fitted.notes == (f"temperature 1: {rows} validation rows, fewer than {LEAST_ROWS}",)


def test_a_regression_has_nothing_to_fit() -> None:
    fitted = fit(Task("t", "regression"), _logits(200, 1), np.zeros(200, dtype=np.float32), thresholds="fitted")
    assert (fitted.calibration, fitted.log_loss, fitted.notes) == (UNCALIBRATED, None, ())


def _rare(kind: str) -> tuple[Task, NDArray[np.float32], NDArray[np.float32]]:
    """A class that 1 row of 8 carries and whose logits are far too low: a threshold of 0.5 finds nobody."""
    random = np.random.default_rng(3)
    carries = random.random(1600) < 0.125
    logit = (random.normal(size=1600) + 2.5 * carries - 4).astype(np.float32)
    if kind == "multilabel":
        return Task("t", kind, ("rare",)), logit[:, None], carries[:, None].astype(np.float32)
    return Task("t", kind, ("no", "rare")), np.stack([0 * logit, logit], axis=1), carries.astype(np.int64)


@pytest.mark.parametrize(("kind", "average"), [("binary", "macro"), ("multilabel", "binary")])
def test_a_fitted_threshold_finds_a_rare_class_on_other_rows(kind: str, average: str) -> None:
    task, logits, labels = _rare(kind)
    fitted = fit(task, logits[:800], labels[:800], thresholds="fitted")
    (threshold,) = fitted.calibration.thresholds
    assert 0.05 <= threshold < 0.45
    half, found = (
        f1_score(labels[800:], decode(task, logits[800:], c).labels, average=average, zero_division=0)
        for c in (Calibration(fitted.calibration.temperature), fitted.calibration)
    )
    assert found > half + 0.1


def test_fixed_thresholds_are_left_alone() -> None:
    task, logits, labels = _rare("binary")
    assert fit(task, logits, labels, thresholds="fixed").calibration.thresholds == ()


def test_equally_good_thresholds_end_nearest_to_one_half() -> None:
    logits = np.float32([[0, 4], [0, -4]] * 50)
    labels = np.asarray([1, 0] * 50)
    assert fit(Task("t", "binary", ("no", "yes")), logits, labels, thresholds="fitted").calibration.thresholds == (0.5,)


def test_too_few_positives_keep_one_half_and_say_so() -> None:
    task, logits, labels = _rare("multilabel")
    labels[np.flatnonzero(labels[:, 0])[LEAST_POSITIVES - 1 :]] = 0
    fitted = fit(task, logits, labels, thresholds="fitted")
    assert fitted.calibration.thresholds == (0.5,)
    assert fitted.notes == (
        "threshold 0.5 for 'rare': 19 of 1600 validation rows carry it; 20 with and without are needed",
    )
