"""Low-rank changes of the query and value projections."""

import torch
from torch import Generator, Tensor

from mtlops.model.adapters.anatomy import Adapter, Cut, LayerTensors, Tensors

_TARGETS = ("query", "value")


class Lora(Adapter):
    """y = W x + (alpha / r) B A x, for query and value; `model.scaling` is alpha / r, `model.bottleneck` is r.

    Source: Hu et al. 2022, "LoRA", section 4.1, arXiv:2106.09685.
    """

    cut = Cut.INPUT
    width = 8

    def init(self, generator: Generator) -> Tensors:
        """Returns for each of query and value `<name>_a` (H, R) and `<name>_b` (R, H), the latter zero."""
        hidden, rank = self.sizes.hidden, self.bottleneck
        tensors: Tensors = {}
        for name in _TARGETS:
            uniform = torch.rand(hidden, rank, generator=generator) * 2 - 1
            tensors |= {f"{name}_a": uniform * hidden**-0.5, f"{name}_b": torch.zeros(rank, hidden)}
        return tensors

    def projected(self, name: str, x_PSH: Tensor, y_PSH: Tensor, at: LayerTensors) -> Tensor:
        """Adds the low-rank product to query and value."""
        if name not in _TARGETS:
            return y_PSH
        return y_PSH + self.scaling * at.product(at.product(x_PSH, f"{name}_a"), f"{name}_b")
