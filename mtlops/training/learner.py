"""One task in training: its tensors, optimiser, schedule, early stopping, and how all of that is saved."""

from collections.abc import Callable, Collection
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
from mtlops.training.batches import task_seed


@dataclass
class Rows:
    """Labelled rows of one split of one task.

    Attributes:
        row_ids: N names of rows in the trunk cache.
        labels: (N,) or (N, C) as `Task.encode` returns them.
    """

    row_ids: list[str]
    labels: NDArray[Any]


@dataclass
class Progress:
    """What a learner has done so far; plain JSON values."""

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
        device: where tensors live.
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
        device: torch.device,
    ) -> None:
        self.task, self.train, self.valid = task, train, valid
        self.params, self.learning_rate = params, learning_rate
        self.tensors = {name: tensor.to(device).requires_grad_() for name, tensor in tensors.items()}
        self.best = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.progress = Progress()
        self.primary = catalog.KINDS[task.kind].primary
        self.offset, self.scale = self._standard()
        self._loss: Callable[[Tensor, Tensor], Tensor] = catalog.load(catalog.KINDS[task.kind].loss)
        self._metrics = catalog.load(catalog.KINDS[task.kind].metrics)
        is_decayed = {n: t.ndim > 1 and n.rpartition(".")[2] not in undecayed for n, t in self.tensors.items()}
        decayed = [t for n, t in self.tensors.items() if is_decayed[n]]
        plain = [t for n, t in self.tensors.items() if not is_decayed[n]]
        groups = [{"params": decayed, "weight_decay": params.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self._optimizer = torch.optim.AdamW(groups, lr=learning_rate)
        self._total_steps = params.epochs * -(-len(train.row_ids) // params.batch_size)

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
        per_row = self._loss(logits, labels)
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
        """Takes one optimiser step with clipped gradients at the scheduled rate.

        A tensor that the pass left out gets a gradient of zero, so that its moments decay on every path alike.
        """
        for tensor in self.tensors.values():
            if tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
        torch.nn.utils.clip_grad_norm_(self.tensors.values(), self.params.clip_norm)
        for group in self._optimizer.param_groups:
            group["lr"] = self.learning_rate * self._rate()
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        self.progress.steps += 1

    def finish_epoch(self, epoch: int, logits: NDArray[np.float32]) -> None:
        """Records an epoch from validation logits (N, C) in label units; keeps the best tensors; may stop the task."""
        progress = self.progress
        value = self.primary_value(logits)
        train_loss = progress.loss_sum / max(progress.loss_rows, 1)
        progress.epochs.append({"epoch": epoch, "train_loss": train_loss, self.primary: value})
        progress.loss_sum, progress.loss_rows = 0.0, 0
        if value > progress.best_value:
            progress.best_value, progress.best_epoch = value, epoch
            self.best = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        elif epoch - progress.best_epoch >= self.params.patience:
            progress.stopped = True

    def primary_value(self, logits: NDArray[np.float32]) -> float:
        """Returns the primary metric on the validation rows, from logits (N, C) in label units."""
        value: float = self._metrics(self.task, self.valid.labels, decode(self.task, logits))[self.primary]
        return value

    def in_label_units(self, tensors: Tensors) -> Tensors:
        """Returns tensors whose head gives label units instead of standard units."""
        scaled = {name: tensor.detach().clone() for name, tensor in tensors.items()}
        scaled["head.weight"] *= self.scale
        scaled["head.bias"] = scaled["head.bias"] * self.scale + self.offset
        return scaled

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns everything that a resume needs: tensors by name, and plain values."""
        tensors = {f"now/{n}": t.detach() for n, t in self.tensors.items()}
        tensors |= {f"best/{n}": t for n, t in self.best.items()}
        for name, tensor in self.tensors.items():
            moments = self._optimizer.state.get(tensor, {})
            tensors |= {f"{key}/{name}": moments[key] for key in ("exp_avg", "exp_avg_sq") if key in moments}
        return tensors, dict(vars(self.progress))

    def restore(self, tensors: dict[str, Tensor], progress: dict[str, Any]) -> None:
        """Goes back to what `state` returned."""
        self.progress = Progress(**progress)
        with torch.no_grad():
            for name, tensor in self.tensors.items():
                tensor.copy_(tensors[f"now/{name}"])
                self.best[name].copy_(tensors[f"best/{name}"])
                if self.progress.steps:
                    self._optimizer.state[tensor] = {
                        "step": torch.tensor(float(self.progress.steps)),
                        **{k: tensors[f"{k}/{name}"].to(tensor.device).clone() for k in ("exp_avg", "exp_avg_sq")},
                    }

    def _standardised(self, labels: NDArray[Any]) -> NDArray[Any]:
        return (labels - self.offset) / self.scale if self._is_regression else labels

    @property
    def _is_regression(self) -> bool:
        return self.task.kind == "regression"

    def _standard(self) -> tuple[float, float]:
        if not self._is_regression:
            return 0.0, 1.0
        return float(self.train.labels.mean()), float(self.train.labels.std()) or 1.0

    def _rate(self) -> float:
        """Linear warm-up to 1, then linear decay to 0 at the last step."""
        warmup = max(1, round(self._total_steps * self.params.warmup_share))
        done = self.progress.steps
        if done < warmup:
            return (done + 1) / warmup
        return max(0.0, (self._total_steps - done) / max(1, self._total_steps - warmup))
