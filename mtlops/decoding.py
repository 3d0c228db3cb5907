"""From logits to answers: the same few lines of NumPy in evaluation, export and serving."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtlops.tasks import Task


@dataclass(frozen=True)
class Outputs:
    """Answers of one task for N rows.

    Attributes:
        probabilities: (N, C) float32 in class order; None for a regression.
        labels: (N,) int64 position of the answer; multilabel (N, C) bool; None for a regression.
        values: (N,) float32 in label units, cut to the task's range; None for all other kinds.
    """

    probabilities: NDArray[np.float32] | None = None
    labels: NDArray[np.int64] | NDArray[np.bool_] | None = None
    values: NDArray[np.float32] | None = None


def decode(task: Task, logits: NDArray[np.float32]) -> Outputs:
    """Returns the answers that logits stand for.

    Shapes: logits: (N, task.num_outputs) float32. Every kind with classes has one logit a class, in class
    order: softmax for one class of several, sigmoid and a threshold of 0.5 for multilabel. An ordinal
    answer is the median class, which minimises the expected distance in ranks. A regression's only logit
    is already in label units.
    """
    if task.kind == "regression":
        lowest, highest = task.range or (-np.inf, np.inf)
        return Outputs(values=np.clip(logits[:, 0], lowest, highest).astype(np.float32))
    if task.kind == "multilabel":
        shares: NDArray[np.float32] = (1.0 / (1.0 + np.exp(-logits))).astype(np.float32)
        return Outputs(probabilities=shares, labels=shares >= 0.5)
    probabilities = softmax(logits)
    if task.kind == "ordinal":
        labels = (np.cumsum(probabilities, axis=1) < 0.5).sum(axis=1).clip(max=len(task.classes) - 1)
        return Outputs(probabilities=probabilities, labels=labels.astype(np.int64))
    return Outputs(probabilities=probabilities, labels=probabilities.argmax(axis=1))


def softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Returns the softmax over the last axis, safe for large logits."""
    shifted = np.exp(logits - logits.max(axis=-1, keepdims=True))
    normalised: NDArray[np.float32] = shifted / shifted.sum(axis=-1, keepdims=True)
    return normalised
