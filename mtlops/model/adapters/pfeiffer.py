"""One bottleneck after each feed-forward block."""

import torch
from torch import Generator, Tensor, nn

from mtlops.model.adapters.anatomy import Adapter, Cut, LayerTensors, Tensors, down, up


class Pfeiffer(Adapter):
    """out = LN(f + U relu(D LN(f + x)) + x), with biases.

    Source: Pfeiffer et al. 2021, "AdapterFusion", section 3.1 and figure 2, arXiv:2005.00247, in the form that
    AdapterHub implements: the layer's own norm serves before the bottleneck and after the sum.
    """

    cut = Cut.SUM
    reduction = 16

    def init(self, generator: Generator) -> Tensors:
        """Returns down (H, R), down_bias (R,), up (R, H), up_bias (H,)."""
        return self._bottleneck(generator)

    def output(self, sum_PTH: Tensor, x_PTH: Tensor | None, norm: nn.Module, at: LayerTensors) -> Tensor:
        """Returns the adapted output of a layer."""
        z_PTR = torch.relu(down(norm(sum_PTH), at))
        out: Tensor = norm(sum_PTH + up(z_PTR, at))
        return out
