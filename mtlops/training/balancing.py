"""How the losses of several tasks become one step of what they train together.

In a round every task that takes part gives one loss. A balancer either weighs the losses, or takes each task's
gradient on the shared tensors and combines those. Heads always get the gradient of their own (weighed) loss.

Shape suffixes: T tasks of the round, N values of all shared tensors together.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, minimize
from torch import Tensor

from mtlops.errors import UsageError
from mtlops.params import Train
from mtlops.tasks import Task
from mtlops.training.adamw import AdamW, Setting
from mtlops.training.batches import task_seed

Tensors = dict[str, Tensor]
Matrix = NDArray[np.float64]

_LEAST_WEIGHT = 1e-3
_SMALL = 1e-12
_NO_LENGTH = 1e-6


class Balancer:
    """The anatomy, and the sum of the losses.

    Args:
        tasks: all tasks of the run, in order.
        common: names of the shared tensors that the losses of all tasks reach, the lowest first.
        params: section `train` of params.yaml.
    """

    def __init__(self, tasks: Sequence[Task], *, common: Sequence[str], params: Train) -> None:
        self.tasks, self.params = {task.name: number for number, task in enumerate(tasks)}, params
        self.rounds = 0

    def backward(self, task: str, loss: Tensor, shared: Tensors) -> None:
        """Adds the gradient of a task's loss () to the tensors."""
        (self.weight(task) * loss).backward()

    def finish_round(self, shared: Tensors) -> None:
        """Makes `.grad` of the shared tensors what the optimiser shall step on; call it after the last `backward`."""
        self.rounds += 1

    def finish_epoch(self, losses: Mapping[str, float]) -> None:
        """Learns the mean training loss of each task in the epoch that has ended."""

    def weight(self, task: str) -> float:
        """Returns the factor of a task's loss now."""
        return 1.0

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Returns everything that a resume needs: tensors by name, and plain values."""
        return {}, {"rounds": self.rounds}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Goes back to what `state` returned."""
        self.rounds = values["rounds"]


class Equal(Balancer):
    """The plain sum of the losses."""


class _Learned(Balancer):
    """A balancer with one learned number a task, `values` (T,)."""

    def __init__(self, tasks: Sequence[Task], *, common: Sequence[str], params: Train) -> None:
        super().__init__(tasks, common=common, params=params)
        self.values = torch.full((len(tasks),), self._first(), requires_grad=True)
        self._optimizer = AdamW({"values": self.values}, {"values": Setting(params.balancing_learning_rate)})

    def _first(self) -> float:
        raise NotImplementedError

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Returns the learned numbers with their moments."""
        return {"values": self.values.detach(), **self._optimizer.state()}, super().state()[1]

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Goes back to what `state` returned."""
        super().restore(tensors, values)
        with torch.no_grad():
            self.values.copy_(tensors["values"])
        self._optimizer.restore(tensors)


class Uncertainty(_Learned):
    """sum_t L_t / sigma_t^2 + log sigma_t, half of the first part for squared errors; s_t = log sigma_t^2 is learned.

    Source: Kendall et al. 2018, "Multi-Task Learning Using Uncertainty to Weigh Losses", equations 7 and 10,
    arXiv:1705.07115; all sigma are 1 at the start.
    """

    def __init__(self, tasks: Sequence[Task], *, common: Sequence[str], params: Train) -> None:
        super().__init__(tasks, common=common, params=params)
        self._factor = {task.name: 0.5 if task.kind == "regression" else 1.0 for task in tasks}

    def backward(self, task: str, loss: Tensor, shared: Tensors) -> None:
        """Adds the gradient of the weighed loss, for the task's s too."""
        s = self.values[self.tasks[task]]
        (self._factor[task] * torch.exp(-s).to(loss) * loss + (0.5 * s).to(loss)).backward()

    def finish_round(self, shared: Tensors) -> None:
        """Steps the s of all tasks; one that was not in the round gets a gradient of zero."""
        super().finish_round(shared)
        self._optimizer.step()

    def weight(self, task: str) -> float:
        """Returns 1 / sigma^2, half of it for squared errors."""
        return self._factor[task] * float(torch.exp(-self.values.detach()[self.tasks[task]]))

    def _first(self) -> float:
        return 0.0


class DynamicWeightAverage(Balancer):
    """w_t = T softmax_t((L_t(e-1) / L_t(e-2)) / temperature), L(e) the mean training loss of epoch e; 1 in the first 2.

    Source: Liu et al. 2019, "End-to-End Multi-Task Learning with Attention", section 4.1.2 (equation 7),
    arXiv:1803.10704.
    """

    def __init__(self, tasks: Sequence[Task], *, common: Sequence[str], params: Train) -> None:
        super().__init__(tasks, common=common, params=params)
        self._losses: list[dict[str, float]] = []

    def finish_epoch(self, losses: Mapping[str, float]) -> None:
        """Keeps the losses of the last two epochs."""
        self._losses = [*self._losses, dict(losses)][-2:]

    def weight(self, task: str) -> float:
        """Returns w of the task."""
        if len(self._losses) < 2:
            return 1.0
        before, last = self._losses
        ratio = np.array([last[t] / max(before[t], _SMALL) for t in self.tasks]) / self.params.dwa_temperature
        share = np.exp(ratio - ratio.max())
        return float(len(self.tasks) * share[self.tasks[task]] / share.sum())

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Returns the losses."""
        return {}, {**super().state()[1], "losses": self._losses}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Goes back to what `state` returned."""
        super().restore(tensors, values)
        self._losses = values["losses"]


class GradNorm(_Learned):
    """Learns weights w (sum T) such that G_t = ||d w_t L_t / d W|| comes to mean(G) r_t^alpha, by sum |G_t - target_t|.

    r_t is the task's L / L(0) over its mean; W is the highest layer that all tasks go through; L(0) a task's first
    loss. After each step the weights are scaled to their sum; none falls below 0.001.

    Source: Chen et al. 2018, "GradNorm", section 3 and algorithm 1, arXiv:1711.02257.
    """

    def __init__(self, tasks: Sequence[Task], *, common: Sequence[str], params: Train) -> None:
        super().__init__(tasks, common=common, params=params)
        self._first_losses: dict[str, float] = {}
        self._round: dict[str, tuple[float, float]] = {}
        layers = {name: int(match[1]) for name in common if (match := re.search(r"layers\.(\d+)\.", name))}
        if not layers:
            raise UsageError(
                "params.yaml: train.balancing: 'gradnorm' compares gradients on a layer that all tasks train, but some "
                "task of model.depths ends below the trained layers. Raise its depth or model.tuned_layers."
            )
        self.probe = [name for name, layer in layers.items() if layer == max(layers.values())]

    def backward(self, task: str, loss: Tensor, shared: Tensors) -> None:
        """Adds the gradient of the weighed loss, and notes its size on W."""
        found = torch.autograd.grad(loss, [shared[name] for name in self.probe], retain_graph=True)
        norm = float(torch.stack([part.square().sum() for part in found]).sum().sqrt())
        value = float(loss.detach())
        self._first_losses.setdefault(task, value)
        self._round[task] = (norm, value / max(self._first_losses[task], _SMALL))
        super().backward(task, loss, shared)

    def finish_round(self, shared: Tensors) -> None:
        """Steps the weights by the tasks that were in the round."""
        super().finish_round(shared)
        numbers = [self.tasks[task] for task in self._round]
        norm, ratio = torch.tensor(list(self._round.values())).T
        weight = self.values.detach()[numbers]
        target = (weight * norm).mean() * (ratio / ratio.mean()) ** self.params.gradnorm_alpha
        self.values.grad = torch.zeros_like(self.values)
        self.values.grad[numbers] = torch.sign(weight * norm - target) * norm
        self._optimizer.step()
        with torch.no_grad():
            self.values.clamp_(min=_LEAST_WEIGHT)
            self.values *= len(self.tasks) / self.values.sum()
        self._round = {}

    def weight(self, task: str) -> float:
        """Returns w of the task."""
        return float(self.values.detach()[self.tasks[task]])

    def state(self) -> tuple[Tensors, dict[str, Any]]:
        """Returns the weights and the first losses."""
        tensors, values = super().state()
        return tensors, {**values, "first_losses": self._first_losses}

    def restore(self, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Goes back to what `state` returned."""
        super().restore(tensors, values)
        self._first_losses = values["first_losses"]

    def _first(self) -> float:
        return 1.0


class _Combined(Balancer):
    """A balancer that combines the tasks' gradients on the shared tensors by weights made of their inner products."""

    def __init__(self, tasks: Sequence[Task], *, common: Sequence[str], params: Train) -> None:
        super().__init__(tasks, common=common, params=params)
        self._gradients: list[Tensor] = []

    def backward(self, task: str, loss: Tensor, shared: Tensors) -> None:
        """Adds the gradient to the head, and takes that of the shared tensors aside."""
        loss.backward()
        parts = [torch.zeros_like(t) if t.grad is None else t.grad for t in shared.values()]
        self._gradients.append(torch.cat([part.flatten() for part in parts]))
        for tensor in shared.values():
            tensor.grad = None

    def finish_round(self, shared: Tensors) -> None:
        """Sets the combined gradient."""
        super().finish_round(shared)
        gradients_TN = torch.stack(self._gradients)
        weight_T = torch.from_numpy(self._weights((gradients_TN @ gradients_TN.T).double().cpu().numpy()))
        combined_N = weight_T.to(gradients_TN) @ gradients_TN
        for tensor, part in zip(shared.values(), combined_N.split([t.numel() for t in shared.values()]), strict=True):
            tensor.grad = part.view_as(tensor).clone()
        self._gradients = []

    def _weights(self, gramian_TT: Matrix) -> Matrix:
        raise NotImplementedError


class PCGrad(_Combined):
    """Sums the gradients after `pcgrad`, the others in a random order that the seed and the round give."""

    def _weights(self, gramian_TT: Matrix) -> Matrix:
        random = np.random.default_rng(task_seed(self.params.seed, "pcgrad", self.rounds))
        return pcgrad(gramian_TT, [random.permutation(len(gramian_TT)) for _ in gramian_TT])


class CAGrad(_Combined):
    """Takes the gradients together by `cagrad` with `train.cagrad_c`."""

    def _weights(self, gramian_TT: Matrix) -> Matrix:
        return cagrad(gramian_TT, c=self.params.cagrad_c)


def pcgrad(gramian_TT: Matrix, orders: Sequence[Sequence[int] | NDArray[np.int64]]) -> Matrix:
    """Returns the weights (T,) of the gradients in their sum after projection.

    From each gradient i, the part against gradient j is taken away where their inner product is negative, for the
    other j in the order `orders[i]`.

    Source: Yu et al. 2020, "Gradient Surgery for Multi-Task Learning", algorithm 1, arXiv:2001.06782.
    """
    total = np.zeros(len(gramian_TT))
    for i, order in enumerate(orders):
        weight = np.zeros(len(gramian_TT))
        weight[i] = 1.0
        for j in order:
            product = float(gramian_TT[j] @ weight)
            if j != i and product < 0.0:
                weight[j] -= product / gramian_TT[j, j]
        total += weight
    return total


def cagrad(gramian_TT: Matrix, *, c: float) -> Matrix:
    """Returns the weights (T,) of the gradients in g0 + c ||g0|| g_w / ||g_w||; all 0 where no step helps every task.

    g0 is the mean gradient; w, on the simplex, minimises g_w . g0 + c ||g0|| ||g_w||.

    Source: Liu et al. 2021, "Conflict-Averse Gradient Descent", equations 3 and 4 and algorithm 1, arXiv:2110.14048.
    """
    num, scale = len(gramian_TT), float(np.trace(gramian_TT))
    mean = np.full(num, 1.0 / num)
    if scale <= _SMALL:
        return mean
    gramian = gramian_TT / scale
    radius = c * _length(gramian, mean)
    weight = _least_on_simplex(
        lambda w: float(mean @ gramian @ w) + radius * _length(gramian, w),
        lambda w: gramian @ mean + radius / _length(gramian, w) * (gramian @ w),
        num,
    )
    length = _length(gramian, weight)
    return mean + radius / length * weight if length > _NO_LENGTH else np.zeros(num)


def _length(gramian: Matrix, weight: Matrix) -> float:
    """The length of the weighed sum of the gradients; a trace above 0, so that it can divide."""
    return math.sqrt(max(float(weight @ gramian @ weight), 0.0) + _SMALL**2)


def _least_on_simplex(value: Callable[[Matrix], float], slope: Callable[[Matrix], Matrix], num: int) -> Matrix:
    """Where a convex function of (T,) is least on the simplex."""
    found = minimize(
        value,
        np.full(num, 1.0 / num),
        jac=slope,
        method="SLSQP",
        bounds=Bounds(0.0, 1.0),
        constraints=LinearConstraint(np.ones((1, num)), 1.0, 1.0),
        options={"ftol": 1e-14, "maxiter": 500},
    )
    weight: Matrix = np.clip(found.x, 0.0, None)
    return weight * (1.0 / float(weight.sum()))
