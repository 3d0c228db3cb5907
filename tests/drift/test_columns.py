"""What is watched of texts, answers and labels."""

import numpy as np
import pyarrow as pa
import pytest

from mtlops.decoding import Outputs, decode
from mtlops.drift.columns import label_columns, prediction_columns, quality_columns, text_columns, user_columns
from mtlops.tasks import Task

BINARY = Task("mood", "binary", ("bad", "good"))
MULTI = Task("topic", "multiclass", ("a", "b", "c"))
LABELS = Task("about", "multilabel", ("x", "y"))
NUMBER = Task("stars", "regression", (), (1.0, 5.0))


def test_text_statistics() -> None:
    found = text_columns(["Ab, 1 é", "", "xx yy"], np.asarray([0.5, 0.0, 0.0]))
    values = {name.removeprefix("text."): column.values.tolist() for name, column in found.items()}
    assert {column.kind for column in found.values()} == {"input"}
    assert values["characters"] == [7, 0, 5] and values["words"] == [3, 0, 2]
    assert values["characters_per_word"] == pytest.approx([5 / 3, 0, 2])
    for name in ("non_ascii_share", "digit_share", "punctuation_share", "upper_case_share"):
        assert values[name] == pytest.approx([1 / 7, 0, 0]), name
    assert values["unknown_token_share"] == [0.5, 0, 0]


def test_predictions_of_every_kind() -> None:
    shares = np.asarray([[0.25, 0.75], [0.9, 0.1]], dtype=np.float32)
    found = prediction_columns(BINARY, Outputs(probabilities=shares, labels=np.asarray([1, 0])))
    assert list(found) == [
        "prediction.label", "prediction.confidence", "estimate.accuracy", "prediction.probability.good",
    ]  # fmt: skip
    np.testing.assert_allclose(found["estimate.accuracy"].values, [0.75, 0.9], rtol=1e-6)
    assert found["prediction.label"].values == ["good", "bad"]
    assert found["prediction.confidence"].values == pytest.approx([0.75, 0.9])

    shares = np.asarray([[0.2, 0.3, 0.5]], dtype=np.float32)
    found = prediction_columns(MULTI, Outputs(probabilities=shares, labels=np.asarray([2])))
    assert [name for name in found if "probability" in name] == [f"prediction.probability.{c}" for c in "abc"]

    shares = np.asarray([[0.9, 0.6], [0.1, 0.2]], dtype=np.float32)
    found = prediction_columns(LABELS, Outputs(probabilities=shares, labels=shares >= 0.5))
    assert found["prediction.label"].values == ["x + y", "(none)"]
    assert found["prediction.confidence"].values == pytest.approx([0.6, 0.8])

    found = prediction_columns(NUMBER, Outputs(values=np.asarray([3.5], dtype=np.float32)))
    assert list(found) == ["prediction.value"] and found["prediction.value"].test == "numeric"


def test_labels_of_every_kind() -> None:
    assert label_columns(MULTI, ["a", "c"])["label"].values == ["a", "c"]
    assert label_columns(LABELS, [["y", "x"], []])["label"].values == ["x + y", "(none)"]
    assert label_columns(NUMBER, [1, 4.5])["label"].values.tolist() == [1.0, 4.5]


def test_quality_of_every_kind() -> None:
    shares = np.asarray([[0.25, 0.75], [0.0, 1.0]], dtype=np.float32)
    found = quality_columns(BINARY, Outputs(probabilities=shares, labels=np.asarray([1, 1])), np.asarray([1, 0]))
    assert found["quality.correct"].values == ["yes", "no"]
    assert found["quality.loss"].values == pytest.approx([-np.log(0.75), -np.log(1e-7)])
    encoded = np.asarray([[0, 1], [0, 0]], dtype=np.float32)
    found = quality_columns(LABELS, Outputs(probabilities=shares, labels=shares >= 0.5), encoded)
    assert found["quality.correct"].values == ["yes", "no"]
    assert found["quality.loss"].values[0] == pytest.approx(-np.log(0.75))
    found = quality_columns(NUMBER, Outputs(values=np.asarray([3.5])), np.asarray([3.0]))
    assert found["quality.absolute_error"].values.tolist() == [0.5]


def test_user_columns_follow_their_test() -> None:
    table = pa.table({"price": [1, None, 3], "country": ["de", None, "fr"]})
    found = user_columns(table, {"price": "numeric", "country": "categorical", "absent": "numeric"})
    assert list(found) == ["column.price", "column.country"]
    assert np.isnan(found["column.price"].values).tolist() == [False, True, False]
    assert found["column.country"].values.to_pylist() == ["de", None, "fr"]


def test_tags_are_watched_as_shares_of_a_row_s_words() -> None:
    task = Task("t", "tagging", ("O", "B-x"))
    logits = np.array([[[3, 0], [0, 3]], [[3, 0], [np.nan, np.nan]]], dtype=np.float32)
    outputs, labels = decode(task, logits), [["O", "O"], ["B-x"]]
    found = {**prediction_columns(task, outputs), **label_columns(task, labels)}
    found |= quality_columns(task, outputs, task.encode(labels))
    values = {name: np.asarray(column.values).tolist() for name, column in found.items()}
    assert values["prediction.share.O"] == [0.5, 1.0] and values["prediction.share.B-x"] == [0.5, 0.0]
    assert values["label.share.B-x"] == [0.0, 1.0] and values["quality.accuracy"] == [0.5, 0.0]
    sure = float(1 / (1 + np.exp(-3.0)))
    assert values["estimate.accuracy"] == pytest.approx([sure, sure])
    assert values["quality.loss"] == pytest.approx([(-np.log(sure) - np.log(1 - sure)) / 2, -np.log(1 - sure)])
