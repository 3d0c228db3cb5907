"""The multi-task model: what lies above the cut, for any mixture of (row, task) pairs.

The trunk below the lowest adapter is the same for every task and runs once per row (`encoders.Trunk`).
From there on each pair of a row and a task has its own adapters and head, picked from a bank by the
task's position. Shape suffixes: T tasks, P pairs, S tokens, H hidden, C widest task's outputs.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Generator, Tensor, nn

from mtlops import catalog
from mtlops.errors import UsageError
from mtlops.model.encoders import Trunk, attention_bias
from mtlops.params import Model
from mtlops.tasks import Task

Tensors = dict[str, Tensor]
"""All tensors of one task: `layers.<i>.<part>` of its adapter, `head.weight` (H, C) and `head.bias` (C,)."""


class PairModel(nn.Module):
    """The frozen layers above the cut, with adapters and heads given as banks.

    Args:
        trunk: the frozen encoder.
        model: section `model` of params.yaml.

    Raises:
        UsageError: `model.adapter_drop` leaves no layer for an adapter.
    """

    def __init__(self, trunk: Trunk, model: Model) -> None:
        super().__init__()
        if model.adapter_drop >= len(trunk.layers):
            raise UsageError(
                f"params.yaml: model.adapter_drop: {model.adapter_drop} leaves no layer for an adapter; this encoder "
                f"has {len(trunk.layers)} layers. Choose at most {len(trunk.layers) - 1}."
            )
        self.params = model
        self.cut = model.adapter_drop
        self.hidden = trunk.config.hidden_size
        self.layers = trunk.blocks[self.cut :]
        self.adapter = catalog.load(catalog.ADAPTERS[model.adapter].code)
        self.pooling = catalog.load(catalog.POOLINGS[model.pooling].code)

    def forward(self, sum_PSH: Tensor, mask_PS: Tensor, bank: Mapping[str, Tensor]) -> Tensor:
        """Returns the pooled vector of each pair.

        Shapes: sum_PSH: the trunk's pre-norm output at the cut, one row a pair; bank: tensors by name with
        P (or 1) in front; result (P, H).
        """
        bias = attention_bias(mask_PS)
        last = len(self.layers) - 1
        if last == 0 and self.pooling.first_token_only:
            sum_PSH = sum_PSH[:, :1]
        x_PSH = self._adapt(0, sum_PSH, bank)
        for index, layer in enumerate(self.layers[1:], start=1):
            first_token_only = self.pooling.first_token_only and index == last
            x_PSH = self._adapt(index, layer(x_PSH, bias, first_token_only=first_token_only), bank)
        pooled: Tensor = self.pooling.pool(x_PSH, mask_PS)
        return pooled

    def frozen(self, sum_BSH: Tensor, mask_BS: Tensor) -> Tensor:
        """Returns the last token vectors (B, S, H) of the trunk alone, without any adapter."""
        bias = attention_bias(mask_BS)
        x_BSH: Tensor = self.layers[0].norm(sum_BSH)
        for layer in self.layers[1:]:
            x_BSH = layer.norm(layer(x_BSH, bias))
        return x_BSH

    def init(self, task: Task, generator: Generator) -> Tensors:
        """Returns fresh tensors of one task."""
        tensors = {
            f"layers.{self.cut + index}.{part}": tensor
            for index in range(len(self.layers))
            for part, tensor in self.adapter.init(self.hidden, self.params, generator).items()
        }
        head = torch.randn(self.hidden, task.num_outputs, generator=generator) * self.hidden**-0.5
        return {**tensors, "head.weight": head, "head.bias": torch.zeros(task.num_outputs)}

    def _adapt(self, index: int, sum_PSH: Tensor, bank: Mapping[str, Tensor]) -> Tensor:
        """The adapted output of the index-th layer above the cut."""
        prefix = f"layers.{self.cut + index}."
        of_layer = {name.removeprefix(prefix): tensor for name, tensor in bank.items() if name.startswith(prefix)}
        adapted: Tensor = self.adapter.apply(sum_PSH, self.layers[index].norm, of_layer)
        return adapted


def stack(tasks: Sequence[Mapping[str, Tensor]]) -> Tensors:
    """Returns the bank of several tasks: each tensor stacked to (T, ...), heads padded to the widest with zeros."""
    widest = max(tensors["head.bias"].shape[0] for tensors in tasks)

    def padded(tensor: Tensor) -> Tensor:
        return nn.functional.pad(tensor, (0, widest - tensor.shape[-1]))

    return {
        name: torch.stack([padded(t[name]) if name.startswith("head.") else t[name] for t in tasks])
        for name in tasks[0]
    }


def pick(bank: Mapping[str, Tensor], task_P: Tensor) -> Tensors:
    """Returns the bank's tensors for each pair: (T, ...) and task positions (P,) to (P, ...)."""
    return {name: tensor.index_select(0, task_P) for name, tensor in bank.items()}


def logits(pooled_PH: Tensor, bank: Mapping[str, Tensor]) -> Tensor:
    """Returns (P, C) logits of the heads; columns beyond a task's own outputs are 0."""
    return (pooled_PH.unsqueeze(1) @ bank["head.weight"]).squeeze(1) + bank["head.bias"]
