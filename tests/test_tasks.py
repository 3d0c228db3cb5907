"""Labels to numbers, and logits to answers, for every kind."""

import numpy as np
import pytest

from mtlops.decoding import decode
from mtlops.errors import DataError
from mtlops.tasks import Task


def test_labels_become_positions() -> None:
    task = Task("t", "multiclass", ("a", "b", "c"))
    assert task.encode(["c", "a"]).tolist() == [2, 0]
    with pytest.raises(DataError, match="task t: label 'x' is not one of its classes"):
        task.encode(["x"])


def test_multilabel_becomes_indicators() -> None:
    task = Task("t", "multilabel", ("a", "b"))
    assert task.encode([[], ["b"], ["a", "b"]]).tolist() == [[0, 0], [0, 1], [1, 1]]


def test_binary_has_two_logits_and_softmax_probabilities() -> None:
    task = Task("t", "binary", ("no", "yes"))
    outputs = decode(task, np.array([[0.0, np.log(3.0)]], dtype=np.float32))
    assert task.num_outputs == 2 and outputs.labels.tolist() == [1]
    assert outputs.probabilities == pytest.approx(np.array([[0.25, 0.75]]))


def test_ordinal_answer_is_the_median() -> None:
    task = Task("t", "ordinal", ("low", "mid", "high"))
    logits = np.log(np.array([[0.4, 0.2, 0.4], [0.6, 0.3, 0.1]], dtype=np.float32))
    assert decode(task, logits).labels.tolist() == [1, 0]


def test_regression_stays_in_its_range() -> None:
    outputs = decode(Task("t", "regression", range=(0.0, 5.0)), np.array([[7.0], [2.5]], dtype=np.float32))
    assert outputs.values.tolist() == [5.0, 2.5] and outputs.probabilities is None


def test_multilabel_threshold() -> None:
    outputs = decode(Task("t", "multilabel", ("a", "b")), np.array([[2.0, -2.0]], dtype=np.float32))
    assert outputs.labels.tolist() == [[True, False]]


def test_softmax_survives_large_logits() -> None:
    outputs = decode(Task("t", "binary", ("n", "y")), np.array([[1e4, -1e4]], dtype=np.float32))
    assert outputs.probabilities.tolist() == [[1.0, 0.0]]
