"""Layers of the trunk that several tasks train together, and heads of one task each on top.

    state --frozen layers, if any are left--> tuned layers --> pooled vector of a task --> its head

The layers below the state are frozen, run once a row and are cached, as under adapters. What is trained together is
one flat mapping of tensors by the trunk's own names (`layers.<i>.query.weight`). A way of sharing says which tensors
there are and which of them a task's vector comes through; the same lines serve training and the exported graph.

Shape suffixes: B rows, S tokens, H hidden, E exits, P (row, task) pairs.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Self

import torch
from torch import Generator, Tensor
from torch.func import functional_call

from mtlops import catalog
from mtlops.errors import UsageError
from mtlops.model.adapters.anatomy import Cut, Tensors
from mtlops.model.encoders import Layer, Trunk
from mtlops.model.pooling import mean
from mtlops.model.state import AboveCut
from mtlops.params import Model
from mtlops.tasks import Task

Branch = Callable[[Tensor, Tensor], Tensor]
"""A part of a model: (x (B, S, H), mask (B, S)) -> a tensor."""


class Sharing(AboveCut):
    """The anatomy: one trunk for all tasks, whose top layers may be trained.

    Args:
        trunk: the encoder; its weights are the start of training.
        model: section `model` of params.yaml.
        tasks: names of the tasks, in order.

    Raises:
        UsageError: `model` does not fit the encoder.

    Attributes:
        first: the lowest layer that is trained; as many as there are layers when none is.
        ends: by task, how many of the trunk's layers it goes through.
        depth: the layer whose input is the state.
    """

    cut = Cut.INPUT

    def __init__(self, trunk: Trunk, model: Model, tasks: Sequence[str]) -> None:
        self.params, self.trunk, self.tasks = model, trunk, tuple(tasks)
        self.first = len(trunk.layers) - _num_tuned(model, len(trunk.layers))
        self.ends = {task: self._end(task) for task in self.tasks}
        self.depth = min(self.first, len(trunk.layers) - 1, *self.ends.values())
        self.hidden = trunk.config.hidden_size
        self.pooling = catalog.load(catalog.POOLINGS[model.pooling].code)

    @property
    def layers(self) -> list[Layer]:
        """The layers above the state."""
        return self.trunk.blocks[self.depth :]

    @property
    def trained(self) -> list[Layer]:
        """The layers that hold what was trained, after `folded`."""
        return self.trunk.blocks[self.first :]

    @property
    def copies(self) -> list[Layer]:
        """The layers above the state that are not the trunk's own."""
        return []

    @property
    def exits(self) -> tuple[int, ...]:
        """The exit of each task: its position in `vectors`."""
        return (0,) * len(self.tasks)

    def init(self, task: Task, generator: Generator) -> Tensors:
        """Returns the fresh tensors of one task: its head."""
        head = torch.randn(self.hidden, task.num_outputs, generator=generator) * self.hidden**-0.5
        return {"head.weight": head, "head.bias": torch.zeros(task.num_outputs)}

    def start(self) -> Tensors:
        """Returns what is trained together as it is at the start: copies of the trunk's own weights.

        What attention adds for distances belongs to all layers at once, and stays as it is.
        """
        wanted = {f"layers.{i}." for i in range(self.first, len(self.trunk.layers))}
        elsewhere = ("layers.", "relative_bias.")
        return {
            name: parameter.detach().clone()
            for name, parameter in self.trunk.named_parameters()
            if (".".join(name.split(".")[:2]) + "." in wanted) or (self.reads_ids and not name.startswith(elsewhere))
        }

    def common(self, shared: Mapping[str, Tensor]) -> list[str]:
        """Returns the names of the tensors that the losses of all tasks reach, the lowest first."""
        lowest_end = min(self.ends.values())
        return [name for name in shared if not name.startswith("layers.") or int(name.split(".")[1]) < lowest_end]

    @property
    def remembers(self) -> bool:
        """`penalty` looks at what was before."""
        return False

    def penalty(self, shared: Mapping[str, Tensor], before: Mapping[str, Tensor]) -> Tensor | None:
        """Returns a loss () on the tensors themselves, or None.

        `before`: as they were when the last epoch ended, or at the start; empty unless it `remembers`.
        """
        return None

    @property
    def reads_ids(self) -> bool:
        """The state is token ids (B, S), because the embeddings are trained too; else it is vectors (B, S, H)."""
        return self.params.tune_embeddings

    def embed(self, state: Tensor, mask_BS: Tensor, shared: Mapping[str, Tensor]) -> Tensor:
        """Returns what `vector` starts from: the state, or the embeddings (B, S, H) of a state of token ids."""
        if not self.reads_ids:
            return state
        own = {name: tensor for name, tensor in shared.items() if not name.startswith("layers.")}
        x_BSH: Tensor = functional_call(self.trunk, own, (state, mask_BS), {"depth": 0, "cut": Cut.INPUT})
        return x_BSH

    def embedding(self, x_BSH: Tensor, mask_BS: Tensor) -> Tensor:
        """Returns the text vectors (B, H) that drift watches: the mean over tokens of the input of layer `depth`."""
        vectors: Tensor = mean.pool(self._opened(x_BSH)[1], mask_BS)
        return vectors

    def vector(self, x_BSH: Tensor, mask_BS: Tensor, shared: Mapping[str, Tensor], task: str) -> Tensor:
        """Returns one task's pooled vectors (B, H) from the state; layers above its end do not run."""
        first_BH, x_BSH = self._opened(x_BSH)
        for position in range(self.depth, self.ends[task]):
            x_BSH = self._run(position, x_BSH, mask_BS, shared, is_last=position == self.ends[task] - 1)
            first_BH = self._first(position, x_BSH, mask_BS, first_BH)
        return self.pooling.over(x_BSH, mask_BS, first_BH)

    def vectors(self, x_BSH: Tensor, mask_BS: Tensor, shared: Mapping[str, Tensor], exit_P: Tensor) -> Tensor:
        """Returns the pooled vectors of all exits (E, B, H); those of exits not in `exit_P` may be anything."""
        return self.vector(x_BSH, mask_BS, shared, self.tasks[0]).unsqueeze(0)

    def frozen(self, state_BSH: Tensor, mask_BS: Tensor) -> Tensor:
        """Returns the last token vectors (B, S, H) of the trunk before any training."""
        x_BSH = self._opened(state_BSH)[1]
        for layer in self.layers:
            x_BSH = layer(x_BSH, mask_BS)
        return x_BSH

    def folded(self, shared: Mapping[str, Tensor]) -> tuple[Self, Tensors]:
        """Returns the same model with the trained weights inside its layers, and what of `shared` it still takes."""
        trunk = copy.deepcopy(self.trunk)
        trunk.load_state_dict(dict(shared), strict=False)
        return type(self)(trunk, self.params, self.tasks), {}

    def _end(self, task: str) -> int:
        return len(self.trunk.layers)

    def _run(
        self, position: int, x_BSH: Tensor, mask_BS: Tensor, shared: Mapping[str, Tensor], *, is_last: bool = False
    ) -> Tensor:
        own = under(f"layers.{position}.", shared)
        return run(self.trunk.blocks[position], own, x_BSH, mask_BS, first=is_last and self.pooling.first_token_only)


def make(trunk: Trunk, model: Model, tasks: Sequence[str]) -> Sharing:
    """Returns the way of sharing that section `model` asks for; not for `adapters`, which share nothing trainable."""
    entry = catalog.SOFT[model.soft] if model.sharing == "soft" else catalog.SHARING[model.sharing]
    made: Sharing = catalog.load(entry.code)(trunk, model, tasks)
    return made


def run(layer: Layer, tensors: Mapping[str, Tensor], x_BSH: Tensor, mask_BS: Tensor, *, first: bool) -> Tensor:
    """Returns what a layer computes with these tensors in the place of its own; (B, 1, H) with `first`."""
    options = {"first_token_only": first}
    out: Tensor = (
        functional_call(layer, dict(tensors), (x_BSH, mask_BS), options)
        if tensors
        else layer(x_BSH, mask_BS, **options)
    )
    return out


def run_if(wanted: Tensor, branch: Branch, otherwise: Branch, x_BSH: Tensor, mask_BS: Tensor) -> Tensor:
    """Returns `branch(x, mask)` if `wanted`, else `otherwise(x, mask)`; in an exported graph this choice is a node."""
    if torch.compiler.is_exporting():
        chosen: Tensor = torch.cond(wanted, branch, otherwise, (x_BSH, mask_BS))
        return chosen
    return (branch if wanted else otherwise)(x_BSH, mask_BS)


def under(prefix: str, tensors: Mapping[str, Tensor]) -> Tensors:
    """Returns the tensors whose names start with `prefix`, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _num_tuned(model: Model, num_layers: int) -> int:
    if model.tuned_layers is None:
        return (num_layers + 1) // 2
    if model.tuned_layers == "all":
        return num_layers
    if model.tuned_layers > num_layers:
        raise UsageError(
            f"params.yaml: model.tuned_layers: {model.tuned_layers}; this encoder has {num_layers} layers. "
            f"Choose at most that, or 'all'."
        )
    return model.tuned_layers
