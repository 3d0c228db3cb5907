"""Every metric against scikit-learn or SciPy, on all rows and on resamples, and where it is not defined."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy import stats
from sklearn import metrics as reference

from mtlops import catalog
from mtlops.decoding import Outputs, decode
from mtlops.evaluation.bootstrap import every_row, resample_groups
from mtlops.evaluation.metrics import classification, confusion, multilabel, ordinal, regression, reliability
from mtlops.tasks import Task

CLASSES = ("a", "b", "c", "d")
KINDS = {
    "binary": Task("t", "binary", CLASSES[:2]),
    "multiclass": Task("t", "multiclass", CLASSES),
    "ordinal": Task("t", "ordinal", CLASSES),
    "multilabel": Task("t", "multilabel", CLASSES),
    "regression": Task("t", "regression"),
}


def _example(kind: str, *, rows: int = 300, seed: int = 0) -> tuple[Task, NDArray[Any], Outputs]:
    """Labels and answers that agree on about half of the rows."""
    random, task = np.random.default_rng(seed), KINDS[kind]
    logits = random.normal(size=(rows, task.num_outputs)).astype(np.float32) * 2
    noise = random.normal(size=logits.shape)
    if kind == "regression":
        return task, (logits + noise)[:, 0].astype(np.float32), decode(task, logits.round(1))
    if kind == "multilabel":
        return task, (logits + noise * 2 > 0.5).astype(np.float32), decode(task, logits)
    return task, (logits + noise * 2).argmax(axis=1).astype(np.int64), decode(task, logits)


def _subset(outputs: Outputs, rows: NDArray[np.int64]) -> Outputs:
    parts = (outputs.probabilities, outputs.labels, outputs.values)
    return Outputs(*(None if part is None else part[rows] for part in parts))


@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal"])
def test_class_metrics_are_those_of_scikit_learn(kind: str) -> None:
    task, labels, outputs = _example(kind)
    found = (ordinal if kind == "ordinal" else classification)(task, labels, outputs)
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(labels, outputs.labels))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, outputs.labels, average="macro"))
    probabilities = outputs.probabilities.astype(float)
    expected = reference.log_loss(labels, probabilities / probabilities.sum(axis=1, keepdims=True))
    assert found["log_loss"] == pytest.approx(expected, rel=1e-5)


def test_ordinal_metrics_are_those_of_scikit_learn() -> None:
    task, labels, outputs = _example("ordinal")
    found = ordinal(task, labels, outputs)
    expected = reference.cohen_kappa_score(labels, outputs.labels, weights="quadratic")
    assert found["quadratic_kappa"] == pytest.approx(expected)
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(labels, outputs.labels))


def test_multilabel_metrics_are_those_of_scikit_learn() -> None:
    task, labels, outputs = _example("multilabel")
    found = multilabel(task, labels, outputs)
    assert found["macro_f1"] == pytest.approx(reference.f1_score(labels, outputs.labels, average="macro"))
    assert found["micro_f1"] == pytest.approx(reference.f1_score(labels, outputs.labels, average="micro"))
    assert found["subset_accuracy"] == pytest.approx(reference.accuracy_score(labels, outputs.labels))
    losses = [reference.log_loss(labels[:, c], outputs.probabilities[:, c]) for c in range(4)]
    assert found["log_loss"] == pytest.approx(np.mean(losses), rel=1e-5)


def test_regression_metrics_are_those_of_scikit_learn_and_scipy() -> None:
    task, labels, outputs = _example("regression")
    found = regression(task, labels, outputs)
    assert found["r2"] == pytest.approx(reference.r2_score(labels, outputs.values))
    assert found["mae"] == pytest.approx(reference.mean_absolute_error(labels, outputs.values))
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(labels, outputs.values))
    assert found["spearman"] == pytest.approx(stats.spearmanr(labels, outputs.values).statistic)


@pytest.mark.parametrize("kind", list(KINDS))
def test_metrics_of_a_resample_are_those_of_its_rows_written_out(kind: str) -> None:
    task, labels, outputs = _example(kind, rows=60)
    groups = np.arange(60) // 3
    samples = resample_groups([str(g) for g in groups], num_samples=5, seed=1)
    metrics = catalog.load(catalog.KINDS[kind].metrics)
    resampled = metrics.over(samples, task, labels, outputs)
    (weights,) = samples.row_weights()
    for b in range(5):
        rows = np.repeat(np.arange(60), weights[b].astype(int))
        expected = metrics(task, labels[rows], _subset(outputs, rows))
        for name in expected.keys() - {"ece"}:  # its bins are those of all rows
            assert resampled[name][b] == pytest.approx(expected[name]), name


@pytest.mark.parametrize("kind", list(KINDS))
def test_metrics_start_with_or_contain_the_primary_one_and_are_plain_floats(kind: str) -> None:
    task, labels, outputs = _example(kind)
    found = catalog.load(catalog.KINDS[kind].metrics)(task, labels, outputs)
    assert next(iter(found)) == catalog.KINDS[kind].primary
    assert all(type(value) is float for value in found.values())


def test_calibration_error_is_the_mean_gap_over_bins_of_equal_mass() -> None:
    task, labels, outputs = _example("multiclass", rows=300)
    confidence = outputs.probabilities.max(axis=1).astype(float)
    right = outputs.labels == labels
    order = np.argsort(confidence)
    bins = np.array_split(order, 15)
    expected = sum(abs(confidence[rows].mean() - right[rows].mean()) * len(rows) for rows in bins) / 300
    assert classification(task, labels, outputs)["ece"] == pytest.approx(expected)


def test_equal_confidences_share_a_bin() -> None:
    task = Task("t", "binary", ("no", "yes"))
    labels = np.asarray([0] * 30 + [1] * 10)
    outputs = decode(task, np.tile(np.log(np.float32([[0.75, 0.25]])), (40, 1)))
    (only,) = reliability(task, labels, outputs)
    assert (only.rows, only.observed) == (40, 0.75)
    assert classification(task, labels, outputs)["ece"] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal", "multilabel"])
def test_calibration_error_is_the_mean_gap_of_the_reliability_diagram(kind: str) -> None:
    task, labels, outputs = _example(kind)
    bins = reliability(task, labels, outputs)
    rows = sum(b.rows for b in bins)
    assert rows == labels.size
    gap = sum(b.rows * abs(b.predicted - b.observed) for b in bins) / rows
    assert catalog.load(catalog.KINDS[kind].metrics)(task, labels, outputs)["ece"] == pytest.approx(gap)


def test_reliability_of_a_regression_compares_means() -> None:
    task, labels, outputs = _example("regression")
    bins = reliability(task, labels, outputs)
    assert sum(b.rows for b in bins) == 300
    assert sum(b.rows * b.observed for b in bins) == pytest.approx(labels.sum(), rel=1e-5)
    assert [b.predicted for b in bins] == sorted(b.predicted for b in bins)


def test_confusion_matrices_are_those_of_scikit_learn() -> None:
    task, labels, outputs = _example("multiclass")
    assert np.array_equal(confusion(task, labels, outputs), reference.confusion_matrix(labels, outputs.labels))
    task, labels, outputs = _example("multilabel")
    expected = reference.multilabel_confusion_matrix(labels, outputs.labels)
    assert np.array_equal(confusion(task, labels, outputs), expected)


def test_a_class_that_never_occurs_does_not_count_in_macro_f1() -> None:
    task = Task("t", "multiclass", ("a", "b", "never"))
    labels = np.asarray([0, 0, 1, 1])
    outputs = decode(task, np.float32([[9, 0, 0], [9, 0, 0], [0, 9, 0], [0, 9, 0]]))
    assert classification(task, labels, outputs)["macro_f1"] == 1.0


@pytest.mark.parametrize(
    "kind, labels, logits, undefined",
    [
        ("regression", [2.0, 2.0], [[1.0], [3.0]], ("r2", "spearman")),
        ("regression", [1.0, 2.0], [[5.0], [5.0]], ("spearman",)),
        ("ordinal", [1, 1], [[0, 9, 0, 0]] * 2, ("quadratic_kappa",)),
        ("multilabel", [[0, 0, 0, 0]], [[-9, -9, -9, -9]], ("macro_f1", "micro_f1")),
    ],
)
def test_an_undefined_metric_is_0(kind: str, labels: list[Any], logits: list[Any], undefined: tuple[str, ...]) -> None:
    task = KINDS[kind]
    encoded = np.asarray(labels, dtype=np.int64 if kind == "ordinal" else np.float32)
    found = catalog.load(catalog.KINDS[kind].metrics)(task, encoded, decode(task, np.float32(logits)))
    assert [found[name] for name in undefined] == [0.0] * len(undefined)
    assert all(np.isfinite(value) for value in found.values())


def test_a_certain_mistake_has_a_finite_loss() -> None:
    task = KINDS["binary"]
    outputs = Outputs(probabilities=np.float32([[1, 0]]), labels=np.asarray([0]))
    assert classification(task, np.asarray([1]), outputs)["log_loss"] == pytest.approx(np.log(1e7))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_macro_f1_is_that_of_scikit_learn_whatever_the_classes(pairs: list[tuple[int, int]]) -> None:
    labels, answers = np.asarray(pairs).T
    outputs = Outputs(probabilities=np.eye(4, dtype=np.float32)[answers], labels=answers)
    found = classification(KINDS["multiclass"], labels, outputs)["macro_f1"]
    assert found == pytest.approx(reference.f1_score(labels, answers, average="macro", zero_division=0))


def test_every_row_holds_each_row_once() -> None:
    (weights,) = every_row(4).row_weights()
    assert np.array_equal(weights, [[1, 1, 1, 1]])
