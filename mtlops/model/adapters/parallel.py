"""One scaled bottleneck beside each feed-forward block."""

import torch
from torch import Generator, Tensor, nn

from mtlops.model.adapters.anatomy import Adapter, Cut, LayerTensors, Tensors, down, up


class Parallel(Adapter):
    """out = LN(f + s U relu(D x) + x), with biases.

    Source: He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", section 3.3 and
    table 1 ("scaled parallel adapter"), arXiv:2110.04366.
    """

    cut = Cut.FEED_FORWARD
    reduction = 2
    scale = 4.0

    def init(self, generator: Generator) -> Tensors:
        """Returns down (H, R), down_bias (R,), up (R, H), up_bias (H,)."""
        return self._bottleneck(generator)

    def output(self, sum_PTH: Tensor, x_PTH: Tensor | None, norm: nn.Module, at: LayerTensors) -> Tensor:
        """Returns the adapted output of a layer."""
        return parallel(sum_PTH, x_PTH, norm, at, scaling=self.scaling)


def parallel(sum_PTH: Tensor, x_PTH: Tensor | None, norm: nn.Module, at: LayerTensors, *, scaling: float) -> Tensor:
    """Returns LN(f + x + s U relu(D x))."""
    assert x_PTH is not None
    out: Tensor = norm(sum_PTH + scaling * up(torch.relu(down(x_PTH, at)), at))
    return out
