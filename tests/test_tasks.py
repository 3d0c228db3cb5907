"""Labels to numbers, and logits to answers, for every kind."""

import numpy as np
import pytest

from mtlops.decoding import UNCALIBRATED, Calibration, decode, softmax
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


def test_a_temperature_moves_probabilities_and_no_answer() -> None:
    task = Task("t", "multiclass", ("a", "b"))
    outputs = decode(task, np.array([[0.0, np.log(9.0)]], dtype=np.float32), Calibration(temperature=2.0))
    assert outputs.probabilities == pytest.approx(np.array([[0.25, 0.75]])) and outputs.labels.tolist() == [1]
    several = decode(Task("t", "multilabel", ("a",)), np.array([[-1e4], [2.0]], dtype=np.float32), Calibration(0.5))
    assert several.probabilities == pytest.approx(np.array([[0.0], [1 / (1 + np.exp(-4.0))]]))


def test_thresholds_decide_binary_and_multilabel_answers() -> None:
    logits = np.log(np.array([[0.7, 0.3], [0.5, 0.5], [0.4, 0.6]], dtype=np.float32))
    task = Task("t", "binary", ("no", "yes"))
    assert decode(task, logits).labels.tolist() == [0, 1, 1]
    assert decode(task, logits, Calibration(thresholds=(0.25,))).labels.tolist() == [1, 1, 1]
    assert decode(task, logits, Calibration(thresholds=(0.55,))).labels.tolist() == [0, 0, 1]
    several = Task("t", "multilabel", ("a", "b"))
    answers = decode(several, np.zeros((1, 2), dtype=np.float32), Calibration(thresholds=(0.6, 0.4)))
    assert answers.labels.tolist() == [[False, True]]


def test_a_calibration_is_what_its_facts_say() -> None:
    binary, several = Task("t", "binary", ("no", "yes")), Task("t", "multilabel", ("a", "b"))
    assert UNCALIBRATED.facts(binary) == {"temperature": 1.0, "threshold": 0.5}
    assert UNCALIBRATED.facts(several) == {"temperature": 1.0, "threshold": [0.5, 0.5]}
    assert UNCALIBRATED.facts(Task("t", "regression")) == {"temperature": 1.0, "threshold": None}
    for task, calibration in ((binary, Calibration(2.0, (0.4,))), (several, Calibration(0.5, (0.4, 0.6)))):
        assert Calibration.from_facts(calibration.facts(task)) == calibration
    assert Calibration.from_facts({"kind": "binary", "threshold": 0.5}) == Calibration(1.0, (0.5,))


def test_softmax_survives_large_logits() -> None:
    outputs = decode(Task("t", "binary", ("n", "y")), np.array([[1e4, -1e4]], dtype=np.float32))
    assert outputs.probabilities.tolist() == [[1.0, 0.0]]


def test_tags_become_positions_of_the_words_and_spans_choose_the_metric() -> None:
    task, plain = Task("t", "tagging", ("O", "B-x", "I-x")), Task("t", "tagging", ("noun", "verb"))
    assert task.encode([("O", "B-x", "I-x"), ("B-x",)]).tolist() == [[0, 1, 2], [1, -1, -1]]
    assert (task.primary, plain.primary) == ("span_f1", "macro_f1")
    assert task.num_outputs == 3 and task.encode([]).shape == (0, 0)


def test_each_word_gets_its_likeliest_tag_and_what_is_no_word_none() -> None:
    task = Task("t", "tagging", ("O", "B-x", "I-x"))
    logits = np.array([[[2, 0, 0], [0, 1, 3]], [[0, 2, 0], [np.nan] * 3]], dtype=np.float32)
    outputs = decode(task, logits, Calibration(temperature=2.0))
    assert outputs.labels is not None and outputs.probabilities is not None
    assert outputs.labels.tolist() == [[0, 2], [1, -1]]
    assert np.allclose(outputs.probabilities[0, 0], softmax(np.array([1.0, 0.0, 0.0], dtype=np.float32)))
    assert np.isnan(outputs.probabilities[1, 1]).all()
