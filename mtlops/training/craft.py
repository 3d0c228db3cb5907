"""What of the craft that is off by default a run used: the part of the training report that says so."""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.params import Train
from mtlops.training.distillation import distance
from mtlops.training.learner import Learner

_KEYS = ("schedule", "layer_decay", "unfreeze", "label_smoothing", "class_weights", "augmentation")
_WITH_TEACHER = ("teacher", "distil_weight", "distil_temperature", "distil_tasks")


def used(train: Train) -> dict[str, Any]:
    """Returns the keys of section `train` that add to plain training, with their values; empty for plain training."""
    values, defaults = train.model_dump(mode="json"), Train().model_dump(mode="json")
    found = {key: values[key] for key in _KEYS if values[key] != defaults[key]}
    return found | ({key: values[key] for key in _WITH_TEACHER} if train.teacher else {})


def used_by(learner: Learner, answers: Callable[[list[str]], NDArray[np.float32]]) -> dict[str, Any]:
    """Returns what one task made of it; `answers` gives the logits (N, C) of the task as it is kept, for row ids.

    `ignored`: keys that its kind cannot use, with the reason. `class_weights`: by class. `distillation`: how far the
    task is from its teacher on validation rows (`distillation.distance`).
    """
    found: dict[str, Any] = {}
    if learner.objective.ignored:
        found["ignored"] = {f"train.{key}": reason for key, reason in learner.objective.ignored.items()}
    if learner.objective.class_weight is not None:
        weights = map(_rounded, learner.objective.class_weight.tolist())
        found["class_weights"] = dict(zip(learner.task.classes, weights, strict=True))
    if learner.valid.teacher is not None:
        student = answers(learner.valid.row_ids)
        apart = distance(learner.task, learner.valid.labels, student=student, teacher=learner.valid.teacher)
        values = {key: _rounded(value) for key, value in apart.items()}
        found["distillation"] = {"rows": len(learner.valid.row_ids), **values}
    return found


def _rounded(value: float) -> float:
    return round(value, 6) + 0.0
