"""Removing the units of adapters that matter least.

A unit is one column of a bottleneck's way down with its row of the way up, or one rank of a LoRA. Every tensor that
holds it shrinks, so the model gets smaller and faster, not only sparse.

Shape suffixes: P rows, R units, H hidden.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlops import catalog
from mtlops.model import multitask
from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.predictor import Backbone
from mtlops.tasks import Task

Scores = Mapping[str, NDArray[np.float64]]
"""Importance of the units (R,), by the name of the tensor (R, H) that leads out of them."""

_WAYS_IN = {"up": ("down", "down_bias"), "_b": ("_a",)}
"""By the ending of a tensor that leads out of units, the endings of those that lead into them (units last there)."""

_BATCH = 32


def unit_tensors(tensors: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """Returns, by the name of each tensor (R, H) that leads out of units, the names of those that lead into them.

    Empty for an adapter without units of its own: `ia3`, `prefix`, `fusion`.
    """
    found = {}
    for name, tensor in tensors.items():
        for way_out, ways_in in _WAYS_IN.items():
            stem = name.removesuffix(way_out)
            if name.endswith(way_out) and tensor.ndim == 2 and all(f"{stem}{end}" in tensors for end in ways_in):
                found[name] = tuple(f"{stem}{end}" for end in ways_in)
    return found


def importance(
    task: Task,
    tensors: Tensors,
    backbone: Backbone,
    *,
    row_ids: Sequence[str],
    labels: NDArray[Any],
    words: NDArray[np.int64] | None = None,
) -> Scores:
    """Returns how much each unit matters to a task on labelled rows that are in the backbone's cache.

    `words`, of a task that tags them: as `Tokenizer.word_tokens` returns them; words without a token do not count.

    It is the mean over rows of |dL/dg|, L the row's loss and g = 1 a gate on the unit's output: to first order the
    change of the loss without the unit.

    Source: Michel et al. 2019, "Are Sixteen Heads Really Better than One?", section 4.1 (equation 2), arXiv:1905.10650;
    Molchanov et al. 2017, "Pruning Convolutional Neural Networks", section 2.2, arXiv:1611.06440.
    """
    loss = catalog.load(catalog.KINDS[task.kind].loss)
    bank = {name: tensor.to(backbone.device) for name, tensor in multitask.stack([tensors]).items()}
    ways_out = list(unit_tensors(tensors))
    sums = {name: torch.zeros(tensors[name].shape[0], dtype=torch.float64) for name in ways_out}
    for rows in _batches(len(row_ids)):
        # The loss depends on the gate through the unit's row of the way out alone: dL/dg = <dL/du, u>. A copy of that
        # tensor for each text gives the gradient of each text.
        copies = {name: bank[name].expand(len(rows), -1, -1).clone().requires_grad_() for name in ways_out}
        batch = backbone.batch([row_ids[i] for i in rows])
        if words is None:
            logits, targets = multitask.logits(backbone.pairs(*batch, bank | copies), bank), labels[rows]
        else:
            x_PSH = backbone.pairs.tokens(*batch, bank | copies)
            words_PW = torch.from_numpy(words[rows]).to(backbone.device)
            logits = multitask.token_logits(multitask.at_words(x_PSH, words_PW), bank)
            targets = np.where(words[rows] >= 0, labels[rows], -1)
        loss(logits, torch.from_numpy(targets).to(backbone.device)).sum().backward()
        for name, copy_PRH in copies.items():
            assert copy_PRH.grad is not None
            sums[name] += (copy_PRH.grad * copy_PRH.detach()).sum(-1).abs().double().sum(0).cpu()
    return {name: (total / len(row_ids)).numpy() for name, total in sums.items()}


def prune(tensors: Tensors, scores: Scores, *, keep: float) -> Tensors:
    """Returns one task's tensors with the most important share `keep` of the units of every bottleneck.

    At least one unit stays; kept units stay in their order; of equals the first ones stay.
    """
    pruned = dict(tensors)
    for way_out, ways_in in unit_tensors(tensors).items():
        width = max(1, math.ceil(keep * tensors[way_out].shape[0] - 1e-9))
        kept = torch.from_numpy(np.sort(np.argsort(-scores[way_out], kind="stable")[:width]))
        pruned[way_out] = tensors[way_out].index_select(0, kept)
        pruned |= {name: tensors[name].index_select(-1, kept) for name in ways_in}
    return pruned


def width(tensors: Tensors) -> int:
    """Returns the most units that a bottleneck of these tensors has; 0 without any."""
    return max((tensors[name].shape[0] for name in unit_tensors(tensors)), default=0)


def _batches(num_rows: int) -> Iterator[NDArray[np.int64]]:
    for start in range(0, num_rows, _BATCH):
        yield np.arange(start, min(start + _BATCH, num_rows))
