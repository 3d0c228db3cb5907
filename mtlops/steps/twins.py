"""Twins: each task trained alone, with the same budget, to see what sharing did to it.

Source: Wang et al. 2019, "Characterizing and Avoiding Negative Transfer" (arXiv:1811.09751), section 3: the negative
transfer of a task is its loss against the same learner without the other tasks.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa

from mtlops.bundle import code_digest
from mtlops.decoding import Outputs, decode
from mtlops.files import sha256_file
from mtlops.model.predictor import Predictor
from mtlops.model.trained import TrainedModel
from mtlops.params import Model, Params
from mtlops.steps.train import train
from mtlops.tasks import Task

logger = logging.getLogger(__name__)

INDEPENDENT = frozenset({"adapters"})
"""Ways of sharing (`catalog.SHARING`) that give each task all of its trainable tensors to itself."""


@dataclass(frozen=True)
class Twins:
    """The twins of a suite's tasks.

    Attributes:
        said: why there are or are no twins, for reports.
        predictors: the twin of each task, by its name; empty when none were trained.
    """

    said: str
    predictors: Mapping[Task, Predictor] = field(default_factory=dict)

    def answers(self, tests: Mapping[str, pa.Table]) -> dict[str, Outputs]:
        """Returns the twins' answers to each task's rows; `tests` have columns `text` and `row_id`."""
        return {task.name: _answers(task, twin, tests[task.name]) for task, twin in self.predictors.items()}


def shares(model: Model) -> bool:
    """Returns whether tasks share anything trainable, so that one can do another harm."""
    return model.sharing not in INDEPENDENT


def train_twins(params: Params, model: TrainedModel, *, prepared: Path, encoder: Path, cache: Path) -> Twins:
    """Returns the twins that `gates.twins` asks for; those that an earlier call trained are taken from `cache`.

    A twin is the suite of that one task, trained by the step `train` on the trunk cache of the model.

    Raises:
        As `train`.
    """
    mode = params.gates.twins
    if mode == "never":
        return Twins("not measured: gates.twins is never")
    if mode == "auto" and not shares(model.model):
        return Twins("cannot occur: nothing trainable is shared")
    if len(params.suite.tasks) == 1:
        return Twins("cannot occur: the suite has one task")
    twins = {}
    for task in params.tasks():
        alone = _alone(params, model, task)
        folder = cache / "twins" / _identity(alone, model, prepared)
        if not (folder / "trained/model.json").exists():
            logger.info("twin of task=%s: training it alone", task.name)
            train(alone, prepared=prepared, encoder=encoder, out=folder / "trained", cache=cache,
                  report=folder / "training.json")  # fmt: skip
        twins[task] = Predictor(folder / "trained", encoder, cache=cache)
    return Twins("measured: each task was also trained alone, with the same budget", twins)


def _alone(params: Params, model: TrainedModel, task: Task) -> Params:
    """The params of the one task's own suite, with the sections that the model was really trained with."""
    limit = params.encoder.model_copy(update={"max_tokens": model.max_tokens})
    return params.only([task.name]).model_copy(update={"model": model.model, "encoder": limit})


def _identity(alone: Params, model: TrainedModel, prepared: Path) -> str:
    value = {
        "params": alone.model_dump(mode="json", include={"suite", "encoder", "model", "train"}),
        "data": sha256_file(prepared / "manifest.json"),
        "encoder": model.encoder,
        "code": code_digest(),
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def _answers(task: Task, twin: Predictor, test: pa.Table) -> Outputs:
    logits = twin.logits(test["text"].to_pylist(), test["row_id"].to_pylist(), task.name)
    return decode(task, logits, twin.model.calibrations[task.name])
