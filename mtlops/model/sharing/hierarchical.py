"""Hierarchical sharing: tasks leave the trunk at different layers."""

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor

from mtlops.errors import UsageError
from mtlops.model.encoders import Trunk
from mtlops.model.sharing.anatomy import Sharing, run_if
from mtlops.params import Model


class Hierarchical(Sharing):
    """A task with depth k (`model.depths`) is supervised at layer k and needs no layer above it.

    With `model.successive_weight` d, d ||theta - theta'||^2 keeps what is trained together near theta', its value when
    the epoch before ended: tasks attached low are not forgotten while higher ones learn.

    Source: Søgaard and Goldberg 2016, "Deep multi-task learning with low level tasks supervised at lower layers";
    Hashimoto et al. 2017, "A Joint Many-Task Model", section 2.6 (there the tasks of an epoch train one after another
    and theta' is their shared part before each; here they train in mixed rounds, so that theta' is one a whole epoch).
    """

    def __init__(self, trunk: Trunk, model: Model, tasks: Sequence[str]) -> None:
        super().__init__(trunk, model, tasks)
        self._ends = sorted(set(self.ends.values()))

    @property
    def exits(self) -> tuple[int, ...]:
        """The exits are the different ends, the lowest first."""
        return tuple(self._ends.index(self.ends[task]) for task in self.tasks)

    @property
    def remembers(self) -> bool:
        """Successive regularisation looks back by an epoch."""
        return self.params.successive_weight > 0

    def penalty(self, shared: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor | None:
        """Returns the successive regularisation."""
        if not self.remembers or not shared:
            return None
        distance = torch.stack([(tensor - before[name]).square().sum() for name, tensor in shared.items()]).sum()
        return self.params.successive_weight * distance

    def vectors(self, x_BSH: Tensor, mask_BS: Tensor, shared: Mapping[str, Tensor], exit_P: Tensor) -> Tensor:
        """Returns the pooled vectors of every exit; layers above the highest exit in `exit_P` do not run."""
        highest = exit_P.max()
        first_BH, x_BSH = self._opened(x_BSH)
        pooled, start = [], self.depth
        if start == 0:
            x_BSH, start = self._run(0, x_BSH, mask_BS, shared), 1
            first_BH = self._first(0, x_BSH, mask_BS, first_BH)
        for number, end in enumerate(self._ends):
            climb = partial(self._climb, shared=shared, start=start, end=end)
            x_BSH = run_if(highest >= number, climb, _stay, x_BSH, mask_BS) if number else climb(x_BSH, mask_BS)
            pooled.append(self.pooling.over(x_BSH, mask_BS, first_BH))
            start = end
        return torch.stack(pooled)

    def _climb(self, x_BSH: Tensor, mask_BS: Tensor, *, shared: Mapping[str, Tensor], start: int, end: int) -> Tensor:
        for position in range(start, end):
            x_BSH = self._run(position, x_BSH, mask_BS, shared)
        return x_BSH

    def _end(self, task: str) -> int:
        num_layers = len(self.trunk.layers)
        end = self.params.depths.get(task, num_layers)
        if end > num_layers:
            raise UsageError(
                f"params.yaml: model.depths.{task}: {end}; this encoder has {num_layers} layers. "
                f"Choose 1 to {num_layers}."
            )
        return end


def _stay(x_BSH: Tensor, mask_BS: Tensor) -> Tensor:
    return x_BSH.clone()
