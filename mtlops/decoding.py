"""From logits to answers: the same few lines of NumPy in evaluation, export and serving."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.tasks import Task

THRESHOLD = 0.5
"""A class of a binary or multilabel task is answered from this probability on, unless another was fitted."""


@dataclass(frozen=True)
class Calibration:
    """What was fitted on validation rows to turn a task's logits into answers.

    Attributes:
        temperature: logits are divided by it (Guo et al. 2017, arXiv:1706.04599, section 4.2); 1 changes nothing.
        thresholds: least probability from which a class is answered: binary one value, for the second class;
            multilabel one a class; empty means `THRESHOLD` for each. Other kinds have none.
    """

    temperature: float = 1.0
    thresholds: tuple[float, ...] = ()

    @classmethod
    def from_facts(cls, facts: Mapping[str, Any]) -> "Calibration":
        """Returns what `facts` (of task.json or of a manifest) say; one of an earlier version says nothing."""
        found = facts.get("threshold")
        thresholds = found if isinstance(found, list) else [] if found is None else [found]
        return cls(float(facts.get("temperature", 1.0)), tuple(map(float, thresholds)))

    def facts(self, task: Task) -> dict[str, Any]:
        """Returns what `from_facts` reads: `temperature`, and `threshold` (binary a number, multilabel a list, else
        None).
        """
        thresholds = list(self.thresholds or [THRESHOLD] * len(task.classes))
        found = {"binary": thresholds[0] if thresholds else None, "multilabel": thresholds}
        return {"temperature": self.temperature, "threshold": found.get(task.kind)}


UNCALIBRATED = Calibration()
"""Logits as they are, thresholds of `THRESHOLD`."""


@dataclass(frozen=True)
class Outputs:
    """Answers of one task for N rows.

    Attributes:
        probabilities: (N, C) float32 in class order; None for a regression; tagging (N, W, C), not-a-number where a
            row has no such word.
        labels: (N,) int64 position of the answer; multilabel (N, C) bool; None for a regression; tagging (N, W) int64,
            -1 where a row has no such word.
        values: (N,) float32 in label units, cut to the task's range; None for all other kinds.
    """

    probabilities: NDArray[np.float32] | None = None
    labels: NDArray[np.int64] | NDArray[np.bool_] | None = None
    values: NDArray[np.float32] | None = None

    def part(self, rows: slice) -> "Outputs":
        """Returns the answers for some of the rows."""
        probabilities, labels, values = self.probabilities, self.labels, self.values
        return Outputs(
            None if probabilities is None else probabilities[rows],
            None if labels is None else labels[rows],
            None if values is None else values[rows],
        )


def decode(task: Task, logits: NDArray[np.float32], calibration: Calibration = UNCALIBRATED) -> Outputs:
    """Returns the answers that logits stand for.

    Shapes: logits: (N, task.num_outputs) float32. Every kind with classes has one logit a class, in class
    order: softmax for one class of several, sigmoid and a threshold a class for multilabel. The second class
    of a binary task is answered from its threshold on. An ordinal answer is the median class, which minimises
    the expected distance in ranks. A regression's only logit is already in label units; nothing calibrates it.
    A task that tags words has logits (N, W, C), not-a-number where a row has no such word; each word's answer is its
    likeliest tag, whatever its neighbours' are.
    """
    if task.kind == "regression":
        lowest, highest = task.range or (-np.inf, np.inf)
        return Outputs(values=np.clip(logits[:, 0], lowest, highest).astype(np.float32))
    cooled = logits / np.float32(calibration.temperature)
    if task.kind == "multilabel":
        thresholds = np.asarray(calibration.thresholds or THRESHOLD, dtype=np.float32)
        shares: NDArray[np.float32] = np.exp(-np.logaddexp(np.float32(0), -cooled))
        return Outputs(probabilities=shares, labels=shares >= thresholds)
    probabilities = softmax(cooled)
    if task.per_word:
        is_word = np.isfinite(probabilities).all(axis=-1)
        return Outputs(probabilities=probabilities, labels=np.where(is_word, probabilities.argmax(axis=-1), -1))
    if task.kind == "binary":
        threshold = np.float32((calibration.thresholds or (THRESHOLD,))[0])
        return Outputs(probabilities=probabilities, labels=(probabilities[:, 1] >= threshold).astype(np.int64))
    if task.kind == "ordinal":
        below = np.add.reduce(np.add.accumulate(probabilities, axis=1) < 0.5, axis=1, dtype=np.int64)
        return Outputs(probabilities=probabilities, labels=np.minimum(below, len(task.classes) - 1))
    return Outputs(probabilities=probabilities, labels=probabilities.argmax(axis=1))


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the softmax over the last axis, safe for large logits.

    For a row or two, which is what a server mostly has, the arrays' own `max` and `sum` cost twice what they call.
    """
    shifted: NDArray[np.float32] = np.exp(logits - np.maximum.reduce(logits, axis=-1, keepdims=True))
    total: NDArray[np.float32] = np.add.reduce(shifted, axis=-1, keepdims=True)
    return shifted / total
