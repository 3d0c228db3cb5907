"""Which columns are watched, and how they follow from texts, answers and labels.

Every column has a kind: `input` (statistics of the text, columns of the user), `embedding`, `prediction`, `estimate`
(the quality that calibrated probabilities promise, without labels), `label` and `quality` (loss and correctness, where
labels are known).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtlops.decoding import Outputs
from mtlops.tasks import Task

KINDS = ("input", "embedding", "prediction", "estimate", "label", "quality")
"""Those of `catalog.WATCHED` that columns have."""

RIGHT, WRONG = "right", "wrong"

_SHARES = {
    "non_ascii_share": r"[^\x00-\x7F]",
    "digit_share": r"\d",
    "punctuation_share": r"\pP",
    "upper_case_share": r"\p{Lu}",
}

_SMALLEST = 1e-7


@dataclass(frozen=True)
class Column:
    """Values of one column.

    Attributes:
        kind: one of `KINDS`.
        test: a name of `catalog.DRIFT`.
        values: N numbers (not-a-number where one is missing), words (None where one is missing) or (N, H) vectors.
    """

    kind: str
    test: str
    values: Any


Columns = Mapping[str, Column]


def text_columns(texts: Sequence[str], unknown_shares: NDArray[np.float64]) -> dict[str, Column]:
    """Returns statistics of N texts as columns of kind `input`.

    Shapes: unknown_shares: (N,) share of each text's tokens that the tokenizer does not know.
    """
    column = pa.array(texts, type=pa.string())
    characters = _numbers(pc.utf8_length(column))
    words = _numbers(pc.count_substring_regex(column, r"\S+"))
    spaces = _numbers(pc.count_substring_regex(column, r"\s"))
    numbers = {
        "characters": characters,
        "words": words,
        "characters_per_word": (characters - spaces) / np.maximum(words, 1.0),
        "unknown_token_share": unknown_shares,
        **{name: _share(column, pattern, characters) for name, pattern in _SHARES.items()},
    }
    return {f"text.{name}": Column("input", "numeric", values) for name, values in numbers.items()}


def user_columns(table: pa.Table, tests: Mapping[str, str]) -> dict[str, Column]:
    """Returns the columns of `table` that `tests` (section `drift.columns`) names, where the table has them."""
    return {
        f"column.{name}": Column("input", test, _user_values(table[name], test))
        for name, test in tests.items()
        if name in table.column_names
    }


def embedding_column(vectors: NDArray[np.float32]) -> dict[str, Column]:
    """Returns embeddings (N, H), as the graph's output of that name gives them, as a column."""
    return {"embedding": Column("embedding", "embedding", vectors)}


def prediction_columns(task: Task, outputs: Outputs) -> dict[str, Column]:
    """Returns a task's answers as columns: label, confidence and a probability for each class, or the value.

    Of two classes that exclude one another only the second is kept: the first says the same. `estimate.accuracy` is
    each answer's own probability of being right, as the calibrated model sees it.
    """
    if outputs.values is not None:
        return {"prediction.value": Column("prediction", "numeric", outputs.values)}
    assert outputs.probabilities is not None and outputs.labels is not None
    labels = outputs.labels
    if task.per_word:
        return _tag_columns(task, outputs)
    if task.kind == "multilabel":
        names: list[str | None] = [_label_set(np.asarray(task.classes)[row]) for row in labels.astype(bool)]
        sure = np.abs(outputs.probabilities - 0.5).min(axis=1) + 0.5
    else:
        names = [task.classes[int(position)] for position in labels]
        sure = outputs.probabilities.max(axis=1)
    found = {
        "prediction.label": Column("prediction", "categorical", names),
        "prediction.confidence": Column("prediction", "numeric", sure),
        "estimate.accuracy": Column("estimate", "mean", chance_of_right(task, outputs)),
    }
    first = 1 if len(task.classes) == 2 and task.kind != "multilabel" else 0
    for position, name in list(enumerate(task.classes))[first:]:
        found[f"prediction.probability.{name}"] = Column("prediction", "numeric", outputs.probabilities[:, position])
    return found


def _tag_columns(task: Task, outputs: Outputs) -> dict[str, Column]:
    """A row's shares of each tag among its words, and the means over its words of confidence: words of a row depend
    on one another, so that they are no rows of their own.
    """
    assert outputs.probabilities is not None and outputs.labels is not None
    sure = np.where(outputs.labels >= 0, outputs.probabilities.max(axis=-1), 0.0).sum(axis=1)
    sure = sure / np.maximum((outputs.labels >= 0).sum(axis=1), 1)
    return {
        "prediction.confidence": Column("prediction", "numeric", sure),
        "estimate.accuracy": Column("estimate", "mean", sure),
        **_shares_of_tags(task, outputs.labels, name="prediction.share", kind="prediction"),
    }


def _shares_of_tags(
    task: Task, tags: NDArray[np.int64] | NDArray[np.bool_], *, name: str, kind: str
) -> dict[str, Column]:
    words = np.maximum((tags >= 0).sum(axis=1), 1)
    return {
        f"{name}.{tag}": Column(kind, "numeric", (tags == position).sum(axis=1) / words)
        for position, tag in enumerate(task.classes)
    }


def chance_of_right(task: Task, outputs: Outputs) -> NDArray[np.float64]:
    """Returns the probability (N,) that each answer is right: of multilabel, that all of its classes are."""
    assert outputs.probabilities is not None and outputs.labels is not None
    shares = outputs.probabilities.astype(np.float64)
    if task.kind == "multilabel":
        of_class: NDArray[np.float64] = np.where(outputs.labels.astype(bool), shares, 1.0 - shares)
        product: NDArray[np.float64] = of_class.prod(axis=1)
        return product
    chosen: NDArray[np.float64] = shares[np.arange(len(shares)), outputs.labels.astype(np.int64)]
    return chosen


def label_columns(task: Task, labels: Sequence[Any]) -> dict[str, Column]:
    """Returns labels, as the data hold them, as a column; a list of classes counts as one word.

    Of a task that tags words: each tag's share of a row's words.
    """
    if task.kind == "regression":
        return {"label": Column("label", "numeric", np.asarray(labels, dtype=np.float64))}
    if task.per_word:
        return _shares_of_tags(task, task.encode(labels).astype(np.int64), name="label.share", kind="label")
    words = [_label_set(label) for label in labels] if task.kind == "multilabel" else [str(label) for label in labels]
    return {"label": Column("label", "categorical", words)}


def quality_columns(task: Task, outputs: Outputs, encoded: NDArray[Any]) -> dict[str, Column]:
    """Returns how wrong each answer is.

    Shapes: encoded: labels as `Task.encode` returns them.
    """
    if outputs.values is not None:
        return {"quality.absolute_error": Column("quality", "numeric", np.abs(outputs.values - encoded))}
    assert outputs.probabilities is not None and outputs.labels is not None
    shares = np.clip(outputs.probabilities.astype(np.float64), _SMALLEST, 1.0 - _SMALLEST)
    if task.per_word:
        return _tag_quality(shares, outputs.labels.astype(np.int64), encoded)
    if task.kind == "multilabel":
        wanted = encoded.astype(bool)
        loss = -np.log(np.where(wanted, shares, 1.0 - shares)).mean(axis=1)
        correct = (outputs.labels.astype(bool) == wanted).all(axis=1)
    else:
        loss = -np.log(shares[np.arange(len(encoded)), encoded])
        correct = outputs.labels == encoded
    return {
        "quality.loss": Column("quality", "numeric", loss),
        "quality.correct": Column("quality", "categorical", np.where(correct, "yes", "no").tolist()),
        "quality.calibration": Column("quality", "categorical", _calibration(chance_of_right(task, outputs), correct)),
    }


def _tag_quality(
    shares: NDArray[np.float64], answers: NDArray[np.int64], encoded: NDArray[np.int64]
) -> dict[str, Column]:
    """The means over a row's judged words of loss and of being right."""
    judged = (answers >= 0) & (encoded >= 0)
    of_truth = np.take_along_axis(shares, np.maximum(encoded, 0)[..., None], axis=-1)[..., 0]
    words = np.maximum(judged.sum(axis=1), 1)
    loss = np.where(judged, -np.log(np.where(judged, of_truth, 1.0)), 0.0).sum(axis=1) / words
    return {
        "quality.loss": Column("quality", "numeric", loss),
        "quality.accuracy": Column("quality", "numeric", ((answers == encoded) & judged).sum(axis=1) / words),
    }


def tenths(chances: NDArray[np.float64]) -> list[str]:
    """Returns the tenth that each chance (N,) of being right lies in, in words."""
    found = np.clip((chances * 10.0).astype(np.int64), 0, 9)
    return [f"promised {10 * k}-{10 * k + 10}%" for k in found.tolist()]


def _calibration(chances: NDArray[np.float64], correct: NDArray[np.bool_]) -> list[str]:
    """What answers promised and whether they kept it: a reliability diagram, as counts."""
    kept = np.where(correct, RIGHT, WRONG).tolist()
    return [f"{promised}: {said}" for promised, said in zip(tenths(chances), kept, strict=True)]


def _user_values(values: pa.ChunkedArray, test: str) -> Any:
    if test == "categorical":
        return values.cast(pa.string())
    return values.cast(pa.float64()).to_numpy(zero_copy_only=False)


def _share(column: pa.Array, pattern: str, characters: NDArray[np.float64]) -> NDArray[np.float64]:
    return _numbers(pc.count_substring_regex(column, pattern)) / np.maximum(characters, 1.0)


def _numbers(values: pa.Array) -> NDArray[np.float64]:
    numbers: NDArray[np.float64] = values.to_numpy(zero_copy_only=False).astype(np.float64)
    return numbers


def _label_set(names: Any) -> str:
    return " + ".join(sorted(str(name) for name in names)) or "(none)"
