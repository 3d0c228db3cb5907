"""A second stage over trained adapters: each task learns which of all tasks' adapters to listen to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Generator, Tensor, nn

from mtlops.model.adapters.anatomy import Adapter, Cut, LayerTensors, Tensors
from mtlops.model.adapters.pfeiffer import Pfeiffer

_PARTS = ("down", "down_bias", "up", "up_bias")
_PULL = 0.01


class Fusion(Adapter):
    """out = LN(f + sum_k softmax_k(Q z . K u_k) V u_k + x), with z = LN(f + x) and u_k = U_k relu(D_k z).

    The K sources u are Pfeiffer adapters of a first stage; they stay as they are, and every task that listens to
    them keeps its own copy, so that retraining a source changes no other task. Q and K have biases. V starts as the
    identity and is pulled to it by 0.01 ||V - I||^2.

    Source: Pfeiffer et al. 2021, "AdapterFusion", section 3.2, arXiv:2005.00247, in the form that AdapterHub
    implements; AdapterHub's weight decay of V, which pulls it to zero, is left out.

    Attributes:
        sources: `layers.<i>.<part>` of the K sources, stacked (K, ...); the first stage's result.
        names: of the sources.
    """

    cut = Cut.SUM
    neutral = False
    undecayed = ("value",)
    reduction = Pfeiffer.reduction

    sources: Tensors
    names: tuple[str, ...]
    _seen: dict[int, list[Tensor]] | None = None

    def listen_to(self, tasks: Sequence[Tensors], *, names: Sequence[str]) -> None:
        """Makes the adapters of these tasks the sources, in this order, under these names."""
        self.names = tuple(names)
        parts = [f"layers.{i}.{part}" for i in self.layers for part in _PARTS]
        self.sources = {part: torch.stack([tensors[part] for tensors in tasks]).detach() for part in parts}

    def init(self, generator: Generator) -> Tensors:
        """Returns query, key, value (H, H) and the biases of query and key (H,)."""
        hidden = self.sizes.hidden
        tensors = {name: torch.randn(hidden, hidden, generator=generator) * 0.02 for name in ("query", "key")}
        biases = {f"{name}_bias": torch.zeros(hidden) for name in tensors}
        return {**tensors, **biases, "value": torch.eye(hidden)}

    def bank(self, trained: Tensors, *, training: bool) -> Tensors:
        """Returns the trained tensors with the sources."""
        return {**{name: tensor.to(trained["head.bias"]) for name, tensor in self.sources.items()}, **trained}

    def output(self, sum_PTH: Tensor, x_PTH: Tensor | None, norm: nn.Module, at: LayerTensors) -> Tensor:
        """Returns the fused output of a layer; in training it adds the pull of V to the penalties."""
        z_PTH = norm(sum_PTH)
        a_PKTR = torch.relu(z_PTH.unsqueeze(1) @ at["down"] + at["down_bias"].unsqueeze(2))
        u_PKTH = a_PKTR @ at["up"] + at["up_bias"].unsqueeze(2)
        query_PTH = z_PTH @ at["query"] + at["query_bias"].unsqueeze(1)
        key_PKTH = u_PKTH @ at["key"].unsqueeze(1) + at["key_bias"][:, None, None]
        weight_PKT = torch.softmax((query_PTH.unsqueeze(1) * key_PKTH).sum(-1), dim=1)
        self._see(weight_PKT, at)
        mixed_PTH = (weight_PKT.unsqueeze(-1) * u_PKTH).sum(1) @ at["value"]
        identity = torch.eye(at["value"].shape[-1], device=z_PTH.device, dtype=z_PTH.dtype)
        at.penalties.append(_PULL * (at["value"] - identity).square().sum(dim=(1, 2)).expand(z_PTH.shape[0]))
        out: Tensor = norm(sum_PTH + mixed_PTH)
        return out

    @contextmanager
    def watched(self) -> Iterator[dict[int, list[Tensor]]]:
        """Collects, while it is open, by layer the mean weight of each source over a text's tokens: (P, K) a pass."""
        self._seen = {layer: [] for layer in self.layers}
        try:
            yield self._seen
        finally:
            self._seen = None

    def _see(self, weight_PKT: Tensor, at: LayerTensors) -> None:
        if self._seen is None:
            return
        mask_P1T = at.mask_PS[:, None, : weight_PKT.shape[2]].to(weight_PKT.dtype)
        self._seen[at.layer].append((weight_PKT * mask_P1T).sum(2) / mask_P1T.sum(2))


def keep_sources(tensors: Tensors, kept: dict[int, list[int]]) -> Tensors:
    """Returns one task's served tensors with only these sources of each layer, by position."""

    def chosen(name: str, tensor: Tensor) -> Tensor:
        _, layer, part = name.split(".")
        return tensor[kept[int(layer)]] if part in _PARTS else tensor

    return {n: chosen(n, t) if n.startswith("layers.") else t for n, t in tensors.items()}
