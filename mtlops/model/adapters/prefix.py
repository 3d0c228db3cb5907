"""Learned keys and values in front of every text."""

from typing import ClassVar

import torch
from torch import Generator, Tensor

from mtlops.model.adapters.anatomy import Adapter, Cut, LayerTensors, Tensors

_INNER = 512


class Prefix(Adapter):
    """K' = [P_K; K], V' = [P_V; V] in every adapted layer; P has `model.prefix_length` learned positions.

    In training all P come out of one small network, tanh between two linear maps of learned vectors: trained
    directly they learn slowly. What is kept are its outputs.

    Source: Li and Liang 2021, "Prefix-Tuning", sections 4.2 and 4.3, arXiv:2101.00190.
    """

    cut = Cut.INPUT
    neutral: ClassVar[bool] = False

    def init_task(self, generator: Generator) -> Tensors:
        """Returns the network; its outer map has a column a layer, role (key, then value) and hidden unit."""
        hidden, outputs = self.sizes.hidden, len(self.layers) * 2 * self.sizes.hidden
        return {
            "prefix.vectors": torch.randn(self.model.prefix_length, hidden, generator=generator),
            "prefix.inner": torch.randn(hidden, _INNER, generator=generator) * hidden**-0.5,
            "prefix.inner_bias": torch.zeros(_INNER),
            "prefix.outer": torch.randn(_INNER, outputs, generator=generator) * _INNER**-0.5,
            "prefix.outer_bias": torch.zeros(outputs),
        }

    @property
    def num_prefixed(self) -> int:
        """Keys and values that `prefixed` puts in front."""
        return self.model.prefix_length

    def bank(self, trained: Tensors, *, training: bool) -> Tensors:
        """Returns prefix_key and prefix_value (N, H) of each layer."""
        inner = torch.tanh(trained["prefix.vectors"] @ trained["prefix.inner"] + trained["prefix.inner_bias"])
        outer = inner @ trained["prefix.outer"] + trained["prefix.outer_bias"]
        values = iter(outer.chunk(2 * len(self.layers), dim=1))
        bank = {name: tensor for name, tensor in trained.items() if not name.startswith("prefix.")}
        for layer in self.layers:
            bank |= {f"layers.{layer}.prefix_key": next(values), f"layers.{layer}.prefix_value": next(values)}
        return bank

    def prefixed(self, key_PSH: Tensor, value_PSH: Tensor, at: LayerTensors) -> tuple[Tensor, Tensor]:
        """Puts the learned keys and values in front."""
        rows = key_PSH.shape[0]
        first_PNH = (at[name].expand(rows, -1, -1) for name in ("prefix_key", "prefix_value"))
        key, value = (torch.cat([p, x], dim=1) for p, x in zip(first_PNH, (key_PSH, value_PSH), strict=True))
        return key, value
