"""The training loop: mixed-task steps over the cached trunk, one learner per task."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlops.errors import PreemptedError
from mtlops.model import multitask
from mtlops.model.adapters.anatomy import of_each_pair
from mtlops.model.predictor import Backbone
from mtlops.params import Train
from mtlops.training.batches import Rows, Skip, Step, plan_epoch, skip_each, skip_lowest, skip_none
from mtlops.training.checkpoint import Checkpoint, Position
from mtlops.training.distributed import World, running
from mtlops.training.learner import Learner
from mtlops.training.memory import Room, is_out_of_memory
from mtlops.training.preemption import Preemption

logger = logging.getLogger(__name__)

_LOG_SECONDS = 5.0

ALONE = World()


@dataclass(frozen=True)
class Speed:
    """How fast a run was; rows are (row, task) pairs trained on since the start or the last resume."""

    rows: int
    seconds: float


def fit(
    learners: Mapping[str, Learner],
    backbone: Backbone,
    *,
    train: Train,
    checkpoint: Checkpoint,
    world: World = ALONE,
    room: Room | None = None,
) -> Speed:
    """Trains all learners until each has stopped; returns the speed.

    `room` says what passes may hold, none: what `train` says; it shrinks when memory runs out. Every row must be in
    the backbone's cache. Killed and called again with the same checkpoint, it ends with
    the same bytes as one uninterrupted call.

    Raises:
        UsageError: a loss is not finite.
        PlatformError: a checkpoint cannot be written.
        PreemptedError: SIGTERM came; the checkpoint holds everything up to now.
    """
    with Preemption() as preemption:
        return _fit(learners, backbone, train, checkpoint, world, preemption, room or _asked(train))


def _fit(
    learners: Mapping[str, Learner], backbone: Backbone, /, train: Train, checkpoint: Checkpoint, world: World,
    preemption: Preemption, room: Room,
) -> Speed:  # fmt: skip
    position = checkpoint.restore(learners)
    clock, skip = Clock(learners, train), _skip(train, backbone)
    for epoch in range(position.epoch, train.epochs + 1):
        active = {name: learner for name, learner in learners.items() if not learner.progress.stopped}
        if not active:
            break
        steps = plan_epoch(
            lengths(active, backbone), epoch=epoch, seed=train.seed, batch_size=train.batch_size, skip=skip
        )
        first = position.step if epoch == position.epoch else 0
        for number, step in enumerate(steps[first:], start=first + 1):
            stop = _take(step, active, backbone, train=train, world=world, room=room, stop=preemption.is_asked)
            clock.tick(step.rows, learners, epoch=epoch)
            if (clock.checkpoint_is_due() or stop) and world.is_first:
                checkpoint.save(learners, Position(epoch, number))
            if stop:
                raise PreemptedError(preempted(epoch, number))
        for learner in active.values():
            finish_epoch(learner, backbone, epoch=epoch, world=world)
        if clock.checkpoint_is_due() and world.is_first:
            checkpoint.save(learners, Position(epoch + 1, 0))
    return Speed(clock.rows, clock.seconds())


def _skip(train: Train, backbone: Backbone) -> Skip:
    layers = backbone.pairs.adapter.layers
    if train.adapter_drop == "robust":
        return skip_lowest(layers)
    return skip_each(layers, train.adapter_drop_rate) if train.adapter_drop == "stochastic" else skip_none


def preempted(epoch: int, step: int) -> str:
    """Returns what is said when a run was asked to stop."""
    return f"SIGTERM: training stopped and saved in epoch {epoch} after step {step}. Run the same command to go on."


def finish_epoch(learner: Learner, backbone: Backbone, *, epoch: int, world: World = ALONE) -> None:
    """Scores a learner's validation rows with what would be kept, and lets it record the epoch."""
    tensors = learner.blended(backbone.pairs.adapter.bank(learner.in_label_units(learner.tensors), training=False))
    row_ids, words = learner.valid.row_ids, learner.valid.words
    own_words = None if words is None else world.share(words)
    logits = world.gather(backbone.logits(world.share(row_ids), tensors, words=own_words), total=len(row_ids))
    learner.finish_epoch(epoch, logits)
    if world.size > 1:
        learner.best_logits = None  # in other batches than those of one process, so not to the bit what it would say
    last = learner.progress.epochs[-1]
    logger.info(
        "epoch=%d task=%s train_loss=%.4f valid_%s=%.4f best_epoch=%d%s",
        epoch, learner.task.name, last["train_loss"], learner.primary, last[learner.primary],
        learner.progress.best_epoch, " stopped" if learner.progress.stopped else "",
    )  # fmt: skip


def _take(
    step: Step,
    learners: Mapping[str, Learner],
    backbone: Backbone,
    *,
    train: Train,
    world: World,
    room: Room,
    stop: bool,
) -> bool:
    """One step of several tasks, each on its own loss, over all processes; returns whether one was asked to stop."""
    if world.size == 1:
        # Each task's step at once: of many tasks, few have gradients at the same time.
        add_gradients(step, learners, backbone, train=train, room=room, when_whole=Learner.step)
        return stop
    before = {task: running(learners[task]) for task in step.rows}
    add_gradients(step, learners, backbone, train=train, world=world, room=room)
    stop = world.add_up({task: learners[task] for task in step.rows}, before, stop=stop)
    for task in sorted(step.rows):
        learners[task].step()
    return stop


def add_gradients(
    step: Step,
    learners: Mapping[str, Learner],
    backbone: Backbone,
    *,
    train: Train,
    world: World = ALONE,
    room: Room | None = None,
    when_whole: Callable[[Learner], None] | None = None,
) -> None:
    """Adds the gradients of this process's share of a step's rows to the learners' tensors, a pass at a time.

    `when_whole` is called with each learner as soon as all its rows have passed. When memory runs out, the other tasks
    begin again with passes half as large, which `room` remembers.

    Raises:
        UsageError: a loss is not finite, or not even one row fits into memory.
    """
    room = room or _asked(train)
    shares = {task: world.share(step.rows[task]) for task in sorted(step.rows)}
    before = {task: running(learners[task]) for task in shares}
    whole: set[str] = set()
    while True:
        for part in _parts(shares, learners, most=room.rows):
            one = _Pass(step, part, learners, backbone, world)
            if not _fits(one, train=train, recompute=room.recompute):
                break
            for task in [task for task, rows in part.items() if rows.stop == len(shares[task])]:
                whole.add(task)
                if when_whole is not None:
                    when_whole(learners[task])
        else:
            return
        shares = {task: rows for task, rows in shares.items() if task not in whole}
        for task in shares:
            learners[task].forget_gradients(*before[task])
        room.halve(sum(map(len, shares.values())))
        if backbone.device.type == "cuda":
            torch.cuda.empty_cache()


def _fits(one: "_Pass", *, train: Train, recompute: bool) -> bool:
    """Adds the gradients of one pass; returns whether memory was enough, and what failed is free again if not."""
    device = one.backbone.device
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=is_bfloat16(train, device)):
            loss = _loss(one, recompute=recompute)
        loss.backward()
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def is_bfloat16(train: Train, device: torch.device) -> bool:
    """Returns whether training multiplies in bfloat16 on a device, as `train.precision` says."""
    if train.precision in ("bfloat16", "float32"):
        return train.precision == "bfloat16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return train.precision == "auto" and _cpu_has_bfloat16()


@cache
def _cpu_has_bfloat16() -> bool:
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def _asked(train: Train) -> Room:
    return Room(train.rows_per_pass, recompute=train.recompute is True)


def parts(num_rows: Mapping[str, int], *, most: int) -> Iterator[dict[str, slice]]:
    """Yields which of each task's rows pass together: at most so many of all tasks, 0 for all at once."""
    part: dict[str, slice] = {}
    room = most or sum(num_rows.values())
    for task, num in num_rows.items():
        start = 0
        while start < num:
            end = min(num, start + room)
            part[task] = slice(start, end)
            room -= end - start
            start = end
            if not room:
                yield part
                part, room = {}, most
    if part:
        yield part


def _parts(shares: Mapping[str, Rows], learners: Mapping[str, Learner], *, most: int) -> Iterator[dict[str, slice]]:
    """Yields which rows pass together: first of the tasks with one answer a text, then of those that tag words."""
    for per_word in (False, True):
        alike = {task: len(rows) for task, rows in shares.items() if learners[task].task.per_word == per_word}
        yield from parts(alike, most=most)


@dataclass(frozen=True)
class _Pass:
    """One forward and backward pass: which rows of this process's share of a step go through the model."""

    step: Step
    part: Mapping[str, slice]
    learners: Mapping[str, Learner]
    backbone: Backbone
    world: World

    @property
    def tasks(self) -> list[str]:
        return list(self.part)

    def rows(self, task: str) -> Rows:
        """The positions of its rows of a task, among the task's training rows."""
        return self.world.share(self.step.rows[task])[self.part[task]]

    @property
    def is_per_word(self) -> bool:
        """Its tasks tag words; no other task passes with such ones."""
        return self.learners[self.tasks[0]].task.per_word

    def words(self) -> Tensor:
        """The tokens at which the words of its rows are judged, (P, W), on the device; -1 where there is none."""
        found = []
        for task in self.tasks:
            words = self.learners[task].train.words
            assert words is not None
            found.append(torch.from_numpy(words[self.rows(task)]))
        most = max(of_task.shape[1] for of_task in found)
        padded = [torch.nn.functional.pad(of, (0, most - of.shape[1]), value=-1) for of in found]
        return torch.cat(padded).to(self.backbone.device)

    def whole(self, task: str) -> int:
        """How many rows of a task the whole step holds, over all passes and processes."""
        return len(self.step.rows[task])

    def taken(self, masks: Mapping[str, Tensor]) -> Tensor:
        """What belongs to its rows of something that each task has for all rows of the step."""
        found = [self.world.share(masks[task])[self.part[task]] for task in self.tasks]
        return torch.cat(found).to(self.backbone.device)


def _loss(one: _Pass, *, recompute: bool) -> Tensor:
    """The sum of the tasks' losses, each a mean over the whole step's rows."""
    backbone, learners, tasks = one.backbone, one.learners, one.tasks
    rows = {task: one.rows(task) for task in tasks}
    row_ids = [learners[task].train.row_ids[i] for task in tasks for i in rows[task]]
    counts = [len(rows[task]) for task in tasks]
    adapter = backbone.pairs.adapter
    bank = multitask.stack([adapter.bank(learners[task].tensors, training=True) for task in tasks])
    bank |= _noise(one)
    penalties: list[Tensor] = []
    read = backbone.pairs.tokens if one.is_per_word else backbone.pairs
    state, mask = backbone.batch(row_ids)
    vectors = read(state, mask, bank, counts=counts, skipped=one.step.skipped, penalties=penalties, recompute=recompute)
    heads = {name: of_each_pair(bank[name], counts) for name in ("head.weight", "head.bias")}
    if one.is_per_word:
        at_words = multitask.at_words(vectors, one.words()) * _dropout(one).unsqueeze(1)
        logits = multitask.token_logits(at_words, heads).float()
    else:
        logits = multitask.logits(vectors * _dropout(one), heads).float()
    losses = []
    for task, part in zip(tasks, logits.split(counts), strict=True):
        learner = learners[task]
        own = part if learner.train.words is None else part[:, : learner.train.words.shape[1]]
        loss = learner.loss(own[..., : learner.task.num_outputs], rows[task])
        losses.append(loss * (len(part) / one.whole(task)))
    for penalty_P in penalties:
        losses += [
            part.sum() / one.whole(task) for task, part in zip(tasks, penalty_P.float().split(counts), strict=True)
        ]
    return torch.stack(losses).sum()


def _noise(one: _Pass) -> dict[str, Tensor]:
    adapter = one.backbone.pairs.adapter
    drawn = {task: adapter.noise(one.whole(task), one.learners[task].generator("noise")) for task in one.tasks}
    return {
        name: one.taken({task: of_task[name] for task, of_task in drawn.items()}) for name in drawn[one.tasks[0]]
    }  # fmt: skip


def _dropout(one: _Pass) -> Tensor:
    share, hidden = one.backbone.pairs.params.head_dropout, one.backbone.pairs.hidden
    return one.taken({task: one.learners[task].dropout(one.whole(task), hidden, share) for task in one.tasks})


def lengths(learners: Mapping[str, Learner], backbone: Backbone) -> dict[str, NDArray[np.int64]]:
    """Returns the tokens of each training row, (N,) for each task."""
    length = backbone.length
    return {t: np.array([length(row_id) for row_id in learner.train.row_ids]) for t, learner in learners.items()}


class Clock:
    """Counts rows, logs the rate and the time left, and says when a checkpoint is due."""

    def __init__(self, learners: Mapping[str, Learner], train: Train) -> None:
        self._started = self._logged = self._saved = time.monotonic()
        self._epochs, self._interval = train.epochs, train.checkpoint_seconds
        self.rows = 0

    def seconds(self) -> float:
        """Returns the time since the start."""
        return time.monotonic() - self._started

    def tick(self, rows: Mapping[str, Rows], learners: Mapping[str, Learner], *, epoch: int) -> None:
        """Counts the rows of a step, and may log."""
        self.rows += sum(map(len, rows.values()))
        now = time.monotonic()
        if now - self._logged < _LOG_SECONDS:
            return
        self._logged = now
        rate = self.rows / self.seconds()
        left = sum(self._rows_left(learner) for learner in learners.values())
        logger.info(
            "epoch=%d/%d rows_per_second=%.0f eta_seconds=%.0f %s",
            epoch, self._epochs, rate, left / rate, " ".join(_running_loss(learner) for learner in learners.values()),
        )  # fmt: skip

    def checkpoint_is_due(self) -> bool:
        """Says whether enough time has passed since it last said so."""
        now = time.monotonic()
        due = now - self._saved >= self._interval
        self._saved = now if due else self._saved
        return due

    def _rows_left(self, learner: Learner) -> int:
        if learner.progress.stopped:
            return 0
        whole_epochs = self._epochs - len(learner.progress.epochs)
        return whole_epochs * len(learner.train.row_ids) - learner.progress.loss_rows


def _running_loss(learner: Learner) -> str:
    progress = learner.progress
    return f"loss.{learner.task.name}={progress.loss_sum / max(progress.loss_rows, 1):.3f}"
