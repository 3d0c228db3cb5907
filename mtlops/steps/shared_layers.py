"""Pruning of layers that tasks train together: all tasks at once, with what it costs each of them."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from mtlops import catalog
from mtlops.data.prepared import read_split
from mtlops.decoding import decode
from mtlops.errors import DataError, UsageError
from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.predictor import Predictor
from mtlops.model.trunk_pruning import importance, prune, sizes, together
from mtlops.params import Params
from mtlops.tasks import Task

logger = logging.getLogger(__name__)

_ROWS = 256


@dataclass(frozen=True)
class PrunedLayers:
    """What pruning made of the trained layers.

    Attributes:
        shared: what the tasks trained together, the removed parts zero.
        layers: by the start of the names of a layer's tensors, `heads`, `units` and `parameters` before and after.
        valid: by task, its primary metric on validation rows before and after.
    """

    shared: Tensors
    layers: Mapping[str, Mapping[str, tuple[int, int]]]
    valid: Mapping[str, tuple[float, float]]

    def total(self, what: str) -> tuple[int, int]:
        """Returns `heads`, `units` or `parameters` of all layers, before and after."""
        before, after = (sum(layer[what][side] for layer in self.layers.values()) for side in (0, 1))
        return before, after


def prune_layers(params: Params, predictor: Predictor, *, prepared: Path, keep: float) -> PrunedLayers:
    """Returns the model's trained layers with the most important share `keep` of their heads and units.

    Importance is measured on at most 256 training rows of each task, evenly spread, and added up; the cost on
    validation rows.

    Raises:
        UsageError: `params` leaves out tasks of the model, which share these layers.
        DataError: a task has no training or validation rows.
    """
    model = predictor.model
    if left_out := [task.name for task in model.tasks if task.name not in params.suite.tasks]:
        raise UsageError(
            f"task {left_out[0]!r} shares the layers that would be pruned (model.sharing {model.model.sharing!r}). "
            f"Prune all tasks together, without --tasks."
        )
    shared = model.shared
    scores = [_scores(task, predictor, prepared=prepared) for task in model.tasks]
    pruned = prune(shared, together(scores), keep=keep)
    num_heads = predictor.backbone.cache.trunk.config.num_attention_heads
    before, after = (sizes(tensors, num_heads=num_heads) for tensors in (shared, pruned))
    layers = {name: {what: (before[name][what], after[name][what]) for what in before[name]} for name in before}
    valid = {task.name: _cost(task, predictor, (shared, pruned), prepared=prepared) for task in model.tasks}
    return PrunedLayers(pruned, layers, valid)


def _scores(task: Task, predictor: Predictor, *, prepared: Path) -> Any:
    table = _rows(task, "train", prepared=prepared)
    picked = np.unique(np.linspace(0, table.num_rows - 1, min(_ROWS, table.num_rows)).round().astype(int))
    row_ids, labels = _filled(task, table.take(picked), predictor)
    model = predictor.model
    return importance(
        task, model.tensors[task.name], predictor.backbone, shared=model.shared, row_ids=row_ids, labels=labels
    )


def _cost(
    task: Task, predictor: Predictor, both: tuple[Mapping[str, Tensor], Mapping[str, Tensor]], *, prepared: Path
) -> tuple[float, float]:
    row_ids, labels = _filled(task, _rows(task, "valid", prepared=prepared), predictor)
    metrics, tensors = catalog.load(catalog.KINDS[task.kind].metrics), predictor.model.tensors[task.name]
    before, after = (
        predictor.backbone.shared_logits(row_ids, tensors, shared=shared, task=task.name) for shared in both
    )
    value = [round(float(metrics(task, labels, decode(task, logits))[task.primary]), 6) for logits in (before, after)]
    logger.info("task=%s valid_%s=%.4f->%.4f change=%+.4f", task.name, task.primary, *value, value[1] - value[0])
    return value[0], value[1]


def _filled(task: Task, table: pa.Table, predictor: Predictor) -> tuple[list[str], Any]:
    row_ids = table["row_id"].to_pylist()
    predictor.backbone.fill(row_ids, table["text"].to_pylist())
    return row_ids, task.encode(table["label"].to_pylist())


def _rows(task: Task, split: str, *, prepared: Path) -> pa.Table:
    table = read_split(prepared, task.name, split)
    if not table.num_rows:
        raise DataError(f"{prepared}: task {task.name}: no {split} rows to measure on.")
    return table
