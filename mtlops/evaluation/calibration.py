"""What is fitted on validation rows after training: a temperature, and the thresholds of binary and multilabel tasks.

The validation rows also chose the epoch, so a fit on them is a little too confident of itself; the test rows, which
nothing was chosen on, say what it is worth (`calibration` in evaluation.json).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar

from mtlops import catalog
from mtlops.decoding import THRESHOLD, Calibration, Outputs, decode
from mtlops.evaluation.metrics import Metrics
from mtlops.tasks import Task

LEAST_ROWS = 50
"""Fewer validation rows say too little about a temperature."""

LEAST_POSITIVES = 20
"""A class with fewer validation rows that carry it, or fewer that do not, keeps the threshold of 0.5."""

TEMPERATURES = (0.1, 10.0)
"""Bounds of a temperature: rows that are all right would drive it to 0."""

DIGITS = 4
"""Decimals of what is fitted: more would be noise, and would differ between machines."""

CANDIDATES = np.arange(5, 96) / 100
"""Thresholds that are tried: steps of 0.01 are finer than a few hundred rows can tell apart."""


@dataclass(frozen=True)
class Fitted:
    """What was fitted for one task, and how it went.

    Attributes:
        calibration: what `decode` takes.
        rows: validation rows that it was fitted on.
        log_loss: of those rows before and after, nats; None for a regression.
        notes: one sentence for each thing that was not fitted, and why.
    """

    calibration: Calibration
    rows: int
    log_loss: tuple[float, float] | None
    notes: tuple[str, ...]


def fit(task: Task, logits: NDArray[np.float32], labels: NDArray[Any], *, thresholds: str) -> Fitted:
    """Returns the calibration of one task that fits its validation rows best.

    Shapes: logits: (N, task.num_outputs) in label units; labels: as `Task.encode` returns them.

    Source: Guo et al. 2017, "On Calibration of Modern Neural Networks", section 4.2 (arXiv:1706.04599): one scalar
    for all classes, by the likelihood. Multilabel differs: one for the sigmoids of all classes.

    Args:
        task: the task.
        logits: of its validation rows.
        labels: of the same rows.
        thresholds: `fitted` or `fixed` (see `params.Train`).
    """
    if task.kind == "regression":
        return Fitted(Calibration(), len(labels), None, ())
    temperature, notes = _temperature(task, logits, labels)
    cut: tuple[float, ...] = ()
    if thresholds == "fitted" and task.kind in ("binary", "multilabel"):
        outputs = decode(task, logits, Calibration(temperature))
        cut, more = _thresholds(task, outputs, labels)
        notes += more
    before, after = (_log_loss(task, decode(task, logits, Calibration(t)), labels) for t in (1.0, temperature))
    return Fitted(Calibration(temperature, cut), len(labels), (before, after), tuple(notes))


def _temperature(task: Task, logits: NDArray[np.float32], labels: NDArray[Any]) -> tuple[float, list[str]]:
    if len(labels) < LEAST_ROWS:
        return 1.0, [f"temperature 1: {len(labels)} validation rows, fewer than {LEAST_ROWS}"]
    found = minimize_scalar(
        lambda log: _log_loss(task, decode(task, logits, Calibration(float(np.exp(log)))), labels),
        bounds=tuple(np.log(TEMPERATURES)), method="bounded", options={"xatol": 1e-5},
    )  # fmt: skip
    return round(float(np.exp(found.x)), DIGITS), []


def _log_loss(task: Task, outputs: Outputs, labels: NDArray[Any]) -> float:
    measure: Metrics = catalog.load(catalog.KINDS[task.kind].metrics)
    return measure(task, labels, outputs)["log_loss"]


def _thresholds(task: Task, outputs: Outputs, labels: NDArray[Any]) -> tuple[tuple[float, ...], list[str]]:
    """Returns a threshold for the second class of a binary task, or for each class of a multilabel one."""
    assert outputs.probabilities is not None
    if task.kind == "binary":
        truth, shares, names = (labels == 1)[:, None], outputs.probabilities[:, 1:], task.classes[1:]
    else:
        truth, shares, names = labels.astype(bool), outputs.probabilities, task.classes
    notes, found = [], []
    for column, name in enumerate(names):
        positives = int(truth[:, column].sum())
        if min(positives, len(truth) - positives) < LEAST_POSITIVES:
            notes.append(
                f"threshold {THRESHOLD} for {name!r}: {positives} of {len(truth)} validation rows carry it; "
                f"{LEAST_POSITIVES} with and without are needed"
            )
            found.append(THRESHOLD)
        else:
            found.append(_best_threshold(truth[:, column], shares[:, column], both_sides=task.kind == "binary"))
    return tuple(found), notes


def _best_threshold(truth: NDArray[np.bool_], shares: NDArray[np.float32], *, both_sides: bool) -> float:
    """Returns the candidate with the best F1 of the class (with `both_sides` the mean of it and its complement's),
    the one nearest to 0.5 of several.
    """
    answers = shares[:, None] >= CANDIDATES.astype(np.float32)
    quality = _f1(truth[:, None], answers)
    if both_sides:
        quality = (quality + _f1(~truth[:, None], ~answers)) / 2
    best = CANDIDATES[np.isclose(quality, quality.max(), rtol=0, atol=1e-12)]
    return float(best[np.argmin(np.abs(best - THRESHOLD))])


def _f1(truth: NDArray[np.bool_], answers: NDArray[np.bool_]) -> NDArray[np.float64]:
    hits, either = (truth & answers).sum(axis=0), truth.sum(axis=0) + answers.sum(axis=0)
    quality: NDArray[np.float64] = 2 * hits / np.maximum(either, 1)
    return quality
