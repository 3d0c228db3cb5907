"""The metrics of each kind of task, on all rows or on bootstrap samples of them.

Each metric is written once, as a function of sums over rows. The plain value is the case of one sample that
holds every row, so a value and its interval cannot disagree. NumPy alone: training calls this after every
epoch. Where a metric is not defined (no spread in the labels, say) it is 0, which no gate rewards.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.decoding import Outputs
from mtlops.evaluation.bootstrap import Floats, Resamples, every_row
from mtlops.tasks import Task

NUM_BINS = 15
"""Bins of the calibration error, as in Guo et al. 2017."""

SMALLEST_PROBABILITY = 1e-7
"""Probabilities are cut to at least this in a log loss, as float32 cannot say less below 1."""

_Measure = Callable[[Task, Any, Outputs, Resamples], dict[str, Floats]]


@dataclass(frozen=True)
class Metrics:
    """The metrics of one kind: call it for plain values, `over` for their values on bootstrap samples.

    Shapes: labels: as `Task.encode` returns them; outputs: as `decode` returns them, for the same N rows.
    """

    measure: _Measure

    def __call__(self, task: Task, labels: NDArray[Any], outputs: Outputs) -> dict[str, float]:
        """Returns each metric by name, over all rows."""
        values = self.measure(task, labels, outputs, every_row(len(labels)))
        return {name: float(value[0]) for name, value in values.items()}

    def over(self, samples: Resamples, task: Task, labels: NDArray[Any], outputs: Outputs) -> dict[str, Floats]:
        """Returns each metric by name on each of the B samples, (B,) float64."""
        return self.measure(task, labels, outputs, samples)


@dataclass(frozen=True)
class Bin:
    """Rows of similar confidence.

    Attributes:
        rows: how many (for multilabel: pairs of row and class; for tagging: words).
        predicted: mean confidence; for a regression the mean predicted value.
        observed: share of them that are right; for a regression the mean label.
    """

    rows: int
    predicted: float
    observed: float


def reliability(task: Task, labels: NDArray[Any], outputs: Outputs) -> tuple[Bin, ...]:
    """Returns the bins of a reliability diagram, from the lowest predictions to the highest.

    The same equal-mass bins that the calibration error is computed over, so that error is the mean of
    |predicted - observed| over the bins, weighted by rows.
    """
    if outputs.values is not None:
        predicted, observed = outputs.values.astype(np.float64), labels.astype(np.float64)
    else:
        predicted, observed = (pairs.ravel() for pairs in _confidence(task, *of_words(task, labels, outputs)))
    number = _equal_mass_bins(predicted)
    rows = np.bincount(number)
    means = [np.bincount(number, weights=values) / rows for values in (predicted, observed)]
    return tuple(Bin(int(n), float(p), float(o)) for n, p, o in zip(rows, *means, strict=True))


def confusion(task: Task, labels: NDArray[Any], outputs: Outputs) -> NDArray[np.int64]:
    """Returns how often each class was taken for each.

    Shapes: (C, C), row = label, column = answer; multilabel (C, 2, 2), [class][in the label][in the answer].
    """
    classes = len(task.classes)
    labels, outputs = of_words(task, labels, outputs)
    assert outputs.labels is not None
    if task.kind == "multilabel":
        cells = 4 * np.arange(classes) + 2 * labels.astype(np.int64) + outputs.labels.astype(np.int64)
        return np.bincount(cells.ravel(), minlength=4 * classes).reshape(classes, 2, 2)
    cells = labels * classes + outputs.labels
    return np.bincount(cells, minlength=classes * classes).reshape(classes, classes)


def of_words(task: Task, labels: NDArray[Any], outputs: Outputs) -> tuple[NDArray[Any], Outputs]:
    """Returns labels and answers of a task that tags words with one row a word that was judged; others as they are."""
    if not task.per_word:
        return labels, outputs
    assert outputs.labels is not None and outputs.probabilities is not None
    judged = (labels >= 0) & (outputs.labels >= 0)
    return labels[judged], Outputs(probabilities=outputs.probabilities[judged], labels=outputs.labels[judged])


def _classification(task: Task, labels: NDArray[Any], outputs: Outputs, samples: Resamples) -> dict[str, Floats]:
    sums = samples.sums(_class_columns(task, labels, outputs) | _calibration_columns(task, labels, outputs))
    return {
        "macro_f1": _macro_f1(sums),
        "accuracy": sums["hit"].sum(axis=1) / sums["row"],
        "ece": _calibration_error(sums),
        "log_loss": sums["log_loss"] / sums["row"],
    }


def _ordinal(task: Task, labels: NDArray[Any], outputs: Outputs, samples: Resamples) -> dict[str, Floats]:
    assert outputs.labels is not None
    distance = np.abs(labels - outputs.labels)
    columns = _class_columns(task, labels, outputs) | {"distance": distance, "squared_distance": distance**2}
    sums = samples.sums(columns)
    return {
        "quadratic_kappa": _quadratic_kappa(sums),
        "mae": sums["distance"] / sums["row"],
        **_classification(task, labels, outputs, samples),
    }


def _multilabel(task: Task, labels: NDArray[Any], outputs: Outputs, samples: Resamples) -> dict[str, Floats]:
    truth, answer = labels.astype(bool), outputs.labels
    columns = {
        "row": np.ones(len(truth)),
        "hit": truth & answer,
        "labelled": truth,
        "answered": answer,
        "all_right": (truth == answer).all(axis=1),
        "log_loss": -np.log(_probability_of_truth(truth, outputs)).mean(axis=1),
    }
    sums = samples.sums(columns | _calibration_columns(task, labels, outputs))
    return {
        "macro_f1": _macro_f1(sums),
        "micro_f1": _ratio(
            2 * sums["hit"].sum(axis=1), sums["labelled"].sum(axis=1) + sums["answered"].sum(axis=1)
        ),
        "subset_accuracy": sums["all_right"] / sums["row"],
        "ece": _calibration_error(sums),
        "log_loss": sums["log_loss"] / sums["row"],
    }  # fmt: skip


def _regression(task: Task, labels: NDArray[Any], outputs: Outputs, samples: Resamples) -> dict[str, Floats]:
    assert outputs.values is not None
    truth, answer = labels.astype(np.float64), outputs.values.astype(np.float64)
    error, centred = answer - truth, truth - truth.mean()
    sums = samples.sums({
        "row": np.ones(len(truth)), "absolute": np.abs(error), "squared": error**2,
        "centred": centred, "centred_squared": centred**2,
    })  # fmt: skip
    spread = sums["centred_squared"] - sums["centred"] ** 2 / sums["row"]
    return {
        "r2": np.where(spread > 0, 1.0 - _ratio(sums["squared"], spread), 0.0),
        "mae": sums["absolute"] / sums["row"],
        "rmse": np.sqrt(sums["squared"] / sums["row"]),
        "spearman": np.concatenate([_spearman(truth, answer, weights) for weights in samples.row_weights()]),
    }


classification = Metrics(_classification)
"""Metrics of `binary` and `multiclass`.

- `macro_f1`: mean F1 over the classes that occur among the rows' labels or answers.
- `accuracy`: share of rows that are right.
- `ece`: expected calibration error, |confidence in the answer - share right| averaged over 15 bins of equal
  mass (Guo et al. 2017, arXiv:1706.04599, section 3; equal mass as in Nguyen and O'Connor 2015,
  arXiv:1508.05154, section 3). Equal confidences share a bin. The bins are those of all rows.
- `log_loss`: mean -ln(probability of the label), nats.
"""

ordinal = Metrics(_ordinal)
"""Those of `classification`, and:

- `quadratic_kappa`: Cohen's kappa with quadratic weights (Cohen 1968): 1 is agreement, 0 is chance.
- `mae`: mean distance between answer and label, in ranks.
"""

multilabel = Metrics(_multilabel)
"""Metrics of `multilabel`: `macro_f1` over classes, `micro_f1` over all pairs of row and class,
`subset_accuracy` (share of rows with every class right), `ece` and `log_loss` over all pairs."""

regression = Metrics(_regression)
"""Metrics of `regression`: `r2` (1 - squared error / spread of the labels), `mae` and `rmse` in label units,
`spearman` (Pearson correlation of the ranks, equal values share their mean rank)."""


def _class_columns(task: Task, labels: NDArray[Any], outputs: Outputs) -> dict[str, NDArray[Any]]:
    assert outputs.labels is not None
    one_hot = np.eye(len(task.classes), dtype=bool)
    labelled, answered = one_hot[labels], one_hot[outputs.labels]
    return {"row": np.ones(len(labels)), "hit": labelled & answered, "labelled": labelled, "answered": answered}


def _calibration_columns(task: Task, labels: NDArray[Any], outputs: Outputs) -> dict[str, NDArray[Any]]:
    """Columns `gap`, (N, bins): a row's confidence minus its being right, in the bin of its confidence."""
    confidence, right = _confidence(task, labels, outputs)
    number = _equal_mass_bins(confidence.ravel()).reshape(confidence.shape)
    gap = np.zeros((len(confidence), number.max() + 1))
    rows = np.arange(len(confidence))[:, None]
    np.add.at(gap, (rows, number), confidence - right)
    columns: dict[str, NDArray[Any]] = {"gap": gap, "pair": np.full(len(gap), confidence.shape[1])}
    if task.kind != "multilabel":
        columns["log_loss"] = -np.log(_probability_of_truth(np.eye(len(task.classes), dtype=bool)[labels], outputs))
    return columns


def _confidence(task: Task, labels: NDArray[Any], outputs: Outputs) -> tuple[Floats, Floats]:
    """Returns (confidence, right): (N, 1) of the answer; multilabel (N, C) of each class being there."""
    assert outputs.probabilities is not None and outputs.labels is not None
    probabilities = outputs.probabilities.astype(np.float64)
    if task.kind == "multilabel":
        return probabilities, labels.astype(np.float64)
    answers = outputs.labels.astype(np.int64)
    confidence = np.take_along_axis(probabilities, answers[:, None], axis=1)
    return confidence, (answers == labels).astype(np.float64)[:, None]


def _equal_mass_bins(confidence: Floats) -> NDArray[np.int64]:
    """Returns each value's bin, 0, 1, ... without gaps; equal values share a bin."""
    edges = np.quantile(confidence, np.arange(1, NUM_BINS) / NUM_BINS)
    number = np.searchsorted(edges, confidence, side="left")
    return np.unique(number, return_inverse=True)[1].reshape(-1).astype(np.int64)


def _probability_of_truth(truth: NDArray[np.bool_], outputs: Outputs) -> Floats:
    """Returns the probability given to what is true: (N,) of the one class, or (N, C) for multilabel."""
    assert outputs.probabilities is not None and outputs.labels is not None
    probabilities = outputs.probabilities.astype(np.float64)
    right = np.where(truth, probabilities, 1 - probabilities) if outputs.labels.ndim == 2 else probabilities[truth]
    cut: Floats = np.maximum(right, SMALLEST_PROBABILITY)
    return cut


def _macro_f1(sums: dict[str, Floats]) -> Floats:
    either = sums["labelled"] + sums["answered"]
    return _ratio(_ratio(2 * sums["hit"], either).sum(axis=1), (either > 0).sum(axis=1))


def _calibration_error(sums: dict[str, Floats]) -> Floats:
    error: Floats = np.abs(sums["gap"]).sum(axis=1) / sums["pair"]
    return error


def _quadratic_kappa(sums: dict[str, Floats]) -> Floats:
    """1 - observed / expected squared distance; the expected one from the two margins alone."""
    ranks = np.arange(sums["labelled"].shape[1])
    (label_mean, label_square), (answer_mean, answer_square) = (
        [(sums[side] @ ranks**power) / sums["row"] for power in (1, 2)] for side in ("labelled", "answered")
    )
    expected = label_square + answer_square - 2 * label_mean * answer_mean
    return np.where(expected > 0, 1.0 - _ratio(sums["squared_distance"] / sums["row"], expected), 0.0)


def _spearman(truth: Floats, answer: Floats, weights: Floats) -> Floats:
    """Returns the rank correlation on each sample, (b,), given how often it holds each row, (b, N)."""
    total = weights.sum(axis=1, keepdims=True)
    first, second = (_ranks(values, weights) - (total + 1) / 2 for values in (truth, answer))
    covariance, *variances = (
        (weights * a * b).sum(axis=1) for a, b in ((first, second), (first, first), (second, second))
    )
    return _ratio(covariance, np.sqrt(variances[0] * variances[1]))


def _ranks(values: Floats, weights: Floats) -> Floats:
    """Returns the rank of each row's value in each sample, (b, N); equal values share their mean rank."""
    distinct, position = np.unique(values, return_inverse=True)
    order = np.argsort(position, kind="stable")
    starts = np.searchsorted(position[order], np.arange(len(distinct)))
    copies = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks: Floats = np.cumsum(copies, axis=1) - (copies - 1) / 2
    return ranks[:, position]


def _ratio(numerator: NDArray[Any], denominator: NDArray[Any]) -> Floats:
    """Returns numerator / denominator, and 0 where the denominator is 0."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    result: Floats = np.divide(numerator, denominator, out=np.zeros(shape), where=denominator > 0)
    return result
