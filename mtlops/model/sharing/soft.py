"""Soft sharing: every task has its own copy of the tuned layers, a column, and the columns are tied."""

import copy
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Self

import torch
from torch import Tensor

from mtlops.errors import UsageError
from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.encoders import Layer, Trunk
from mtlops.model.sharing.anatomy import Sharing, run, run_if, under
from mtlops.params import Model

_OWN_SHARE = 0.9


class Columns(Sharing):
    """One column a task, all of them the trunk's own layers at the start: `columns.<task>.layers.<i>.<part>`.

    Attributes:
        columns: by task, the layers above the state.
    """

    def __init__(self, trunk: Trunk, model: Model, tasks: Sequence[str]) -> None:
        super().__init__(trunk, model, tasks)
        if self.first == len(trunk.layers):
            raise UsageError("params.yaml: model.tuned_layers: 0 leaves soft sharing no layer to tie. Use at least 1.")
        self.columns: dict[str, Sequence[Layer]] = dict.fromkeys(self.tasks, self.layers)

    @property
    def copies(self) -> list[Layer]:
        """The layers of all columns, where they are not the trunk's own."""
        return [layer for column in self.columns.values() for layer in column if layer not in self.layers]

    @property
    def trained(self) -> list[Layer]:
        """The layers of all columns from the lowest trained one up, after `folded`."""
        return [layer for column in self.columns.values() for layer in column[self.first - self.depth :]]

    @property
    def exits(self) -> tuple[int, ...]:
        """Every task has its own exit."""
        return tuple(range(len(self.tasks)))

    def start(self) -> Tensors:
        """Returns the trunk's own weights once a task."""
        own = super().start()
        return {f"columns.{task}.{name}": tensor.clone() for task in self.tasks for name, tensor in own.items()}

    def folded(self, shared: Mapping[str, Tensor]) -> tuple[Self, Tensors]:
        """Returns the same model with each column's weights inside its layers, and what of `shared` it still takes."""
        made = type(self)(self.trunk, self.params, self.tasks)
        for task in self.tasks:
            made.columns[task] = copy.deepcopy(self.layers)
            for position, layer in enumerate(made.columns[task], start=self.depth):
                layer.load_state_dict(under(f"columns.{task}.layers.{position}.", shared))
        return made, {name: tensor for name, tensor in shared.items() if not name.startswith("columns.")}

    def _run_in(
        self, task: str, position: int, x_BSH: Tensor, mask_BS: Tensor, shared: Mapping[str, Tensor], *, first: bool
    ) -> Tensor:
        own = under(f"columns.{task}.layers.{position}.", shared)
        return run(self.columns[task][position - self.depth], own, x_BSH, mask_BS, first=first)

    def _is_first_only(self, position: int) -> bool:
        return self.pooling.first_token_only and position == len(self.trunk.layers) - 1


class L2(Columns):
    """The columns of two tasks pull each other: lambda sum_{t<u} ||W_t - W_u||^2 (`model.soft_weight` is lambda).

    A pull between tasks, not weight decay: nothing is drawn to zero, and each pull moves both columns. A task's
    answer needs its own column only.

    Source: Duong et al. 2015, "Low Resource Dependency Parsing: Cross-lingual Parameter Sharing in a Neural Network
    Parser", section 4; Ruder 2017, section 3.2, arXiv:1706.05098.
    """

    def common(self, shared: Mapping[str, Tensor]) -> list[str]:
        """Returns nothing: the loss of a task reaches its own column alone."""
        return []

    def penalty(self, shared: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor | None:
        """Returns the squared distances of all pairs of columns, weighed."""
        columns = [under(f"columns.{task}.", shared) for task in self.tasks]
        distances = [(a[name] - b[name]).square().sum() for a, b in combinations(columns, 2) for name in a]
        return self.params.soft_weight * torch.stack(distances).sum() if distances else None

    def vector(self, x_BSH: Tensor, mask_BS: Tensor, shared: Mapping[str, Tensor], task: str) -> Tensor:
        """Returns one task's pooled vectors (B, H)."""
        first_BH, x_BSH = self._opened(x_BSH)
        for position in range(self.depth, len(self.trunk.layers)):
            x_BSH = self._run_in(task, position, x_BSH, mask_BS, shared, first=self._is_first_only(position))
            first_BH = self._first(position, x_BSH, mask_BS, first_BH)
        return self.pooling.over(x_BSH, mask_BS, first_BH)

    def vectors(self, x_BSH: Tensor, mask_BS: Tensor, shared: Mapping[str, Tensor], exit_P: Tensor) -> Tensor:
        """Returns the pooled vectors of all columns (T, B, H); columns that are not in `exit_P` do not run."""
        pooled = []
        for number, task in enumerate(self.tasks):

            def column(x_BSH: Tensor, mask_BS: Tensor, task: str = task) -> Tensor:
                return self.vector(x_BSH, mask_BS, shared, task)

            pooled.append(run_if((exit_P == number).any(), column, _first_tokens, x_BSH, mask_BS))
        return torch.stack(pooled)


class CrossStitch(Columns):
    """After each tuned layer, column t goes on with sum_u alpha[t, u] x_u, alpha learned for each layer.

    At the start alpha is 0.9 on the diagonal and the rest in equal parts elsewhere. A task's answer needs all columns.

    Source: Misra et al. 2016, "Cross-stitch Networks for Multi-task Learning", sections 3 and 4, arXiv:1604.03539;
    one alpha a layer where the paper has one a channel.
    """

    def start(self) -> Tensors:
        """Returns the columns and `stitch.<i>` (T, T)."""
        num = len(self.tasks)
        stitch = torch.full((num, num), (1.0 - _OWN_SHARE) / max(1, num - 1))
        stitch.fill_diagonal_(_OWN_SHARE if num > 1 else 1.0)
        layers = range(self.first, len(self.trunk.layers))
        return {**super().start(), **{f"stitch.{i}": stitch.clone() for i in layers}}

    def common(self, shared: Mapping[str, Tensor]) -> list[str]:
        """Returns all but the last layer's stitches: there a task's loss reaches its own row alone."""
        return [name for name in shared if name != f"stitch.{len(self.trunk.layers) - 1}"]

    def vector(self, x_BSH: Tensor, mask_BS: Tensor, shared: Mapping[str, Tensor], task: str) -> Tensor:
        """Returns one task's pooled vectors (B, H)."""
        return self._pooled(x_BSH, mask_BS, shared)[self.tasks.index(task)]

    def vectors(self, x_BSH: Tensor, mask_BS: Tensor, shared: Mapping[str, Tensor], exit_P: Tensor) -> Tensor:
        """Returns the pooled vectors of all columns (T, B, H)."""
        return torch.stack(self._pooled(x_BSH, mask_BS, shared))

    def _pooled(self, state_BSH: Tensor, mask_BS: Tensor, shared: Mapping[str, Tensor]) -> list[Tensor]:
        """The pooled vectors (B, H) of each column. Where the pooling reads one token only, the last layer has one."""
        first_BH, x_BSH = self._opened(state_BSH)
        firsts = [first_BH] * len(self.tasks)
        x_TBSH = x_BSH.expand(len(self.tasks), *x_BSH.shape)
        for position in range(self.depth, len(self.trunk.layers)):
            first = self._is_first_only(position)
            columns = enumerate(self.tasks)
            outputs = [self._run_in(t, position, x_TBSH[n], mask_BS, shared, first=first) for n, t in columns]
            x_TBSH = torch.stack(outputs)
            if (stitch := shared.get(f"stitch.{position}")) is not None:
                x_TBSH = torch.einsum("tu,ubsh->tbsh", stitch, x_TBSH)
            firsts = [self._first(position, x_TBSH[n], mask_BS, known) for n, known in enumerate(firsts)]
        return [self.pooling.over(x_TBSH[number], mask_BS, known) for number, known in enumerate(firsts)]


def _first_tokens(x_BSH: Tensor, mask_BS: Tensor) -> Tensor:
    return x_BSH[:, 0].clone()
