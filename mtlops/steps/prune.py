"""prune: a trained model in, the same with narrower adapters or trained layers out, with what that costs."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mtlops import catalog
from mtlops.catalog import suggest
from mtlops.data.prepared import read_split
from mtlops.decoding import decode
from mtlops.errors import DataError, UsageError
from mtlops.files import atomic_folder, read_json
from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.predictor import Predictor
from mtlops.model.pruning import importance, width
from mtlops.model.pruning import prune as prune_units
from mtlops.model.trained import save_model, save_task
from mtlops.params import Params
from mtlops.report import write_report
from mtlops.steps.shared_layers import prune_layers
from mtlops.tasks import Task

SCHEMA_VERSION = 1

logger = logging.getLogger(__name__)

_ROWS = 1024


@dataclass(frozen=True)
class TaskCost:
    """What pruning did to one task.

    Attributes:
        units: width of its bottlenecks before and after; of trained layers, units of the feed-forward blocks of all.
        parameters: of adapter and head, before and after; of trained layers, those of all.
        primary: the metric that follows.
        valid: that metric on validation rows, before and after.
        change: after minus before.
    """

    units: tuple[int, int]
    parameters: tuple[int, int]
    primary: str
    valid: tuple[float, float]
    change: float


@dataclass(frozen=True)
class Pruned:
    """What the step made.

    Attributes:
        path: folder of the pruned model.
        keep: share of the units that was kept.
        tasks: what it cost each task.
    """

    path: str
    keep: float
    tasks: Mapping[str, TaskCost]


def prune(
    params: Params,
    *,
    keep: float = 0.5,
    prepared: Path = Path("data/prepared"),
    encoder: Path = Path("data/encoder"),
    trained: Path = Path("models/trained"),
    out: Path = Path("models/trained"),
    cache: Path = Path("data/cache"),
    report: Path = Path("reports/pruning.json"),
) -> Pruned:
    """Keeps the most important share `keep` of the units of every adapter of every task, and writes the model folder.

    Where tasks train layers of the trunk together, those lose attention heads and feed-forward units instead, all
    tasks at once (`model.trunk_pruning`): zeros in the files, gone in the exported graph.

    Importance is measured on training rows (`model.pruning.importance`), the cost on validation rows; nothing is
    trained again. Tasks of the model that `params` does not name keep their files to the bit; where tasks then differ
    in width, the graph pads the narrower ones with units that add nothing.

    Raises:
        UsageError: `keep` is not in (0, 1], or the model's adapters have no units, or a task is not in the model.
        ArtefactError: an input is missing or damaged.
        DataError: a task has no training or validation rows.
        PlatformError: something cannot be written.
    """
    if not 0.0 < keep <= 1.0:
        raise UsageError(f"--keep {keep}: must be above 0 and at most 1: the share of units that stays.")
    predictor = Predictor(trained, encoder, cache=cache)
    model = predictor.model
    _check(params, predictor)
    if model.model.shares_weights:
        return _prune_layers(params, predictor, keep=keep, prepared=prepared, trained=trained, out=out, report=report)
    pruned = {task.name: _pruned(task, prepared, predictor, keep=keep) for task in params.tasks()}
    tensors = {**model.tensors, **pruned}
    costs = {task.name: _cost(task, prepared, predictor, pruned[task.name]) for task in params.tasks()}
    with atomic_folder(out) as folder:
        shutil.copytree(trained, folder, dirs_exist_ok=True)
        for task in params.tasks():
            facts = read_json(trained / "tasks" / task.name / "task.json", made_by="mtlops train")
            before, after = costs[task.name].units
            facts |= {"parameters": costs[task.name].parameters[1], "pruned": {"from_units": before, "to_units": after}}
            save_task(folder, task, pruned[task.name], facts=facts)
        save_model(
            folder,
            encoder=model.encoder,
            model=model.model.model_copy(update={"bottleneck": max(map(width, tensors.values()))}),
            max_tokens=model.max_tokens,
            tasks=model.tasks,
        )
    content = {"schema_version": SCHEMA_VERSION, "keep": keep, "pruned": {n: asdict(c) for n, c in costs.items()}}
    write_report(report, content)
    return Pruned(path=str(out), keep=keep, tasks=costs)


def _prune_layers(
    params: Params, predictor: Predictor, *, keep: float, prepared: Path, trained: Path, out: Path, report: Path
) -> Pruned:
    """The same for layers that the tasks trained together."""
    model, found = predictor.model, prune_layers(params, predictor, prepared=prepared, keep=keep)
    costs = {
        task.name: TaskCost(
            found.total("units"), found.total("parameters"), task.primary, found.valid[task.name],
            round(found.valid[task.name][1] - found.valid[task.name][0], 6),
        )
        for task in model.tasks
    }  # fmt: skip
    with atomic_folder(out) as folder:
        shutil.copytree(trained, folder, dirs_exist_ok=True)
        save_model(
            folder, encoder=model.encoder, model=model.model, max_tokens=model.max_tokens, tasks=model.tasks,
            shared=found.shared,
        )  # fmt: skip
    logger.info("heads=%d->%d units=%d->%d parameters=%d->%d", *found.total("heads"), *found.total("units"),
                *found.total("parameters"))  # fmt: skip
    content = {
        "schema_version": SCHEMA_VERSION, "keep": keep, "pruned": {n: asdict(c) for n, c in costs.items()},
        "layers": found.layers,
    }  # fmt: skip
    write_report(report, content)
    return Pruned(path=str(out), keep=keep, tasks=costs)


def _check(params: Params, predictor: Predictor) -> None:
    model = predictor.model
    names = [task.name for task in model.tasks]
    for task in params.tasks():
        if task not in model.tasks:
            raise UsageError(
                f"the trained model has no task {task.name!r} like the one in params.yaml. "
                f"{suggest(task.name, names)} Name the tasks to prune with --tasks, or train again."
            )
    if model.model.shares_weights:
        return
    if model.model.sharing != "adapters":
        raise UsageError(
            f"model.sharing {model.model.sharing!r} without tuned layers: this model trained heads alone, which have "
            f"nothing to remove."
        )
    if not width(model.tensors[names[0]]):
        other = " Use model.fusion_keep." if model.model.adapter == "fusion" else ""
        raise UsageError(f"model.adapter {model.model.adapter!r} has no bottleneck units to remove.{other}")


def _pruned(task: Task, prepared: Path, predictor: Predictor, *, keep: float) -> Tensors:
    table = read_split(prepared, task.name, "train")
    if not table.num_rows:
        raise DataError(f"{prepared}: task {task.name}: no training rows to measure importance on.")
    picked = np.unique(np.linspace(0, table.num_rows - 1, min(_ROWS, table.num_rows)).round().astype(int))
    table = table.take(picked)
    row_ids, tensors, texts = table["row_id"].to_pylist(), predictor.model.tensors[task.name], table["text"].to_pylist()
    predictor.backbone.cache.fill(row_ids, texts)
    labels = task.encode(table["label"].to_pylist())
    words = predictor.backbone.tokenizer.word_tokens(texts) if task.per_word else None
    scores = importance(task, tensors, predictor.backbone, row_ids=row_ids, labels=labels, words=words)
    return prune_units(tensors, scores, keep=keep)


def _cost(task: Task, prepared: Path, predictor: Predictor, pruned: Tensors) -> TaskCost:
    table = read_split(prepared, task.name, "valid")
    if not table.num_rows:
        raise DataError(f"{prepared}: task {task.name}: no validation rows to measure the cost on.")
    row_ids, labels, texts = table["row_id"].to_pylist(), task.encode(table["label"].to_pylist()), table["text"]
    predictor.backbone.cache.fill(row_ids, texts.to_pylist())
    words = predictor.backbone.tokenizer.word_tokens(texts.to_pylist()) if task.per_word else None
    metrics, both = catalog.load(catalog.KINDS[task.kind].metrics), (predictor.model.tensors[task.name], pruned)
    before, after = (
        round(metrics(task, labels, decode(task, predictor.backbone.logits(row_ids, t, words=words)))[task.primary], 6)
        for t in both
    )
    units = (width(both[0]), width(both[1]))
    parameters = (_size(both[0]), _size(both[1]))
    cost = TaskCost(units, parameters, task.primary, (before, after), round(after - before, 6))
    logger.info(
        "task=%s units=%d->%d parameters=%d->%d valid_%s=%.4f->%.4f change=%+.4f",
        task.name, *units, *parameters, task.primary, before, after, cost.change,
    )  # fmt: skip
    return cost


def _size(tensors: Tensors) -> int:
    return sum(tensor.numel() for tensor in tensors.values())
