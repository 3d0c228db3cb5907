"""train: prepared splits and the encoder in, one adapter and head per task out."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mtlops.bundle import Bundle, code_digest
from mtlops.data.prepared import read_split
from mtlops.data.tokenisation import Tokenizer
from mtlops.errors import UsageError
from mtlops.evaluation import calibration
from mtlops.evaluation.calibration import Fitted
from mtlops.files import atomic_folder, sha256_file, write_json
from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.lineage import write_lineage
from mtlops.model.predictor import Backbone
from mtlops.model.sharing.anatomy import Sharing
from mtlops.model.trained import copy_task, load_model, save_model, save_task
from mtlops.params import Params
from mtlops.report import write_report
from mtlops.serving.runtime import Runtime
from mtlops.steps.updates import Update, begin_update
from mtlops.tasks import Task
from mtlops.training import craft
from mtlops.training.augmentation import augment
from mtlops.training.batches import batches_per_task, task_seed
from mtlops.training.checkpoint import Checkpoint
from mtlops.training.distillation import check_teacher, teacher_logits
from mtlops.training.distributed import World
from mtlops.training.fusion import prepare_second_stage, prune
from mtlops.training.joint import Joint, fit_together
from mtlops.training.learner import Learner, Rows
from mtlops.training.loop import Speed, fit, is_bfloat16
from mtlops.training.memory import Room, peak_bytes, plan

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What the step made.

    Attributes:
        path: folder of the trained model.
        best: best validation value of each task's primary metric.
        seconds: time in the training loop, without the pass that fills the cache.
    """

    path: str
    best: dict[str, float]
    seconds: float


def train(
    params: Params,
    *,
    prepared: Path = Path("data/prepared"),
    encoder: Path = Path("data/encoder"),
    out: Path = Path("models/trained"),
    cache: Path = Path("data/cache"),
    report: Path = Path("reports/training.json"),
    registry: str = "",
) -> Trained:
    """Trains every task of the suite, or those of `retrain.tasks`, and writes the model folder and the training report.

    The other tasks of an update are taken over from its parent, which `registry` holds when it is no folder.

    Raises:
        UsageError: params do not fit the encoder or the teacher, or a loss is not finite.
        ArtefactError: an input is missing or damaged.
        PlatformError: something cannot be written.
        PreemptedError: SIGTERM came; the same call goes on.
    """
    device = _device(params)
    world = World.join(device=device)
    if world.size > 1 and params.model.sharing != "adapters":
        raise UsageError(
            f"params.yaml: model.sharing: {params.model.sharing!r} trains in one process; {world.size} were started. "
            f"Start one, or choose 'adapters'."
        )
    device = _set_up(params, device, world)
    update, suite = None, params
    if params.retrain.tasks:
        update = begin_update(params, prepared=prepared, encoder=encoder, registry=registry, cache=cache)
        prepared = update.mixed.known
        params = _shortened(params.only(update.retrained), prepared, update)
    teacher = _teacher(params, prepared)
    run = partial(
        _run_stage, prepared=prepared, encoder=encoder, cache=cache, device=device, teacher=teacher, world=world,
        update=update,
    )  # fmt: skip
    stages = [run(_first_stage(params))]
    if _has_second_stage(params):
        stages.append(run(params, first=stages[0].learners))
    if world.is_first:
        _write(params, stages[-1], teacher, suite=suite, update=update, out=out, report=report)
        for stage in stages:
            stage.checkpoint.remove()
    world.leave()
    best = {name: learner.progress.best_value for name, learner in stages[-1].learners.items()}
    return Trained(path=str(out), best=best, seconds=round(stages[-1].speed.seconds, 1))


def _shortened(params: Params, prepared: Path, update: Update) -> Params:
    """The params of an update: tasks that go on from their parent's tensors pass the rows of a window less often, and
    in bfloat16 where that is quicker.
    """
    retrain, train = params.retrain, params.train
    if retrain.start != "warm" or None in update.lineage.retrained.values():
        return params
    rows = {task.name: read_split(prepared, task.name, "train").num_rows for task in params.tasks()}
    steps = batches_per_task(rows, train.batch_size, train.sampling_temperature)
    epochs = max(retrain.epochs, -(-retrain.fewest_steps // min(steps.values())))
    changes = {"epochs": epochs, "precision": train.precision or "auto"}
    return params.model_copy(update={"train": train.model_copy(update=changes)})


@dataclass(frozen=True)
class _Stage:
    learners: dict[str, Learner]
    backbone: Backbone
    checkpoint: Checkpoint
    speed: Speed
    joint: Joint | None = None
    room: Room | None = None


def _write(
    params: Params, stage: "_Stage", teacher: Runtime | None, *, suite: Params, update: Update | None, out: Path,
    report: Path,
) -> None:  # fmt: skip
    """Fits what is fitted on validation rows, and writes the model folder and the report."""
    learners, backbone, joint = stage.learners, stage.backbone, stage.joint
    served = {name: _served(learner, backbone) for name, learner in learners.items()}
    fused = {}
    if _has_second_stage(params):
        fused = {name: prune(learner, backbone, served[name]) for name, learner in learners.items()}
        served = {name: found.tensors for name, found in fused.items()}
    answers = {name: _answers(backbone, served[name], joint, learner) for name, learner in learners.items()}
    fitted = {
        name: _calibrate(learner, answers[name], known=None if fused else learner.best_logits)
        for name, learner in learners.items()
    }
    with atomic_folder(out) as folder:
        if update is not None:
            _take_over(update, folder)
        for name, learner in learners.items():
            facts = _facts(learner) | fitted[name].calibration.facts(learner.task)
            save_task(folder, learner.task, served[name], facts=facts)
        save_model(
            folder, encoder=backbone.facts, model=params.model,
            max_tokens=params.encoder.max_tokens, tasks=suite.tasks(), shared=joint.best if joint is not None else {},
        )  # fmt: skip
    payload = _report(learners, backbone, stage.speed) | {"craft": craft.used(params.train)}
    if stage.room is not None:
        payload["precision"] = "bfloat16" if is_bfloat16(params.train, backbone.device) else "float32"
        payload["memory"] = stage.room.facts() | {"peak_mb": round(peak_bytes(backbone.device) / 1e6, 1)}
    if joint is not None:
        payload["sharing"] = joint.report()
    if update is not None:
        payload["retrain"] = asdict(update.lineage) | {"untouched": update.untouched}
    if teacher is not None:
        payload["craft"]["teacher_bundle"] = teacher.bundle_id
    for name, learner in learners.items():
        of_task = payload["tasks"][name]
        of_task |= craft.used_by(learner, answers[name]) | {"calibration": _calibration_report(fitted[name], learner)}
        of_task |= {"fusion": fused[name].report} if name in fused else {}
    write_report(report, payload)
    write_json(report.with_name("curves.json"), _curves(learners))


def _has_second_stage(params: Params) -> bool:
    return params.model.sharing == "adapters" and params.model.adapter == "fusion"


def _served(learner: Learner, backbone: Backbone) -> Tensors:
    """A task's own tensors as they are kept: in label units, without what only training needs."""
    best = learner.in_label_units(learner.best)
    if isinstance(backbone.above, Sharing):
        return best
    return learner.blended(backbone.pairs.adapter.bank(best, training=False))


def _answers(
    backbone: Backbone, tensors: Tensors, joint: Joint | None, learner: Learner
) -> Callable[[Sequence[str]], NDArray[np.float32]]:
    """Ids of a learner's validation rows to the logits of its task as it is kept."""
    if joint is None:
        return partial(backbone.logits, tensors=tensors, words=learner.valid.words)
    return partial(backbone.shared_logits, tensors=tensors, shared=joint.best, task=learner.task.name)


def _first_stage(params: Params) -> Params:
    """The params of the first stage: a fusion starts from Pfeiffer adapters, anything else is itself."""
    adapter = "pfeiffer" if _has_second_stage(params) else params.model.adapter
    return params.model_copy(update={"model": params.model.model_copy(update={"adapter": adapter})})


def _run_stage(
    params: Params,
    *,
    prepared: Path,
    encoder: Path,
    cache: Path,
    device: str,
    teacher: Runtime | None,
    world: World,
    update: Update | None = None,
    first: Mapping[str, Learner] | None = None,
) -> _Stage:
    """Trains all tasks; `first` holds the learners of an earlier stage that this one builds on."""
    backbone = Backbone(
        encoder, cache=cache, model=params.model, max_tokens=params.encoder.max_tokens,
        tasks=list(params.suite.tasks), device=device,
    )  # fmt: skip
    _warn_about_cls(params, backbone)
    if first:
        prepare_second_stage(backbone, first)
    texts = {task: _read(task, params, backbone.tokenizer, prepared=prepared) for task in params.tasks()}
    of_window = [_read_split(task, "test", update.mixed.window) for task in texts] if update is not None else []
    _fill(backbone, [*(split for of_task in texts.values() for split in of_task.values()), *of_window], world)
    rows = partial(_rows, params=params, teacher=teacher, cache=cache)
    splits = {task: {name: rows(task, split) for name, split in of.items()} for task, of in texts.items()}
    if world.is_first:
        backbone.cache.evict(limit_bytes=params.train.cache_gb * 1e9)
    num_rows = {task.name: len(split["train"].row_ids) for task, split in splits.items()}
    steps = batches_per_task(num_rows, params.train.batch_size, params.train.sampling_temperature)
    learners = {
        task.name: _learner(task, params, split, backbone, first, steps_per_epoch=steps[task.name])
        for task, split in splits.items()
    }
    if update is not None and update.lineage.start == "warm":
        before = load_model(update.parent_model).tensors
        for name, learner in learners.items():
            learner.start_from(before[name], blend=update.lineage.blend)
    checkpoint = Checkpoint(cache, run=_identity(params, prepared, backbone, teacher))
    if isinstance(backbone.above, Sharing):
        weights = {name: spec.weight for name, spec in params.suite.tasks.items()}
        joint = Joint(backbone, learners, train=params.train, weights=weights)
        speed = fit_together(learners, joint, backbone, train=params.train, checkpoint=checkpoint)
        return _Stage(learners, backbone, checkpoint, speed, joint)
    room = plan(learners, backbone, train=params.train, max_tokens=params.encoder.max_tokens)
    speed = fit(learners, backbone, train=params.train, checkpoint=checkpoint, world=world, room=room)
    return _Stage(learners, backbone, checkpoint, speed, room=room)


def _take_over(update: Update, folder: Path) -> None:
    """Copies what is not trained: the files of the other tasks, and what is known of the update."""
    for task in update.untouched:
        copy_task(update.parent.folder, folder, task)
    write_lineage(folder, update.lineage)


def _device(params: Params) -> str:
    """The kind of device to compute on."""
    device = params.train.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("params.yaml: train.device: 'cuda', but torch sees no GPU here. Use 'auto' or 'cpu'.")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _set_up(params: Params, device: str, world: World) -> str:
    """Fixes everything that could make two runs differ; returns the very device."""
    if device == "cuda":
        torch.cuda.set_device(world.local_rank)
        device = f"cuda:{world.local_rank}" if world.size > 1 else device
    torch.set_num_threads(params.train.threads or max(1, (os.cpu_count() or 1) // world.local_size))
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    # As `use_deterministic_algorithms`, which imports PyTorch's compiler first: a second of CPU time.
    torch.set_deterministic_debug_mode("error")
    # Nothing here reads memory that was not written; filling it all the same costs 5 % of a step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    logger.info("device=%s threads=%d", device, torch.get_num_threads())
    return device


def _warn_about_cls(params: Params, backbone: Backbone) -> None:
    if params.model.pooling == "cls" and len(backbone.above.layers) == 1:
        logger.warning(
            "model.pooling: 'cls' with nothing trained below the last layer loses quality. Use 'mean', or %s.",
            "lower model.adapter_drop" if params.model.sharing == "adapters" else "raise model.tuned_layers",
        )


def _teacher(params: Params, prepared: Path) -> Runtime | None:
    """The bundle to learn from, ready to answer; None without one."""
    folder = params.train.teacher
    if folder is None:
        return None
    bundle = Bundle.open(Path(folder))
    teacher = Runtime(bundle, threads=params.train.threads)
    check_teacher(teacher, _pupils(params))
    if bundle.manifest["data"]["manifest_sha256"] != sha256_file(prepared / "manifest.json"):
        logger.warning(
            "train.teacher: bundle %s was trained on another version of the data: it may know rows that are test rows "
            "here, and what it teaches about them would flatter the student.",
            bundle.id,
        )
    return teacher


def _pupils(params: Params) -> list[Task]:
    """The tasks that learn from the teacher."""
    wanted = params.train.distil_tasks
    return [task for task in params.tasks() if wanted is None or task.name in wanted]


@dataclass(frozen=True)
class _Split:
    """Rows of one split of one task as they were read, with copies where they are augmented.

    `words`, of a task that tags words: see `learner.Rows`.
    """

    row_ids: list[str]
    texts: list[str]
    labels: NDArray[Any]
    words: NDArray[np.int64] | None = None


def _read(task: Task, params: Params, tokenizer: Tokenizer, *, prepared: Path) -> dict[str, _Split]:
    """A task's rows to train and to validate on."""
    splits = {}
    for name in ("train", "valid"):
        split = _read_split(task, name, prepared)
        if task.per_word:
            split = _with_words(task, split, tokenizer, name=name)
        elif name == "train" and params.train.augmentation.copies:
            settings, seed = params.train.augmentation, params.train.seed
            copies = augment(split.row_ids, split.texts, split.labels, settings=settings, seed=seed)
            split = _Split(copies.row_ids, copies.texts, copies.labels)
        splits[name] = split
    return splits


def _read_split(task: Task, name: str, folder: Path) -> _Split:
    table = read_split(folder, task.name, name)
    return _Split(table["row_id"].to_pylist(), table["text"].to_pylist(), task.encode(table["label"].to_pylist()))


def _with_words(task: Task, split: _Split, tokenizer: Tokenizer, *, name: str) -> _Split:
    """Rows of a task that tags words; words that the model does not see, as it cuts texts, have no label."""
    words = tokenizer.word_tokens(split.texts)
    is_word, is_seen = split.labels >= 0, words >= 0
    if unseen := int((is_word & ~is_seen).sum()):
        logger.warning(
            "task=%s split=%s words=%d cut_off=%d: they lie behind encoder.max_tokens (%d), or have no token, and are "
            "neither learned nor judged", task.name, name, int(is_word.sum()), unseen, tokenizer.max_tokens,
        )  # fmt: skip
    return _Split(split.row_ids, split.texts, np.where(is_seen, split.labels, -1), words)


def _fill(backbone: Backbone, splits: Sequence[_Split], world: World) -> None:
    """Puts all rows into the trunk cache in one go: each call would leave batches of each length half empty.

    With those of an update come the test rows of its window, which `evaluate` asks for next.
    """
    texts = {row_id: text for split in splits for row_id, text in zip(split.row_ids, split.texts, strict=True)}
    if world.size > 1:
        backbone.fill(world.share(list(texts)), world.share(list(texts.values())))
        world.wait()
        backbone.cache.refresh()
    backbone.fill(list(texts), list(texts.values()))


def _rows(task: Task, split: _Split, *, params: Params, teacher: Runtime | None, cache: Path) -> Rows:
    """Rows as a learner takes them, with the teacher's logits where it has one."""
    rows = Rows(split.row_ids, split.labels, words=split.words)
    if teacher is not None and task in _pupils(params):
        rows.teacher = teacher_logits(teacher, task.name, split.row_ids, split.texts, cache=cache)
    return rows


def _learner(
    task: Task,
    params: Params,
    splits: Mapping[str, Rows],
    backbone: Backbone,
    first: Mapping[str, Learner] | None = None,
    *,
    steps_per_epoch: int,
) -> Learner:
    generator = torch.Generator().manual_seed(task_seed(params.train.seed, task.name, "weights"))
    tensors = backbone.above.init(task, generator)
    if first:
        tensors |= {n: t.cpu() for n, t in first[task.name].best.items() if n.startswith("head.")}
    return Learner(
        task,
        tensors,
        train=splits["train"],
        valid=splits["valid"],
        params=params.train,
        learning_rate=params.learning_rate(),
        undecayed=() if isinstance(backbone.above, Sharing) else backbone.pairs.adapter.undecayed,
        steps_per_epoch=steps_per_epoch,
        device=backbone.device,
    )


def _calibrate(
    learner: Learner, answer: Callable[[Sequence[str]], NDArray[np.float32]], *, known: NDArray[np.float32] | None
) -> Fitted:
    """Fits temperature and thresholds on a learner's validation rows; `known` are their logits, if they are."""
    logits = answer(learner.valid.row_ids) if known is None else known
    fitted = calibration.fit(learner.task, logits, learner.valid.labels, thresholds=learner.params.thresholds)
    for note in fitted.notes:
        logger.info("task=%s %s", learner.task.name, note)
    return fitted


def _calibration_report(fitted: Fitted, learner: Learner) -> dict[str, Any]:
    return {
        "rows": fitted.rows,
        **fitted.calibration.facts(learner.task),
        "log_loss": fitted.log_loss,
        "notes": fitted.notes,
    }


def _identity(params: Params, prepared: Path, backbone: Backbone, teacher: Runtime | None) -> str:
    value = {
        "params": params.model_dump(mode="json", include={"suite", "encoder", "model", "train", "retrain"}),
        "data": sha256_file(prepared / "manifest.json"),
        "encoder": backbone.facts,
        "teacher": teacher and teacher.bundle_id,
        "device": backbone.device.type,
        "code": code_digest(),
    }
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _facts(learner: Learner) -> dict[str, Any]:
    return {
        "best_epoch": learner.progress.best_epoch,
        "label_offset": learner.offset,
        "label_scale": learner.scale,
        "parameters": sum(tensor.numel() for tensor in learner.tensors.values()),
    }


def _report(learners: Mapping[str, Learner], backbone: Backbone, speed: Speed) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "device": str(backbone.device),
        "seconds": round(speed.seconds, 1),
        "rows_per_second": round(speed.rows / speed.seconds, 1) if speed.rows else 0.0,
        "parameters": {
            "trunk": sum(p.numel() for p in backbone.cache.trunk.parameters()),
            "per_task": {name: _facts(learner)["parameters"] for name, learner in learners.items()},
        },
        "cache": {"rows_computed": backbone.cache.rows_computed},
        "tasks": {
            name: {
                "primary": learner.primary,
                "epochs": learner.progress.epochs,
                "best_epoch": learner.progress.best_epoch,
                "best_value": learner.progress.best_value,
            }
            for name, learner in learners.items()
        },
    }


def _curves(learners: Mapping[str, Learner]) -> list[dict[str, Any]]:
    """The curves as rows, one a task and epoch: the shape that `dvc plots` draws."""
    return [
        {
            "task": name,
            "epoch": row["epoch"],
            "train_loss": row["train_loss"],
            "metric": learner.primary,
            "valid_metric": row[learner.primary],
        }
        for name, learner in learners.items()
        for row in learner.progress.epochs
    ]
