"""Metrics of words and spans: against scikit-learn on all words, and in numbers made by hand."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as reference

from mtlops.decoding import Outputs, decode
from mtlops.evaluation import calibration, word_baselines
from mtlops.evaluation.bootstrap import resample_groups
from mtlops.evaluation.comparison import are_identical
from mtlops.evaluation.metrics import confusion, reliability
from mtlops.evaluation.tagging import tagging
from mtlops.evaluation.word_baselines import WordRows
from mtlops.tasks import Task

SPANS = Task("t", "tagging", ("O", "B-x", "I-x", "B-y"))
PLAIN = Task("t", "tagging", ("noun", "verb", "other"))


def _example(task: Task, *, rows: int = 80, seed: int = 0) -> tuple[NDArray[np.int64], Outputs]:
    """Rows of 1 to 9 words, the last word of some of which the model does not see."""
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 10, size=rows)
    labels = np.where(np.arange(9) < lengths[:, None], random.integers(0, len(task.classes), (rows, 9)), -1)
    logits = random.normal(size=(rows, 9, len(task.classes))).astype(np.float32)
    logits += 2 * np.eye(len(task.classes), dtype=np.float32)[labels]
    seen = np.arange(9) < (lengths - (random.random(rows) < 0.3) * (lengths > 1))[:, None]
    logits[~seen] = np.nan
    return labels, decode(task, logits)


@pytest.mark.parametrize("task", [SPANS, PLAIN])
def test_metrics_of_words_are_those_of_scikit_learn(task: Task) -> None:
    labels, outputs = _example(task)
    found = tagging(task, labels, outputs)
    assert next(iter(found)) == task.primary
    judged = (labels >= 0) & (outputs.labels >= 0)
    truth, answers = labels[judged], outputs.labels[judged]
    assert judged.sum() < (labels >= 0).sum()
    assert found["accuracy"] == pytest.approx(reference.accuracy_score(truth, answers))
    assert found["macro_f1"] == pytest.approx(reference.f1_score(truth, answers, average="macro"))
    shares = outputs.probabilities[judged].astype(float)
    expected = reference.log_loss(truth, shares / shares.sum(1, keepdims=True), labels=range(len(task.classes)))
    assert found["log_loss"] == pytest.approx(expected, rel=1e-5)
    assert confusion(task, labels, outputs).tolist() == reference.confusion_matrix(truth, answers).tolist()
    bins = reliability(task, labels, outputs)
    gaps = sum(b.rows * abs(b.predicted - b.observed) for b in bins) / judged.sum()
    assert sum(b.rows for b in bins) == judged.sum() and found["ece"] == pytest.approx(gaps)


def _outputs(answers: list[list[int]]) -> Outputs:
    labels = np.asarray(answers)
    return Outputs(probabilities=np.full((*labels.shape, 4), 0.25, dtype=np.float32), labels=labels)


def test_a_right_span_has_the_right_ends_and_the_right_label() -> None:
    labels = np.array([[1, 2, 0, 3], [1, 2, 2, -1], [3, 0, 0, 0]])
    answers = _outputs([[1, 2, 0, 1], [1, 2, 0, -1], [3, 0, 1, 0]])
    found = tagging(SPANS, labels, answers)
    # Labelled: x[0:2], y[3:4], x[0:3], y[0:1]; answered: x[0:2], x[3:4], x[0:2], y[0:1], x[2:3].
    assert found["span_precision"] == pytest.approx(2 / 5)
    assert found["span_recall"] == pytest.approx(2 / 4)
    assert found["span_f1"] == pytest.approx(4 / 9)


def test_words_that_the_model_does_not_see_are_no_part_of_a_span() -> None:
    labels, answers = np.array([[0, 1, 2], [0, 0, 3]]), _outputs([[0, 1, -1], [0, 0, -1]])
    found = tagging(SPANS, labels, answers)
    assert (found["span_f1"], found["accuracy"]) == (1.0, 1.0)
    assert tagging(SPANS, np.array([[0, 0]]), _outputs([[0, 0]]))["span_f1"] == 0.0


@pytest.mark.parametrize("task", [SPANS, PLAIN])
def test_a_resample_is_the_rows_that_it_holds_written_out(task: Task) -> None:
    """Groups of rows are drawn whole, with all their words and spans."""
    labels, outputs = _example(task, rows=40)
    groups = [f"g{row // 3}" for row in range(40)]
    samples = resample_groups(groups, num_samples=7, seed=3)
    found = tagging.over(samples, task, labels, outputs)
    for number, weights in enumerate(np.concatenate(list(samples.row_weights()))):
        rows = np.repeat(np.arange(40), weights.astype(int))
        plain = tagging(task, labels[rows], Outputs(outputs.probabilities[rows], outputs.labels[rows]))
        for name in plain.keys() - {"ece"}:  # the bins of a calibration error are those of all rows
            assert found[name][number] == pytest.approx(plain[name]), name


def test_a_temperature_is_fitted_on_words() -> None:
    labels, _ = _example(PLAIN, rows=200)
    logits = np.random.default_rng(1).normal(size=(*labels.shape, 3)).astype(np.float32)
    logits += np.eye(3, dtype=np.float32)[labels]
    logits[labels < 0] = np.nan
    fitted = calibration.fit(PLAIN, logits * 5, labels, thresholds="fitted")
    assert fitted.calibration.temperature == pytest.approx(
        5 * calibration.fit(PLAIN, logits, labels, thresholds="fixed").calibration.temperature, rel=1e-2
    )
    assert fitted.log_loss is not None and fitted.log_loss[1] < fitted.log_loss[0]


def test_answers_are_the_same_where_the_same_words_are_seen() -> None:
    labels, outputs = _example(PLAIN)
    moved = Outputs(outputs.probabilities + np.float32(1e-6), outputs.labels)
    fewer = Outputs(np.where(np.arange(9)[:, None] < 1, outputs.probabilities, np.nan), outputs.labels)
    assert are_identical(outputs, moved, labels) and not are_identical(outputs, fewer, labels)


WORDS = {"film": 1, "plot": 1, "Rome": 3, "the": 0, "in": 0, "good": 0, "!": 0}


def _rows(num: int, seed: int) -> WordRows:
    """Each word has its tag, but for `scene`, which begins a span unless a word of one stands before it."""
    random = np.random.default_rng(seed)
    texts = [" ".join(random.choice([*WORDS, "scene"], size=random.integers(2, 8))) for _ in range(num)]
    labels = np.full((num, 8), -1)
    for row, text in enumerate(texts):
        words = text.split()
        for i, word in enumerate(words):
            after = i > 0 and labels[row, i - 1] in (1, 2)
            labels[row, i] = WORDS.get(word, 2 if after else 1)
    vectors = random.normal(size=(num, 8, 4)).astype(np.float32) + np.eye(4, dtype=np.float32)[labels] * 5
    vectors[labels < 0] = np.nan
    vectors[0, 0] = np.nan  # a word that the model does not see
    return WordRows(texts, labels, vectors)


def test_baselines_look_at_words_and_their_neighbours() -> None:
    train, valid, test = (_rows(num, seed) for seed, num in enumerate((120, 40, 40)))
    found: dict[str, Any] = word_baselines.logits(SPANS, train, valid=valid, test=test)
    f1 = {name: tagging(SPANS, test.labels, decode(SPANS, logits))["span_f1"] for name, logits in found.items()}
    assert f1["majority"] == 0.0 and f1["tfidf"] > 0.95 and f1["frozen"] > 0.8
    for logits in found.values():
        assert (np.isfinite(logits).all(-1) == test.judged).all() and not test.judged[0, 0]


def test_baselines_learn_from_a_bounded_number_of_words(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = ["a b c d"] * 100
    assert len(word_baselines.training_rows(texts)) == 100
    monkeypatch.setattr(word_baselines, "MOST_WORDS", 100)
    assert word_baselines.training_rows(texts).tolist() == list(range(0, 100, 4))
