"""The pretrained encoder as the trunk of all tasks, cut where adapters go.

Shape suffixes: B rows, P (row, task) pairs, S tokens, H hidden, A attention heads, D = H / A.
"""

import logging
import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional

from mtlops.data.families import TrunkConfig
from mtlops.errors import ArtefactError
from mtlops.files import atomic_path
from mtlops.model.adapters.anatomy import Adapter, Cut, LayerTensors, Sizes
from mtlops.model.linear import Linear
from mtlops.model.pooling import mean, with_first
from mtlops.model.relative import RelativeBias
from mtlops.params import Model

logger = logging.getLogger(__name__)

_ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "gelu": functional.gelu,
    "gelu_new": partial(functional.gelu, approximate="tanh"),
    "relu": functional.relu,
}

_UNADAPTED = Adapter(Sizes(hidden=1, feed_forward=1), (), Model())


class Layer(nn.Module):
    """One transformer block, in two parts: up to a cut, which all tasks share, and from there on.

    Args:
        config: sizes.
        relative: what attention adds for distances, the trunk's one module for all its layers; None without.
    """

    def __init__(self, config: TrunkConfig, relative: RelativeBias | None = None) -> None:
        super().__init__()
        self._relative = (relative,)  # In a tuple, so that it is a part of the trunk and not of each layer.
        hidden = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.activation = _ACTIVATIONS[config.activation]
        self.query = Linear(hidden, hidden)
        self.key = Linear(hidden, hidden)
        self.value = Linear(hidden, hidden)
        self.attention_output = Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.intermediate = Linear(hidden, config.intermediate_size)
        self.output = Linear(config.intermediate_size, hidden)
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)

    @property
    def has_relative_bias(self) -> bool:
        """Its attention adds a number for the distance of two tokens."""
        return self._relative[0] is not None

    def forward(self, x_BSH: Tensor, mask_BS: Tensor, *, first_token_only: bool = False) -> Tensor:
        """Returns the layer's output without an adapter: (B, S, H), or (B, 1, H) with `first_token_only`."""
        return self.resume(x_BSH, mask_BS, cut=Cut.INPUT, first_token_only=first_token_only)

    def until(self, cut: Cut, x_BSH: Tensor, mask_BS: Tensor) -> Tensor:
        """Returns what lies at the cut: (B, S, H times `cut.vectors`), without an adapter."""
        if cut is Cut.INPUT:
            return x_BSH
        a_BSH = self._attend(x_BSH, x_BSH, LayerTensors({}, mask_BS, []), _UNADAPTED)
        if cut is Cut.ATTENTION:
            return torch.cat([a_BSH, x_BSH], dim=-1)
        sum_BSH, x_BSH = self._feed(a_BSH, x_BSH, LayerTensors({}, mask_BS, []), _UNADAPTED)
        return sum_BSH if cut is Cut.SUM else torch.cat([sum_BSH, x_BSH], dim=-1)

    def settled(self, cut: Cut, state_BSV: Tensor) -> Tensor:
        """Returns the normed token vectors (B, S, H) that a state at the cut holds, without an adapter.

        Where the cut lies behind the feed-forward block, that is the layer's own output.
        """
        if cut is Cut.INPUT:
            return state_BSV
        if cut is Cut.SUM:
            return cast(Tensor, self.norm(state_BSV))
        first_BSH, x_BSH = state_BSV.chunk(2, dim=-1)
        if cut is Cut.ATTENTION:
            return cast(Tensor, self.attention_norm(first_BSH + x_BSH))
        return cast(Tensor, self.norm(first_BSH))

    def resume(
        self,
        state_PSV: Tensor,
        mask_PS: Tensor,
        *,
        cut: Cut,
        adapter: Adapter = _UNADAPTED,
        at: LayerTensors | None = None,
        first_token_only: bool = False,
    ) -> Tensor:
        """Returns the layer's output (P, S, H), or (P, 1, H) with `first_token_only`.

        Args:
            state_PSV: what `until` returned at the same cut.
            mask_PS: 1 for tokens, 0 for padding.
            cut: where the state was taken.
            adapter: what changes the layer; by default nothing does.
            at: the adapter's tensors of this layer.
            first_token_only: the other tokens are keys and values only.
        """
        at = at or LayerTensors({}, mask_PS, [])
        if cut is Cut.INPUT:
            x = state_PSV[:, :1] if first_token_only else state_PSV
            a = self._attend(x, state_PSV, at, adapter)
        else:
            state = state_PSV[:, :1] if first_token_only else state_PSV
            a, x = state.chunk(2, dim=-1) if cut.vectors == 2 else (state, state)
        if cut in (Cut.INPUT, Cut.ATTENTION):
            a, x = self._feed(adapter.attended(a, at), x, at, adapter)
        return adapter.output(a, None if cut is Cut.SUM else x, self.norm, at)

    def _attend(self, query_PTH: Tensor, x_PSH: Tensor, at: LayerTensors, adapter: Adapter) -> Tensor:
        """The attention block's output a (P, T, H), before its residual."""
        query = adapter.projected("query", query_PTH, self.query(query_PTH), at)
        is_frozen = not self.key.weight.requires_grad
        if query_PTH is not x_PSH and adapter.leaves_keys_and_values and is_frozen:
            return self._attend_folded(query, x_PSH, at.mask_PS)
        key = adapter.projected("key", x_PSH, self.key(x_PSH), at)
        value = adapter.projected("value", x_PSH, self.value(x_PSH), at)
        key, value = adapter.prefixed(key, value, at)
        q, k, v = self._split(query), self._split(key), self._split(value)
        asked_PATS = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        scores_PATS = asked_PATS + self._bias(at.mask_PS, num_asking=q.shape[2], num_prefixed=adapter.num_prefixed)
        context_PATD = torch.softmax(scores_PATS, dim=-1) @ v
        merged: Tensor = self.attention_output(context_PATD.transpose(1, 2).flatten(2))
        return merged

    def _attend_folded(self, query_P1H: Tensor, x_PSH: Tensor, mask_PS: Tensor) -> Tensor:
        """The same for one token that asks: neither keys nor values of the others are made, which is most of the work.

        q (x K + k)^T = (q K^T) x^T + q k^T, and softmax does not see the last term, the same for every token;
        sum of p (x V + v) = (sum of p x) V + v, for the shares p add up to 1. K of each head: (A, D, H), V: (A, H, D).
        """
        key_ADH = self.key.weight.unflatten(0, (self.num_heads, -1))
        value_AHD = self.value.weight.unflatten(0, (self.num_heads, -1)).transpose(1, 2)
        query_APD = _one_more(query_P1H.squeeze(1).unflatten(-1, (self.num_heads, -1))).transpose(0, 1)
        asked_PAH = (query_APD @ key_ADH).transpose(0, 1)[:-1] / math.sqrt(key_ADH.shape[1])
        scores_PAS = asked_PAH @ x_PSH.transpose(1, 2) + attention_bias(mask_PS).squeeze(1)
        (relative,) = self._relative
        if relative is not None:
            scores_PAS = scores_PAS + relative(1, mask_PS.shape[1]).squeeze(2)
        seen_PAH = torch.softmax(scores_PAS, dim=-1) @ x_PSH
        context_PAD = (_one_more(seen_PAH).transpose(0, 1) @ value_AHD).transpose(0, 1)[:-1]
        merged: Tensor = self.attention_output((context_PAD.flatten(1) + self.value.bias).unsqueeze(1))
        return merged

    def _bias(self, mask_PS: Tensor, *, num_asking: int, num_prefixed: int = 0) -> Tensor:
        """What is added to attention scores (P, A or 1, T or 1, S) for padding, and for distances, of which keys that
        an adapter puts in front have none.
        """
        bias = attention_bias(functional.pad(mask_PS, (num_prefixed, 0), value=1) if num_prefixed else mask_PS)
        (relative,) = self._relative
        if relative is None:
            return bias
        return bias + functional.pad(relative(num_asking, mask_PS.shape[1]), (num_prefixed, 0))

    def _feed(self, a_PTH: Tensor, x_PTH: Tensor, at: LayerTensors, adapter: Adapter) -> tuple[Tensor, Tensor]:
        """The feed-forward block's f + x and its input x, before the last norm."""
        x = self.attention_norm(a_PTH + x_PTH)
        fed: Tensor = self.output(self.activation(adapter.expanded(self.intermediate(x), at)))
        return fed + x, x

    def _split(self, x_BSH: Tensor) -> Tensor:
        heads: Tensor = x_BSH.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads


class Trunk(nn.Module):
    """A frozen encoder of one of `data.families.FAMILIES`.

    Agrees with the family's model in `transformers`, without its pooler, to float rounding (tested).
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        width = config.embedding_size
        # Nothing is drawn for `load_trunk` to replace: a vocabulary's random numbers take longer than reading it.
        self.word_embeddings = nn.Embedding.from_pretrained(torch.empty(config.vocab_size, width))
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width) if config.type_vocab_size else None
        self.embedding_norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.embeddings_project = Linear(width, config.hidden_size) if width != config.hidden_size else None
        self.relative_bias = RelativeBias(config.num_attention_heads) if config.family.has_relative_bias else None
        self.layers = nn.ModuleList(Layer(config, self.relative_bias) for _ in range(config.num_hidden_layers))
        self.eval().requires_grad_(False)

    @property
    def blocks(self) -> list[Layer]:
        """The layers from the lowest up."""
        return cast(list[Layer], list(self.layers))

    @property
    def sizes(self) -> Sizes:
        """Sizes of a layer."""
        return Sizes(hidden=self.config.hidden_size, feed_forward=self.config.intermediate_size)

    def forward(
        self, input_ids_BS: Tensor, mask_BS: Tensor, *, depth: int, cut: Cut, has_first: bool = False
    ) -> Tensor:
        """Returns layer `depth` up to the cut: what tasks share when no layer below has an adapter.

        With `has_first`, `depth` at least 1, the mean of the first layer's output stands in front (`pooling.opened`).

        Shapes: (B, S, H times `cut.vectors`), S + 1 with `has_first`. Values at padded tokens are finite and
        meaningless.
        """
        x_BSH = first_BSH = self._embed(input_ids_BS)
        for index, layer in enumerate(self.blocks[:depth]):
            x_BSH = layer(x_BSH, mask_BS)
            first_BSH = x_BSH if index == 0 else first_BSH
        state_BSV = self.blocks[depth].until(cut, x_BSH, mask_BS)
        return with_first(state_BSV, mean.pool(first_BSH, mask_BS)) if has_first else state_BSV

    def _embed(self, input_ids_BS: Tensor) -> Tensor:
        embedded = self.word_embeddings(input_ids_BS)
        if self.token_type_embeddings is not None:
            embedded = embedded + self.token_type_embeddings.weight[0]
        x: Tensor = self.embedding_norm(embedded + self.position_embeddings(self._positions(input_ids_BS)))
        return x if self.embeddings_project is None else self.embeddings_project(x)

    def _positions(self, input_ids_BS: Tensor) -> Tensor:
        """Positions of the tokens: (S,), or (B, S) where they are counted from the padding token's id."""
        padding = self.config.padding_position
        if padding is None:
            positions = torch.arange(input_ids_BS.shape[1], device=input_ids_BS.device)
        else:
            counted_BS = input_ids_BS.ne(padding).to(torch.int64)
            positions = counted_BS.cumsum(1) * counted_BS + padding
        # A batch may be padded beyond the last position; no text is longer.
        return positions.clamp(max=self.config.max_position_embeddings - 1)


def _one_more(x_PAD: Tensor) -> Tensor:
    """With a row of zeros at the end: ONNX Runtime 1.31 dies of a product without rows, which is what no pairs give."""
    return functional.pad(x_PAD, (0, 0, 0, 0, 0, 1))


def attention_bias(mask_BS: Tensor) -> Tensor:
    """Returns (B, 1, 1, S) float32 to add to attention scores: 0 for tokens, a large negative number for padding."""
    return (1.0 - mask_BS[:, None, None, :].to(torch.float32)) * -1e9


def load_trunk(folder: Path) -> Trunk:
    """Returns the trunk in `folder` (config.json and model.safetensors), frozen and in evaluation mode.

    Tensors that the trunk has no place for (a pooler, a head) are left out and named in a debug line.

    Raises:
        ArtefactError: a file is missing, or is not what the other one says.
    """
    trunk = Trunk(TrunkConfig.read(folder / "config.json"))
    path = folder / "model.safetensors"
    try:
        tensors = _by_plain_name(load_file(path), trunk.config)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}). Run `mtlops prepare` again.") from None
    names = _names(trunk)
    _check_tensors(path, trunk, names, tensors)
    # The file's own pages, not a copy of them; only other number formats are converted.
    trunk.load_state_dict({ours: tensors[theirs].float() for ours, theirs in names.items()}, assign=True)
    return trunk


def save_trunk(trunk: Trunk, path: Path) -> None:
    """Writes a trunk's weights under the names that `load_trunk` and `transformers` read, in one atomic step."""
    tensors = {theirs: trunk.state_dict()[ours].cpu().contiguous() for ours, theirs in _names(trunk).items()}
    with atomic_path(path) as part:
        part.write_bytes(save(tensors, metadata={"format": "pt"}))


_EMBEDDING_NAMES = {
    "embedding_norm": "embeddings.LayerNorm",
    "embeddings_project": "embeddings_project",
    "relative_bias": "encoder.relative_attention_bias",
}


def _names(trunk: Trunk) -> dict[str, str]:
    """Our parameter names mapped to those of a Hugging Face checkpoint, without the family's prefix."""
    family, names = trunk.config.family, {}
    for ours in trunk.state_dict():
        *path, part, leaf = ours.split(".")
        if path:
            names[ours] = f"{family.layers}.{path[1]}.{family.parts[part]}.{leaf}"
        else:
            names[ours] = f"{_EMBEDDING_NAMES.get(part, f'embeddings.{part}')}.{leaf}"
    return names


def _by_plain_name(tensors: Mapping[str, Tensor], config: TrunkConfig) -> dict[str, Tensor]:
    """A checkpoint's tensors without the family's prefix, and with today's names of a norm's two tensors."""
    plain = {}
    for name, tensor in tensors.items():
        base, _, leaf = name.removeprefix(config.family.prefix).rpartition(".")
        is_norm = base.endswith(("LayerNorm", "layer_norm"))
        plain[f"{base}.{({'gamma': 'weight', 'beta': 'bias'} if is_norm else {}).get(leaf, leaf)}"] = tensor
    return plain


def _check_tensors(path: Path, trunk: Trunk, names: Mapping[str, str], tensors: Mapping[str, Tensor]) -> None:
    family, depth = trunk.config.family, trunk.config.num_hidden_layers
    start = f"{family.layers}."
    layers = {name.removeprefix(start).partition(".")[0] for name in tensors if name.startswith(start)}
    if layers and len(layers) != depth:
        raise ArtefactError(f"{path}: does not fit its config.json: {len(layers)} layers, {depth} are expected.")
    for ours, expected in trunk.state_dict().items():
        theirs = names[ours]
        if theirs not in tensors:
            raise ArtefactError(f"{path}: does not fit its config.json: it has no tensor {theirs}.")
        if tensors[theirs].shape != expected.shape:
            raise ArtefactError(
                f"{path}: does not fit its config.json: {theirs} has shape {tuple(tensors[theirs].shape)}, "
                f"{tuple(expected.shape)} is expected."
            )
    if unused := sorted(tensors.keys() - set(names.values())):
        logger.debug("%s: left out tensors=%s", path, ",".join(unused))
