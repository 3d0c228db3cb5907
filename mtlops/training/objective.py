"""What one task minimises: the loss of its kind, with what params.yaml adds to it."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlops import catalog
from mtlops.params import Train
from mtlops.tasks import Task


class Objective:
    """The loss of each row: (1 - a) loss(labels) + a divergence(teacher), a = 0 without a teacher.

    Label smoothing and class weights belong to the first part. What a kind of task cannot use is left out, with the
    reason in `ignored`.

    Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2, arXiv:1503.02531.

    Args:
        task: the task.
        labels: encoded labels of its training rows.
        params: section `train` of params.yaml.

    Attributes:
        class_weight: (C,) factors of the loss, None where classes weigh the same.
        ignored: by key of params.yaml why this task does not use it.
    """

    def __init__(self, task: Task, labels: NDArray[Any], params: Train) -> None:
        kind = catalog.KINDS[task.kind]
        self._loss: Callable[..., Tensor] = catalog.load(kind.loss)
        self._divergence: Callable[[Tensor, Tensor, float], Tensor] = catalog.load(kind.divergence)
        self._weight, self._temperature = params.distil_weight, params.distil_temperature
        self._options: dict[str, Any] = {}
        self.class_weight: Tensor | None = None
        self.ignored: dict[str, str] = {}
        if params.label_smoothing and kind.unsmoothed:
            self.ignored["label_smoothing"] = kind.unsmoothed
        elif params.label_smoothing:
            self._options["smoothing"] = params.label_smoothing
        if params.class_weights == "balanced" and kind.num_classes is None:
            self.ignored["class_weights"] = "a number has no classes"
        elif params.class_weights == "balanced":
            weights = balanced_weights(labels, num_classes=len(task.classes), is_per_word=task.per_word)
            self.class_weight = torch.from_numpy(weights)

    def __call__(self, logits: Tensor, labels: Tensor, teacher: Tensor | None = None) -> Tensor:
        """Returns the loss of each row, (N,).

        Shapes: logits (N, C) in standard units, labels as `Task.encode` gives them (regression: standardised),
        teacher (N, C): the teacher's logits for these rows in the units of `logits`.
        """
        options = dict(self._options)
        if self.class_weight is not None:
            options["class_weight"] = self.class_weight.to(logits.device)
        hard = self._loss(logits, labels, **options)
        if teacher is None:
            return hard
        soft = self._divergence(logits, teacher, self._temperature)
        return (1.0 - self._weight) * hard + self._weight * soft


def balanced_weights(labels: NDArray[Any], *, num_classes: int, is_per_word: bool = False) -> NDArray[np.float32]:
    """Returns the factor of each class, (C,): inverse to how often it occurs.

    One class a row, labels (N,): N / (K n_c), K classes that occur; their mean over training rows is 1 (King and
    Zeng 2001, as scikit-learn's `balanced`). Several, labels (N, C): the factor of a set class, unset rows for each
    set one. A class that never occurs, or always, counts 1. One class a word, labels (N, W): as one a row, over words.
    """
    if is_per_word:
        labels = labels[labels >= 0]
    if labels.ndim == 1:
        counts = np.bincount(labels, minlength=num_classes)
        occurs = counts > 0
        weights = len(labels) / (occurs.sum() * np.maximum(counts, 1))
    else:
        counts = labels.sum(axis=0)
        occurs = (counts > 0) & (counts < len(labels))
        weights = (len(labels) - counts) / np.maximum(counts, 1)
    return np.where(occurs, weights, 1.0).astype(np.float32)
