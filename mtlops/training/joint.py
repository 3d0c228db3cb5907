"""Training of weights that several tasks share: rounds of one batch a task, one optimiser for the shared part."""

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mtlops import catalog
from mtlops.errors import PreemptedError
from mtlops.model import multitask
from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.predictor import Backbone
from mtlops.params import Train
from mtlops.training.adamw import AdamW, Setting
from mtlops.training.balancing import Balancer
from mtlops.training.batches import Rows, batches_per_task, plan_rounds
from mtlops.training.checkpoint import Checkpoint, Position, Resumable
from mtlops.training.learner import Learner
from mtlops.training.loop import Clock, Speed, lengths, preempted
from mtlops.training.preemption import Preemption
from mtlops.training.schedules import frozen_names, rate, rates_by_layer

logger = logging.getLogger(__name__)

_SHARED = "*"
"""The shared part's name in a checkpoint; no task can have it."""


@dataclass
class JointProgress:
    """What the shared part has done so far; plain JSON values.

    `epochs` holds for each epoch the weighted mean of the tasks' primary metrics and the weights of their losses.
    """

    steps: int = 0
    best_epoch: int = 0
    best_value: float = float("-inf")
    stopped: bool = False
    epochs: list[dict[str, Any]] = field(default_factory=list)


class Joint:
    """What tasks train together, with its optimiser, balancer and early stopping.

    Args:
        backbone: the encoder, with a way of sharing above it.
        learners: the tasks; their own tensors are heads.
        train: section `train` of params.yaml.
        weights: of the tasks in the mean that early stopping looks at.

    Raises:
        UsageError: the balancer needs weights that all tasks share, and there are none.
    """

    def __init__(
        self, backbone: Backbone, learners: Mapping[str, Learner], *, train: Train, weights: Mapping[str, float]
    ) -> None:
        self.params, self.weights, self.sharing = train, dict(weights), backbone.sharing
        start = {name: tensor.to(backbone.device) for name, tensor in self.sharing.start().items()}
        self.tensors = {name: tensor.requires_grad_() for name, tensor in start.items()}
        self.best, self.before = self._copy(), self._remembered()
        self.progress = JointProgress()
        self.balancer: Balancer = catalog.load(catalog.BALANCERS[train.balancing].code)(
            [learner.task for learner in learners.values()], common=self.sharing.common(self.tensors), params=train
        )
        self.optimizer = AdamW(self.tensors, self._settings())
        self._schedule = catalog.load(catalog.SCHEDULES[train.schedule].code)
        num_rows = {name: len(learner.train.row_ids) for name, learner in learners.items()}
        batches = batches_per_task(num_rows, train.batch_size, train.sampling_temperature)
        self._total_steps = train.epochs * max(batches.values())

    def step(self) -> None:
        """Takes one step on the gradients of a round, with the penalty of the way of sharing."""
        self.balancer.finish_round(self.tensors)
        penalty = self.sharing.penalty(self.tensors, self.before)
        if penalty is not None:
            penalty.backward()
        share = rate(
            self.progress.steps, total=self._total_steps, warmup_share=self.params.warmup_share, schedule=self._schedule
        )
        self.optimizer.step(share=share, frozen=self._frozen(), clip_norm=self.params.clip_norm)
        self.progress.steps += 1

    def finish_epoch(self, epoch: int, values: Mapping[str, float], losses: Mapping[str, float]) -> bool:
        """Records an epoch from the tasks' primary metrics and training losses; returns whether it is the best yet."""
        progress = self.progress
        total = sum(self.weights[task] for task in values)
        value = sum(self.weights[task] * found for task, found in values.items()) / total
        loss_weights = {task: round(self.balancer.weight(task), 6) for task in values}
        progress.epochs.append({"epoch": epoch, "mean_primary": value, "loss_weights": loss_weights})
        self.balancer.finish_epoch(losses)
        self.before = self._remembered()
        if value > progress.best_value:
            progress.best_value, progress.best_epoch, self.best = value, epoch, self._copy()
        elif epoch - progress.best_epoch >= self.params.patience:
            progress.stopped = True
        return progress.best_epoch == epoch

    def report(self) -> dict[str, Any]:
        """Returns the part of the training report on what is shared."""
        progress = self.progress
        return {
            "scheme": self.sharing.params.sharing,
            "parameters": sum(tensor.numel() for tensor in self.tensors.values()),
            "layers": [self.sharing.first, len(self.sharing.trunk.layers)],
            "depths": self.sharing.ends,
            "balancing": self.params.balancing,
            "best_epoch": progress.best_epoch,
            "epochs": progress.epochs,
        }

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Returns everything that a resume needs: tensors by name, and plain values."""
        balancer, balancer_values = self.balancer.state()
        parts = {"now": self.tensors, "best": self.best, "before": self.before, "balancer": balancer}
        tensors = {f"{part}/{name}": t.detach() for part, named in parts.items() for name, t in named.items()}
        return tensors | self.optimizer.state(), {"progress": vars(self.progress), "balancer": balancer_values}

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any]) -> None:
        """Goes back to what `state` returned."""
        self.progress = JointProgress(**values["progress"])
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(tensors[f"now/{name}"])
                self.best[name].copy_(tensors[f"best/{name}"])
            for name, tensor in self.before.items():
                tensor.copy_(tensors[f"before/{name}"])
        self.optimizer.restore(tensors)
        mine = {name.removeprefix("balancer/"): t for name, t in tensors.items() if name.startswith("balancer/")}
        self.balancer.restore(mine, values["balancer"])

    def _settings(self) -> dict[str, Setting]:
        """How each tensor learns: by its layer, with weight decay if it is a matrix of the trunk."""
        plain = {name: _in_trunk(name) for name in self.tensors}
        factors = rates_by_layer(plain.values(), self.params.layer_decay)
        settings = {}
        for name, tensor in self.tensors.items():
            is_stitch = name.startswith("stitch.")
            peak = self.params.stitch_learning_rate if is_stitch else self.params.trunk_learning_rate
            is_decayed = tensor.ndim > 1 and not is_stitch
            settings[name] = Setting(peak * factors[plain[name]], self.params.weight_decay if is_decayed else 0.0)
        return settings

    def _frozen(self) -> set[str]:
        if self.params.unfreeze == "none":
            return set()
        frozen = frozen_names(map(_in_trunk, self.tensors), epoch=len(self.progress.epochs) + 1)
        return {name for name in self.tensors if _in_trunk(name) in frozen}

    def _remembered(self) -> Tensors:
        return self._copy() if self.sharing.remembers else {}

    def _copy(self) -> Tensors:
        return {name: tensor.detach().clone() for name, tensor in self.tensors.items()}


def fit_together(
    learners: Mapping[str, Learner], joint: Joint, backbone: Backbone, *, train: Train, checkpoint: Checkpoint
) -> Speed:
    """Trains all learners and what they share until the mean of their metrics no longer rises; returns the speed.

    The best epoch is one for all: everything goes back to it together. Where nothing is shared, each task has its
    own, as in `loop.fit`. Every row must be in the backbone. Killed and called again with the same checkpoint, it ends
    with the same bytes as one uninterrupted call.

    Raises:
        UsageError: a loss is not finite.
        PlatformError: a checkpoint cannot be written.
        PreemptedError: SIGTERM came; the checkpoint holds everything up to now.
    """
    with Preemption() as preemption:
        return _fit(learners, joint, backbone, train, checkpoint, preemption)


def _fit(
    learners: Mapping[str, Learner], joint: Joint, backbone: Backbone, /, train: Train, checkpoint: Checkpoint,
    preemption: Preemption,
) -> Speed:  # fmt: skip
    saved: dict[str, Resumable] = {**learners, _SHARED: joint}
    position = checkpoint.restore(saved)
    clock = Clock(learners, train)
    for epoch in range(position.epoch, train.epochs + 1):
        active = {name: learner for name, learner in learners.items() if not learner.progress.stopped}
        if joint.progress.stopped or not active:
            break
        rounds = plan_rounds(
            lengths(active, backbone), epoch=epoch, seed=train.seed, batch_size=train.batch_size,
            temperature=train.sampling_temperature,
        )  # fmt: skip
        first = position.step if epoch == position.epoch else 0
        for number, rows in enumerate(rounds[first:], start=first + 1):
            _take(rows, active, joint, backbone)
            clock.tick(rows, learners, epoch=epoch)
            if clock.checkpoint_is_due() or preemption.is_asked:
                checkpoint.save(saved, Position(epoch, number))
            if preemption.is_asked:
                raise PreemptedError(preempted(epoch, number))
        _finish_epoch(active, joint, backbone, epoch=epoch)
        if clock.checkpoint_is_due():
            checkpoint.save(saved, Position(epoch + 1, 0))
    return Speed(clock.rows, clock.seconds())


def _take(rows: Mapping[str, Rows], learners: Mapping[str, Learner], joint: Joint, backbone: Backbone) -> None:
    """One round: a pass for each task's rows, then a step of the heads and of what is shared."""
    tasks = sorted(rows)
    for task in tasks:
        joint.balancer.backward(task, _loss(rows[task], learners[task], joint, backbone), joint.tensors)
    for task in tasks:
        learners[task].step()
    joint.step()


def _loss(rows: Rows, learner: Learner, joint: Joint, backbone: Backbone) -> Tensor:
    sharing, head = backbone.sharing, multitask.stack([learner.tensors])
    state, mask_BS = backbone.batch([learner.train.row_ids[i] for i in rows])
    x_BSH = sharing.embed(state, mask_BS, joint.tensors)
    pooled_BH = sharing.vector(x_BSH, mask_BS, joint.tensors, learner.task.name)
    dropped = learner.dropout(len(rows), sharing.hidden, sharing.params.head_dropout).to(backbone.device)
    return learner.loss(multitask.logits(pooled_BH * dropped, head), rows)


def _finish_epoch(learners: Mapping[str, Learner], joint: Joint, backbone: Backbone, *, epoch: int) -> None:
    """Scores the validation rows of all tasks, and keeps everything as it is now if it is the best so far."""
    for learner in learners.values():
        own = learner.in_label_units(learner.tensors)
        logits = backbone.shared_logits(learner.valid.row_ids, own, shared=joint.tensors, task=learner.task.name)
        learner.record(epoch, logits)
    last = {name: learner.progress.epochs[-1] for name, learner in learners.items()}
    values = {name: last[name][learner.primary] for name, learner in learners.items()}
    if not joint.tensors:
        for name, learner in learners.items():
            learner.judge(epoch, values[name])
    elif joint.finish_epoch(epoch, values, {name: row["train_loss"] for name, row in last.items()}):
        for name, learner in learners.items():
            learner.keep(epoch, values[name])
    for name, learner in learners.items():
        logger.info(
            "epoch=%d task=%s train_loss=%.4f valid_%s=%.4f best_epoch=%d",
            epoch, name, last[name]["train_loss"], learner.primary, values[name], learner.progress.best_epoch,
        )  # fmt: skip


def _in_trunk(name: str) -> str:
    """The name of the trunk's tensor that a column's tensor is a copy of; any other name as it is."""
    return re.sub(r"^columns\.[^.]+\.", "", name)
