"""The multi-task model: what lies above the cut, for any mixture of (row, task) pairs.

The trunk below the lowest adapter is the same for every task and runs once per row (`encoders.Trunk`).
From there on each pair of a row and a task has its own adapters and head, picked from a bank by the
task's position. Shape suffixes: T tasks, P pairs, S tokens, H hidden, V values at the cut, C widest task's outputs.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor, nn
from torch.utils.checkpoint import checkpoint

from mtlops import catalog
from mtlops.errors import UsageError
from mtlops.model.adapters.anatomy import Adapter, Cut, LayerTensors, Tensors
from mtlops.model.encoders import Trunk
from mtlops.model.pooling import mean
from mtlops.model.state import AboveCut
from mtlops.params import Model
from mtlops.tasks import Task


@dataclass(frozen=True)
class _Pass:
    """What a pass over the layers is given beside their input; see `PairModel.forward`."""

    mask_PS: Tensor
    bank: Mapping[str, Tensor]
    skipped: Collection[int]
    penalties: list[Tensor]
    recompute: bool
    counts: Sequence[int] = ()


class PairModel(AboveCut, nn.Module):
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
        self.depth = model.adapter_drop
        self.hidden = trunk.config.hidden_size
        self.layers = trunk.blocks[self.depth :]
        positions = range(self.depth, len(trunk.layers))
        self.adapter: Adapter = catalog.load(catalog.ADAPTERS[model.adapter].code)(trunk.sizes, positions, model)
        self.cut = self.adapter.cut
        self.pooling = catalog.load(catalog.POOLINGS[model.pooling].code)
        self._unadapted = Adapter(trunk.sizes, (), model)

    def forward(
        self,
        state_PSV: Tensor,
        mask_PS: Tensor,
        bank: Mapping[str, Tensor],
        *,
        counts: Sequence[int] = (),
        skipped: Collection[int] = (),
        penalties: list[Tensor] | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Returns the pooled vector of each pair.

        Shapes: state_PSV: what `state` returned, one row a pair; bank: tensors by name with P (or 1) in front;
        result (P, H).

        Args:
            state_PSV: see above.
            mask_PS: 1 for tokens, 0 for padding.
            bank: tensors of the pairs' tasks.
            counts: how many consecutive pairs share each of the bank's tensors, if it has one a group of pairs.
            skipped: layers whose adapters are left out of this pass.
            penalties: gets the losses (P,) that adapters add in training.
            recompute: keep only each layer's input for the backward pass, which computes the rest again (Chen et al.
                2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174).
        """
        one = _Pass(mask_PS, bank, skipped, [] if penalties is None else penalties, recompute, counts)
        return self._pooled(self._below_last(state_PSV, one), one)

    def tokens(
        self,
        state_PSV: Tensor,
        mask_PS: Tensor,
        bank: Mapping[str, Tensor],
        *,
        counts: Sequence[int] = (),
        skipped: Collection[int] = (),
        penalties: list[Tensor] | None = None,
        recompute: bool = False,
    ) -> Tensor:
        """Returns the last layer's vector of each token of each pair, (P, S, H). The arguments are those of a call."""
        one = _Pass(mask_PS, bank, skipped, [] if penalties is None else penalties, recompute, counts)
        return self._last(self._below_last(state_PSV, one)[0], one, first_token_only=False)

    def pooled_and_tokens(
        self, state_PSV: Tensor, mask_PS: Tensor, bank: Mapping[str, Tensor], *, chosen_Q: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns the pooled vector of each pair (P, H), and the vectors of all tokens of some pairs (Q, S, H).

        `chosen_Q`: positions of these among the pairs. Only the last layer is computed apart for them.
        """
        one = _Pass(mask_PS, bank, (), [], recompute=False)
        below = self._below_last(state_PSV, one)
        some = _Pass(mask_PS.index_select(0, chosen_Q), pick(bank, chosen_Q), (), [], recompute=False)
        return self._pooled(below, one), self._last(below[0].index_select(0, chosen_Q), some, first_token_only=False)

    def _below_last(self, state_PSV: Tensor, one: _Pass) -> tuple[Tensor, Tensor | None]:
        """What the last layer reads, and the first layer's mean where it is known by then."""
        first_PH, x = self._opened(state_PSV)
        for index in range(len(self.layers) - 1):
            x = self._run(index, x, one)
            first_PH = self._first(self.depth + index, x, one.mask_PS, first_PH)
        return x, first_PH

    def _last(self, x: Tensor, one: _Pass, *, first_token_only: bool) -> Tensor:
        return self._run(len(self.layers) - 1, x, one, first_token_only=first_token_only)

    def _pooled(self, below: tuple[Tensor, Tensor | None], one: _Pass) -> Tensor:
        x = self._last(below[0], one, first_token_only=self.pooling.first_token_only)
        first_PH = self._first(self.depth + len(self.layers) - 1, x, one.mask_PS, below[1])
        return self.pooling.over(x, one.mask_PS, first_PH)

    def _run(self, index: int, x: Tensor, one: _Pass, *, first_token_only: bool = False) -> Tensor:
        position = self.depth + index
        resume = partial(
            self.layers[index].resume,
            cut=self.cut if index == 0 else Cut.INPUT,
            adapter=self._unadapted if position in one.skipped else self.adapter,
            at=LayerTensors(
                _of_layer(one.bank, position), one.mask_PS, one.penalties, layer=position, counts=one.counts
            ),
            first_token_only=first_token_only,
        )
        # Nothing in a layer draws random numbers: there is no state of them to keep.
        return _recomputed(resume, x, one.mask_PS) if one.recompute else resume(x, one.mask_PS)

    def embedding(self, state_BSV: Tensor, mask_BS: Tensor, *, layer: str) -> Tensor:
        """Returns the text vectors (B, H) that drift watches: the mean over tokens of the frozen encoder.

        `layer`: `last`, or `cut` for what lies there (`drift.embedding` of params.yaml).
        """
        at_cut = self._opened(state_BSV)[1]
        x_BSH = self.frozen(state_BSV, mask_BS) if layer == "last" else self.layers[0].settled(self.cut, at_cut)
        vectors: Tensor = mean.pool(x_BSH, mask_BS)
        return vectors

    def frozen(self, state_BSV: Tensor, mask_BS: Tensor) -> Tensor:
        """Returns the last token vectors (B, S, H) of the trunk alone, without any adapter."""
        x_BSH = self.layers[0].resume(self._opened(state_BSV)[1], mask_BS, cut=self.cut)
        for layer in self.layers[1:]:
            x_BSH = layer(x_BSH, mask_BS)
        return x_BSH

    def init(self, task: Task, generator: Generator) -> Tensors:
        """Returns fresh tensors of one task, in the form that is trained."""
        tensors = self.adapter.init_task(generator)
        head = torch.randn(self.hidden, task.num_outputs, generator=generator) * self.hidden**-0.5
        return {**tensors, "head.weight": head, "head.bias": torch.zeros(task.num_outputs)}


def _recomputed(resume: Callable[[Tensor, Tensor], Tensor], x: Tensor, mask_PS: Tensor) -> Tensor:
    out: Tensor = checkpoint(resume, x, mask_PS, use_reentrant=False, preserve_rng_state=False)
    return out


def stack(tasks: Sequence[Mapping[str, Tensor]]) -> Tensors:
    """Returns the bank of several tasks: each tensor stacked to (T, ...).

    Heads and bottlenecks are padded with zeros to the widest task's: outputs that nobody reads, units that add nothing.
    """
    return {name: torch.stack(_padded(name, [tensors[name] for tensors in tasks])) for name in tasks[0]}


def pick(bank: Mapping[str, Tensor], task_P: Tensor) -> Tensors:
    """Returns the bank's tensors for each pair: (T, ...) and task positions (P,) to (P, ...)."""
    return {name: tensor.index_select(0, task_P) for name, tensor in bank.items()}


def logits(pooled_PH: Tensor, bank: Mapping[str, Tensor]) -> Tensor:
    """Returns (P, C) logits of the heads; columns beyond a task's own outputs are 0."""
    return (pooled_PH.unsqueeze(1) @ bank["head.weight"]).squeeze(1) + bank["head.bias"]


def at_words(x_PSH: Tensor, words_PW: Tensor) -> Tensor:
    """Returns the vectors (P, W, H) of the tokens at which words are judged; of a word without token (-1) anything."""
    index_PWH = words_PW.clamp(min=0).unsqueeze(-1).expand(-1, -1, x_PSH.shape[-1])
    return x_PSH.gather(1, index_PWH)


def token_logits(x_PSH: Tensor, bank: Mapping[str, Tensor]) -> Tensor:
    """Returns (P, S, C) logits of the heads for each token; columns beyond a task's own outputs are 0."""
    return x_PSH @ bank["head.weight"] + bank["head.bias"].unsqueeze(1)


_PADDED = ("down", "down_bias", "up", "_a", "_b")


def _padded(name: str, tensors: list[Tensor]) -> list[Tensor]:
    if not name.startswith("head.") and not (name.endswith(_PADDED) and tensors[0].ndim <= 2):
        return tensors
    widest = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]

    def padded(tensor: Tensor) -> Tensor:
        missing = [n for size, wide in zip(tensor.shape, widest, strict=True) for n in (wide - size, 0)]
        return nn.functional.pad(tensor, missing[::-1])

    return [padded(tensor) for tensor in tensors]


def _of_layer(bank: Mapping[str, Tensor], layer: int) -> Tensors:
    prefix = f"layers.{layer}."
    return {name.removeprefix(prefix): tensor for name, tensor in bank.items() if name.startswith(prefix)}
