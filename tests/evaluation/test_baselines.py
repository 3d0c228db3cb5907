"""The baselines learn what is there to learn, for every kind, and do not fall over thin data."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mtlops import catalog
from mtlops.decoding import decode
from mtlops.evaluation import baselines
from mtlops.evaluation.baselines import Rows
from mtlops.tasks import Task

TASKS = {
    "binary": Task("t", "binary", ("bad", "good")),
    "multiclass": Task("t", "multiclass", ("low", "middle", "high")),
    "ordinal": Task("t", "ordinal", ("low", "middle", "high")),
    "multilabel": Task("t", "multilabel", ("film", "phone")),
    "regression": Task("t", "regression", range=(0.0, 3.0)),
}
KINDS = list(TASKS)


def _rows(kind: str, num_rows: int, *, seed: int) -> Rows:
    """Texts whose words, and vectors whose first columns, say the label almost always."""
    random = np.random.default_rng(seed)
    score = random.integers(0, 3, size=num_rows)
    film, phone = random.integers(0, 2, size=(2, num_rows))
    words = ["awful", "fair", "superb"]
    texts = [f"the {words[s]} {'film ' * f}{'phone ' * p}!" for s, f, p in zip(score, film, phone, strict=True)]
    vectors = np.stack([score, film, phone], axis=1) + 0.05 * random.normal(size=(num_rows, 3))
    labels: dict[str, NDArray[Any]] = {
        "binary": (score == 2).astype(np.int64),
        "multiclass": score,
        "ordinal": score,
        "multilabel": np.stack([film, phone], axis=1).astype(np.float32),
        "regression": score.astype(np.float32),
    }
    return Rows(texts, labels[kind], vectors.astype(np.float32))


def _quality(kind: str, logits: NDArray[np.float32], test: Rows) -> float:
    entry, task = catalog.KINDS[kind], TASKS[kind]
    quality: float = catalog.load(entry.metrics)(task, test.labels, decode(task, logits))[entry.primary]
    return quality


@pytest.mark.parametrize("kind", KINDS)
def test_linear_baselines_learn_and_majority_does_not(kind: str) -> None:
    train, valid, test = (_rows(kind, n, seed=i) for i, n in enumerate((120, 40, 40)))
    task = TASKS[kind]
    simplest = _quality(kind, baselines.majority(task, train, num_rows=40), test)
    for learned in (baselines.tfidf, baselines.frozen):
        logits = learned(task, train, valid=valid, test=test)
        assert logits.shape == (40, task.num_outputs)
        assert logits.dtype == np.float32
        assert _quality(kind, logits, test) > max(0.9, simplest)


def test_majority_is_the_share_of_each_class() -> None:
    train = Rows([""] * 4, np.asarray([0, 1, 1, 1]), np.zeros((4, 2), dtype=np.float32))
    answer = decode(TASKS["multiclass"], baselines.majority(TASKS["multiclass"], train, num_rows=2))
    assert answer.probabilities == pytest.approx(np.asarray([[0.25, 0.75, 0]] * 2), abs=1e-6)
    assert answer.labels.tolist() == [1, 1]


def test_majority_of_several_labels_takes_each_one_alone() -> None:
    labels = np.float32([[1, 0], [1, 0], [1, 1], [0, 0]])
    train = Rows([""] * 4, labels, np.zeros((4, 2), dtype=np.float32))
    answer = decode(TASKS["multilabel"], baselines.majority(TASKS["multilabel"], train, num_rows=1))
    assert answer.probabilities == pytest.approx(np.asarray([[0.75, 0.25]]))
    assert answer.labels.tolist() == [[True, False]]


def test_majority_of_a_regression_is_the_mean() -> None:
    train = Rows(["", ""], np.float32([1, 2]), np.zeros((2, 2), dtype=np.float32))
    assert baselines.majority(TASKS["regression"], train, num_rows=2).tolist() == [[1.5], [1.5]]


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
@pytest.mark.filterwarnings("error")
def test_training_rows_of_one_class_alone_give_that_class(kind: str) -> None:
    train = _rows(kind, 30, seed=0)
    one = Rows(train.texts, np.zeros_like(train.labels), train.vectors)
    logits = baselines.frozen(TASKS[kind], one, valid=train, test=train)
    assert not decode(TASKS[kind], logits).labels.any()


def test_a_class_without_training_rows_is_never_the_answer() -> None:
    train = _rows("multiclass", 60, seed=0)
    without = Rows(train.texts, np.minimum(train.labels, 1), train.vectors)
    answer = decode(TASKS["multiclass"], baselines.tfidf(TASKS["multiclass"], without, valid=train, test=train))
    assert set(answer.labels.tolist()) == {0, 1}
    assert answer.probabilities[:, 2].max() < 1e-6


def test_texts_of_signs_alone_still_have_terms() -> None:
    rows = Rows([":-)", ":-("] * 20, np.asarray([1, 0] * 20), np.zeros((40, 2), dtype=np.float32))
    answer = decode(TASKS["binary"], baselines.tfidf(TASKS["binary"], rows, valid=rows, test=rows))
    assert answer.labels.tolist() == rows.labels.tolist()


def test_training_rows_are_all_or_evenly_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    assert baselines.training_rows(7).tolist() == list(range(7))
    monkeypatch.setattr(baselines, "MOST_ROWS", 4)
    assert baselines.training_rows(7).tolist() == [0, 2, 4, 6]
    assert baselines.training_rows(0).tolist() == []
