"""Which attention heads and feed-forward units of layers that tasks train together matter, and those layers without
the others.

A part that is removed is zero in the files, so that they stay what every reader of them expects; the exported graph,
where nothing reads them any more, does without (`shrink`): the same function with fewer products.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mtlops import catalog
from mtlops.model import multitask
from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.encoders import Layer
from mtlops.model.linear import Linear
from mtlops.model.predictor import Backbone
from mtlops.model.sharing.anatomy import Sharing
from mtlops.model.sharing.soft import L2, Columns
from mtlops.tasks import Task

_BATCH = 32

_PARTS = ("attention_output", "output")
"""The products that heads and units leave a layer through."""


@dataclass(frozen=True)
class LayerScores:
    """How much each head (A,) and each unit (F,) of one layer matters."""

    heads: NDArray[np.float64]
    units: NDArray[np.float64]


Scores = dict[str, LayerScores]
"""By the start of the names of a layer's tensors: `layers.<i>.`, or `columns.<task>.layers.<i>.` in soft sharing."""


def importance(
    task: Task,
    tensors: Tensors,
    backbone: Backbone,
    *,
    shared: Mapping[str, Tensor],
    row_ids: Sequence[str],
    labels: NDArray[Any],
) -> Scores:
    """Returns how much heads and units of the trained layers matter to a task on rows that `fill` has seen.

    It is the mean over rows of |dL/dg|, L the row's loss and g = 1 a gate on a head's or unit's output; then each
    layer's scores are divided by their length, so that those of several tasks can be added up.

    Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", section 4.1 (equation 2; by layer, as in
    Molchanov et al. 2017), arXiv:1905.10650, there for heads.
    """
    sharing, loss = backbone.sharing, catalog.load(catalog.KINDS[task.kind].loss)
    common = {name: tensor.detach().to(backbone.device) for name, tensor in shared.items()}
    bank = {name: tensor.to(backbone.device) for name, tensor in multitask.stack([tensors]).items()}
    sums: dict[tuple[int, str, int], Tensor] = {}
    for start in range(0, len(row_ids), _BATCH):
        rows = np.arange(start, min(start + _BATCH, len(row_ids)))
        state, mask_BS = backbone.batch([row_ids[i] for i in rows.tolist()])
        with _gates(sharing, num_rows=len(rows)) as gates:
            vectors = sharing.vector(sharing.embed(state, mask_BS, common), mask_BS, common, task.name)
            targets = torch.from_numpy(labels[rows]).to(backbone.device)
            loss(multitask.logits(vectors, bank), targets).sum().backward()
        for place, gate in gates.items():
            assert gate.grad is not None
            per_row = gate.grad.squeeze(1)
            if place[1] == "attention_output":
                per_row = per_row.unflatten(-1, (sharing.trunk.config.num_attention_heads, -1)).sum(-1)
            sums[place] = sums.get(place, torch.zeros(())) + per_row.abs().double().sum(0).cpu()
    names = _columns(sharing, task.name)
    return {
        f"{names[call]}layers.{position}.": LayerScores(
            _scaled(sums[position, "attention_output", call]), _scaled(sums[position, "output", call])
        )
        for position, part, call in sums
        if part == "output"
    }


def together(scores: Sequence[Scores]) -> Scores:
    """Returns the sums of several tasks' scores; a layer that a task does not go through has none of it."""
    found: Scores = {}
    for of_task in scores:
        for name, layer in of_task.items():
            known = found.get(name)
            found[name] = layer if known is None else LayerScores(known.heads + layer.heads, known.units + layer.units)
    return found


def prune(shared: Mapping[str, Tensor], scores: Scores, *, keep: float) -> Tensors:
    """Returns the shared tensors with all but the most important share `keep` of each layer's heads and units zero.

    At least one of each stays; of equals the first ones.
    """
    pruned = dict(shared)
    for name, layer in scores.items():
        for part, of_part in zip(_PARTS, (layer.heads, layer.units), strict=True):
            weight = pruned[f"{name}{part}.weight"].detach().clone()
            stays = torch.zeros(len(of_part), dtype=torch.bool)
            stays[np.argsort(-of_part, kind="stable")[: max(1, math.ceil(keep * len(of_part) - 1e-9))].copy()] = True
            weight[:, ~stays.repeat_interleave(weight.shape[1] // len(of_part))] = 0.0
            pruned[f"{name}{part}.weight"] = weight
    return pruned


def sizes(shared: Mapping[str, Tensor], *, num_heads: int) -> dict[str, dict[str, int]]:
    """Returns for each trained layer its `heads` and `units` that are not zero, and the `parameters` of these.

    `num_heads`: of a layer of the trunk.
    """
    found = {}
    for name in (name.removesuffix("query.weight") for name in shared if name.endswith("query.weight")):
        hidden = shared[f"{name}norm.weight"].numel()
        heads, units = _used(shared[f"{name}attention_output.weight"], num_heads), _used(shared[f"{name}output.weight"])
        width, num_units = int(heads.sum()) * (hidden // num_heads), int(units.sum())
        parameters = 4 * hidden * width + 3 * width + 2 * hidden * num_units + num_units + 6 * hidden
        found[name] = {"heads": int(heads.sum()), "units": num_units, "parameters": parameters}
    return found


def shrink(layer: Layer) -> None:
    """Takes out of a layer, in place, the heads and units whose way out is zero: what it computes stays the same.

    Heads stay in an encoder whose attention knows distances: its table has a number for each of them.
    """
    heads = _used(layer.attention_output.weight, layer.num_heads)
    if not heads.all() and not layer.has_relative_bias:
        columns = heads.repeat_interleave(layer.attention_output.weight.shape[1] // layer.num_heads)
        for part in ("query", "key", "value"):
            setattr(layer, part, _linear(getattr(layer, part), rows=columns))
        layer.attention_output = _linear(layer.attention_output, columns=columns)
        layer.num_heads = int(heads.sum())
    units = _used(layer.output.weight)
    if not units.all():
        layer.intermediate = _linear(layer.intermediate, rows=units)
        layer.output = _linear(layer.output, columns=units)


@contextmanager
def _gates(sharing: Sharing, *, num_rows: int) -> Iterator[dict[tuple[int, str, int], Tensor]]:
    """Yields the gates (B, 1, width) on what enters `_PARTS` of trained layers, by layer, part and number of call."""
    gates: dict[tuple[int, str, int], Tensor] = {}
    hooks = []
    for position in range(sharing.first, len(sharing.trunk.layers)):
        for part in _PARTS:

            def gate(_: nn.Module, arguments: Any, position: int = position, part: str = part) -> tuple[Tensor]:
                (x_BTW,) = arguments
                call = sum(known[:2] == (position, part) for known in gates)
                made = torch.ones(num_rows, 1, x_BTW.shape[-1], device=x_BTW.device, requires_grad=True)
                gates[position, part, call] = made
                return (x_BTW * made,)

            hooks.append(getattr(sharing.trunk.blocks[position], part).register_forward_pre_hook(gate))
    try:
        yield gates
    finally:
        for hook in hooks:
            hook.remove()


def _columns(sharing: Sharing, task: str) -> list[str]:
    """Whose copies of a layer run for a task, in their order."""
    if isinstance(sharing, L2):
        return [f"columns.{task}."]
    return [f"columns.{name}." for name in sharing.tasks] if isinstance(sharing, Columns) else [""]


def _scaled(sums: Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = sums.numpy()
    return values / (float(np.linalg.norm(values)) or 1.0)


def _used(weight: Tensor, num: int | None = None) -> Tensor:
    """(num,) bool: which of `num` equal groups of columns of a matrix are not all zero."""
    columns = (weight.detach() != 0).any(dim=0)
    return columns.view(num or len(columns), -1).any(dim=1)


def _linear(old: nn.Linear, *, rows: Tensor | None = None, columns: Tensor | None = None) -> Linear:
    weight = old.weight.detach() if rows is None else old.weight.detach()[rows]
    bias = old.bias.detach() if rows is None else old.bias.detach()[rows]
    weight = weight if columns is None else weight[:, columns]
    made = Linear(weight.shape[1], weight.shape[0], device="meta")
    made.weight, made.bias = (nn.Parameter(tensor.clone(), requires_grad=False) for tensor in (weight, bias))
    return made
