"""Layers of the trunk that several tasks train together, and heads of one task each on top.

    frozen layers --state--> tuned layers --> pooled vector of an exit --> heads of the tasks at that exit

The frozen layers run once a row and are cached, as under adapters. What is trained together is one flat mapping of
tensors by the trunk's own names (`layers.<i>.query.weight`); a way of sharing says which there are and which of them a
task's vector goes through. The same lines serve training and the exported graph (`folded`).

Shape suffixes: B rows, S tokens, H hidden, E exits, P (row, task) pairs.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Generator, Tensor, nn
from torch.func import functional_call

from mtlops import catalog
from mtlops.errors import UsageError
from mtlops.model.adapters.anatomy import Cut, Tensors
from mtlops.model.encoders import Layer, Trunk
from mtlops.params import Model
from mtlops.tasks import Task


class Sharing:
    """The anatomy: a way of sharing overrides what it does in another way.

    Args:
        trunk: the frozen encoder, whose weights are the start of training.
        model: section `model` of params.yaml.
        tasks: names of the tasks, in order.

    Raises:
        UsageError: `model` does not fit the encoder.

    Attributes:
        depth: the layer whose input is the state: everything below is frozen.
        first: the lowest layer that is trained.
        ends: by task, how many of the trunk's layers it goes through.
    """

    cut: ClassVar[Cut] = Cut.INPUT

    def __init__(self, trunk: Trunk, model: Model, tasks: Sequence[str]) -> None:
        self.params, self.trunk, self.tasks = model, trunk, tuple(tasks)
        self.num_layers = len(trunk.layers)
        self.first = self.num_layers - self._num_tuned()
        self.ends = {task: self._end(task) for task in self.tasks}
        self.depth = min(self.first, self.num_layers - 1, *self.ends.values())
        self.hidden = trunk.config.hidden_size
        self.pooling = catalog.load(catalog.POOLINGS[model.pooling].code)
        self.blocks: dict[str, Layer] = self._blocks()

    @property
    def reads_ids(self) -> bool:
        """The state is token ids (B, S), because the embeddings are trained too; else vectors (B, S, H)."""
        return self.params.tune_embeddings

    @property
    def layers(self) -> list[Layer]:
        """The layers above the state."""
        return self.trunk.blocks[self.depth :]

    @property
    def exits(self) -> tuple[int, ...]:
        """The exit (position in `vectors`) of each task."""
        return (0,) * len(self.tasks)

    def start(self) -> Tensors:
        """Returns what is trained together as it is at the start: the trunk's own weights, copied."""
        tensors = {f"{block}.{n}": p for block in self._tuned_blocks() for n, p in self.blocks[block].named_parameters()}
        return {name: tensor.detach().clone() for name, tensor in {**self._embeddings(), **tensors}.items()}

    def init(self, task: Task, generator: Generator) -> Tensors:
        """Returns fresh tensors of one task: its head."""
        head = torch.randn(self.hidden, task.num_outputs, generator=generator) * self.hidden**-0.5
        return {"head.weight": head, "head.bias": torch.zeros(task.num_outputs)}

    def common(self, shared: Tensors) -> list[str]:
        """Returns the names of the tensors that every task's loss reaches, the lowest first."""
        lowest = min(self.ends.values(), default=self.num_layers)
        return [n for n in shared if not n.startswith("layers.") or int(n.split(".")[1]) < lowest]

    def penalty(self, shared: Tensors, before: Tensors) -> Tensor | None:
        """Returns a loss on the tensors themselves, () or None; `before`: as they were after the last epoch."""
        return None

    def vector(self, state: Tensor, mask_BS: Tensor, shared: Tensors, task: str) -> Tensor:
        """Returns the pooled vectors (B, H) of one task; no layer above its end is computed."""
        return self._climb(self.embed(state, mask_BS, shared), mask_BS, shared, self.depth, self.ends[task])

    def vectors(self, state: Tensor, mask_BS: Tensor, shared: Tensors, exit_P: Tensor) -> Tensor:
        """Returns the pooled vectors of all exits (E, B, H); those that are not in `exit_P` may be anything."""
        return self.vector(state, mask_BS, shared, self.tasks[0]).unsqueeze(0)

    def frozen(self, state: Tensor, mask_BS: Tensor) -> Tensor:
        """Returns the last token vectors (B, S, H) of the trunk as it was before training."""
        for layer in self.layers:
            state = layer(state, mask_BS)
        return state

    def embed(self, state: Tensor, mask_BS: Tensor, shared: Tensors) -> Tensor:
        """Returns the input (B, S, H) of layer `depth`."""
        if not self.reads_ids:
            return state
        own = {name: shared[name] for name in self._embeddings() if name in shared}
        embedded: Tensor = functional_call(self.trunk, own, (state, mask_BS), {"depth": 0, "cut": Cut.INPUT})
        return embedded

    def folded(self, shared: Tensors) -> Self:
        """Returns the same model with the trained tensors inside its layers; it then takes no `shared`."""
        made = copy.copy(self)
        made.trunk = copy.deepcopy(self.trunk)
        made.blocks = {name: copy.deepcopy(layer) for name, layer in self.blocks.items()}
        own = made._blocks() if self.blocks.keys() == self._blocks().keys() else {}
        made.blocks = {name: own.get(name, layer) for name, layer in made.blocks.items()}
        modules: Mapping[str, nn.Module] = {**made.blocks, "": made.trunk}
        with torch.no_grad():
            for name, tensor in shared.items():
                made._write(name, tensor, modules)
        return made
