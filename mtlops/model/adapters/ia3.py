"""One learned factor for each key, value and feed-forward unit."""

import torch
from torch import Generator, Tensor

from mtlops.model.adapters.anatomy import Adapter, Cut, LayerTensors, Tensors


class Ia3(Adapter):
    """Keys, values and expanded feed-forward units are multiplied by learned vectors, 1 at the start.

    Source: Liu et al. 2022, "Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context
    Learning", section 3.3, arXiv:2205.05638; the feed-forward factor stands before the activation, as AdapterHub
    has it.
    """

    cut = Cut.INPUT

    def init(self, generator: Generator) -> Tensors:
        """Returns key (H,), value (H,) and expand (F,)."""
        sizes = self.sizes
        return {
            "key": torch.ones(sizes.hidden),
            "value": torch.ones(sizes.hidden),
            "expand": torch.ones(sizes.feed_forward),
        }

    def projected(self, name: str, x_PSH: Tensor, y_PSH: Tensor, at: LayerTensors) -> Tensor:
        """Multiplies key and value."""
        return y_PSH if name == "query" else y_PSH * at[name].unsqueeze(1)

    def expanded(self, h_PTF: Tensor, at: LayerTensors) -> Tensor:
        """Multiplies the expanded units."""
        return h_PTF * at["expand"].unsqueeze(1)
