"""One task in training: its tensors, optimiser, schedule, early stopping, and how all of that is saved."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlops import catalog
from mtlops.decoding import decode
from mtlops.errors import UsageError
from mtlops.model.adapters.anatomy import Tensors
from mtlops.params import Train
from mtlops.tasks import Task
from mtlops.training.adamw import AdamW, Setting
from mtlops.training.batches import task_seed
from mtlops.training.objective import Objective
from mtlops.training.schedules import frozen_names, rate, rates_by_layer, unlayered


@dataclass
class Rows:
    """Labelled rows of one split of one task.

    Attributes:
        row_ids: N names of rows in the trunk cache.
        labels: (N,) or (N, C) as `Task.encode` returns them; of words (N, W), -1 where the model sees none.
        teacher: (N, C) a teacher's logits in label units; None where there is none.
        words: (N, W) tokens at which words are judged, as `Tokenizer.word_tokens` returns them; None for a task with
            one label a text.
    """

    row_ids: list[str]
    labels: NDArray[Any]
    teacher: NDArray[np.float32] | None = None
    words: NDArray[np.int64] | None = None


@dataclass
class Progress:
    """What a learner has done so far; plain JSON values. `loss_sum` and `loss_rows` are of the running epoch."""

    steps: int = 0
    loss_sum: float = 0.0
    loss_rows: int = 0
    best_epoch: int = 0
    best_value: float = float("-inf")
    stopped: bool = False
    epochs: list[dict[str, float]] = field(default_factory=list)


class Learner:
    """One task in training. Nothing here depends on another task.

    Args:
        task: the task.
        tensors: its fresh tensors.
        train: its training rows.
        valid: its validation rows.
        params: section `train` of params.yaml.
        learning_rate: peak rate of the optimiser.
        undecayed: last parts of the names of tensors that weight decay leaves alone, beside all vectors.
        steps_per_epoch: that the schedule shall reckon with; none means every row once.
        device: where tensors live.

    Attributes:
        objective: the loss, with what it leaves out.
        best_logits: validation logits (N, C) in label units of what is kept of the best epoch; None where they are not
            known, as after a resume.

    Raises:
        UsageError: layers shall learn differently, but tensors belong to all of them at once.
    """

    def __init__(
        self,
        task: Task,
        tensors: Tensors,
        *,
        train: Rows,
        valid: Rows,
        params: Train,
        learning_rate: float,
        undecayed: Collection[str] = (),
        steps_per_epoch: int | None = None,
        device: torch.device,
    ) -> None:
        self.task, self.train, self.valid = task, train, valid
        self.params, self.learning_rate = params, learning_rate
        self.tensors = {name: tensor.to(device).requires_grad_() for name, tensor in tensors.items()}
        self.best = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.best_logits: NDArray[np.float32] | None = None
        self._parent: Tensors = {}
        self._blend = 1.0
        self.progress = Progress()
        self.primary = task.primary
        self.offset, self.scale = self._standard()
        self.objective = Objective(task, train.labels, params)
        self._metrics = catalog.load(catalog.KINDS[task.kind].metrics)
        self._optimizer = AdamW(self.tensors, self._settings(undecayed))
        self._schedule = catalog.load(catalog.SCHEDULES[params.schedule].code)
        self._total_steps = params.epochs * (steps_per_epoch or -(-len(train.row_ids) // params.batch_size))

    def dropout(self, num_rows: int, hidden: int, share: float) -> Tensor:
        """Returns this step's dropout mask (num_rows, hidden), scaled to keep the mean; the same on every resume."""
        keep = torch.full((num_rows, hidden), 1.0 - share)
        return torch.bernoulli(keep, generator=self.generator("drop")) / (1.0 - share)

    def generator(self, purpose: str) -> torch.Generator:
        """Returns this step's source of random numbers for one purpose; the same on every resume."""
        return torch.Generator().manual_seed(task_seed(self.params.seed, self.task.name, purpose, self.progress.steps))

    def loss(self, logits: Tensor, rows: NDArray[np.int64]) -> Tensor:
        """Returns the mean loss over a batch; logits (N, C) in standard units.

        Raises:
            UsageError: the loss is not finite.
        """
        labels = torch.from_numpy(self._standardised(self.train.labels[rows])).to(logits.device)
        teacher = self._teacher(rows)
        per_row = self.objective(logits, labels, None if teacher is None else teacher.to(logits.device))
        total = float(per_row.detach().sum())
        if not np.isfinite(total):
            raise UsageError(
                f"task {self.task.name}: the loss is not finite at its step {self.progress.steps + 1} "
                f"(first row {self.train.row_ids[rows[0]]}). Lower train.learning_rate ({self.learning_rate})."
            )
        self.progress.loss_sum += total
        self.progress.loss_rows += len(rows)
        return per_row.mean()

    def step(self) -> None:
        """Takes one optimiser step with clipped gradients at the scheduled rate."""
        self._optimizer.step(share=self._rate(), frozen=self._frozen(), clip_norm=self.params.clip_norm)
        self.progress.steps += 1

    def forget_gradients(self, loss_sum: float, loss_rows: int) -> None:
        """Takes back what passes of a step added that could not be finished: gradients, and losses of the epoch."""
        self._optimizer.forget_gradients()
        self.progress.loss_sum, self.progress.loss_rows = loss_sum, loss_rows

    def finish_epoch(self, epoch: int, logits: NDArray[np.float32]) -> None:
        """Records an epoch from validation logits (N, C) in label units; keeps the best tensors; may stop the task."""
        self.judge(epoch, self.record(epoch, logits))
        if self.progress.best_epoch == epoch:
            self.best_logits = logits

    def record(self, epoch: int, logits: NDArray[np.float32]) -> float:
        """Records an epoch from validation logits (N, C) in label units; returns the primary metric."""
        progress = self.progress
        value = self.primary_value(logits)
        train_loss = progress.loss_sum / max(progress.loss_rows, 1)
        progress.epochs.append({"epoch": epoch, "train_loss": train_loss, self.primary: value})
        progress.loss_sum, progress.loss_rows = 0.0, 0
        return value

    def judge(self, epoch: int, value: float) -> None:
        """Keeps the tensors if the metric is the best so far; else the task may stop."""
        if value > self.progress.best_value:
            self.keep(epoch, value)
        elif epoch - self.progress.best_epoch >= self.params.patience:
            self.progress.stopped = True

    def keep(self, epoch: int, value: float) -> None:
        """Makes the tensors as they are now the best ones."""
        self.progress.best_value, self.progress.best_epoch = value, epoch
        self.best = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def primary_value(self, logits: NDArray[np.float32]) -> float:
        """Returns the primary metric on the validation rows, from logits (N, C) in label units."""
        value: float = self._metrics(self.task, self.valid.labels, decode(self.task, logits))[self.primary]
        return value

    def in_label_units(self, tensors: Tensors) -> Tensors:
        """Returns tensors whose head gives label units instead of standard units; all others are the same memory."""
        head = {
            "head.weight": tensors["head.weight"] * self.scale,
            "head.bias": tensors["head.bias"] * self.scale + self.offset,
        }
        return {name: tensor.detach() for name, tensor in {**tensors, **head}.items()}

    def start_from(self, tensors: Tensors, *, blend: float) -> None:
        """Begins with the tensors of an earlier training, whose head gives label units.

        `blend`: share of what is learned from now on in what is kept.

        Raises:
            UsageError: the adapter is not served in the form in which it is trained, or has another shape.
        """
        ours = {name: tensor.shape for name, tensor in self.tensors.items()}
        if ours != {name: tensor.shape for name, tensor in tensors.items()}:
            raise UsageError(
                f"params.yaml: retrain.start: task {self.task.name}: this adapter cannot go on from its served form. "
                f"Use retrain.start: fresh."
            )
        self._parent, self._blend = tensors, blend
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(tensors[name])
            self.tensors["head.weight"] /= self.scale
            self.tensors["head.bias"] -= self.offset
            self.tensors["head.bias"] /= self.scale
        self.best = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}

    def blended(self, tensors: Tensors) -> Tensors:
        """Returns what is kept of tensors in label units: those between them and the ones that training started from.

        Source: Wortsman et al. 2022, "Robust fine-tuning of zero-shot models", section 3 (arXiv:2109.01903).
        """
        if self._blend == 1.0:
            return tensors
        return {name: torch.lerp(self._parent[name].to(of), of, self._blend) for name, of in tensors.items()}

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns everything that a resume needs: tensors by name, and plain values."""
        tensors = {f"now/{n}": t.detach() for n, t in self.tensors.items()}
        tensors |= {f"best/{n}": t for n, t in self.best.items()}
        return tensors | self._optimizer.state(), dict(vars(self.progress))

    def restore(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Goes back to what `state` returned."""
        self.progress, self.best_logits = Progress(**progress), None
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(tensors[f"now/{name}"])
                self.best[name].copy_(tensors[f"best/{name}"])
        self._optimizer.restore(tensors)

    def _standardised(self, labels: NDArray[Any]) -> NDArray[Any]:
        return (labels - self.offset) / self.scale if self._is_regression else labels

    @property
    def _is_regression(self) -> bool:
        return self.task.kind == "regression"

    def _standard(self) -> tuple[float, float]:
        if not self._is_regression:
            return 0.0, 1.0
        return float(self.train.labels.mean()), float(self.train.labels.std()) or 1.0

    def _teacher(self, rows: NDArray[np.int64]) -> Tensor | None:
        if self.train.teacher is None:
            return None
        return torch.from_numpy(self._standardised(self.train.teacher[rows]))

    def _settings(self, undecayed: Collection[str]) -> dict[str, Setting]:
        """How each tensor learns: by its layer, with weight decay if it is a matrix."""
        params, names = self.params, list(self.tensors)
        if (params.layer_decay != 1.0 or params.unfreeze != "none") and (common := unlayered(names)):
            raise UsageError(
                f"params.yaml: train.layer_decay and train.unfreeze treat layers differently, but of this model "
                f"{', '.join(common)} belong to all layers at once. Leave both out, or choose another model.adapter."
            )
        factors = rates_by_layer(names, params.layer_decay)
        decayed = {n for n, t in self.tensors.items() if t.ndim > 1 and n.rpartition(".")[2] not in undecayed}
        return {
            name: Setting(self.learning_rate * factors[name], params.weight_decay if name in decayed else 0.0)
            for name in names
        }

    def _frozen(self) -> frozenset[str]:
        if self.params.unfreeze == "none":
            return frozenset()
        return frozen_names(self.tensors, epoch=len(self.progress.epochs) + 1)

    def _rate(self) -> float:
        """The share of the peak rate that this step learns at."""
        return rate(
            self.progress.steps, total=self._total_steps, warmup_share=self.params.warmup_share, schedule=self._schedule
        )
