"""The pretrained encoder as the trunk of all tasks, cut where adapters go.

Shape suffixes: B rows, P (row, task) pairs, S tokens, H hidden, A attention heads, D = H / A.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from mtlops.errors import ArtefactError


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes of a BERT-family encoder, as its config.json names them."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float

    @classmethod
    def read(cls, path: Path) -> "TrunkConfig":
        """Returns the sizes in a config.json.

        Raises:
            ArtefactError: the file is missing, is not of a BERT encoder, or lacks a size.
        """
        try:
            value = json.loads(path.read_text(encoding="utf-8"))
            if value.get("model_type") != "bert" or value.get("hidden_act", "gelu") != "gelu":
                raise ArtefactError(
                    f"{path}: model_type is {value.get('model_type')!r} with activation {value.get('hidden_act')!r}; "
                    f"only 'bert' with 'gelu' can be a trunk. Choose another encoder.source."
                )
            return cls(**{name: value[name] for name in cls.__dataclass_fields__})
        except (OSError, json.JSONDecodeError, KeyError) as error:
            raise ArtefactError(f"{path}: is not the config.json of a BERT encoder ({error!r}).") from None


class Layer(nn.Module):
    """One transformer block, stopped just before its last layer norm: that is where an adapter sits."""

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.num_heads = config.num_attention_heads
        self.query = nn.Linear(hidden, hidden)
        self.key = nn.Linear(hidden, hidden)
        self.value = nn.Linear(hidden, hidden)
        self.attention_output = nn.Linear(hidden, hidden)
        self.attention_norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)
        self.intermediate = nn.Linear(hidden, config.intermediate_size)
        self.output = nn.Linear(config.intermediate_size, hidden)
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)

    def forward(self, x_BSH: Tensor, bias_B11S: Tensor, *, first_token_only: bool = False) -> Tensor:
        """Returns f + x, the feed-forward output plus its input, before the last layer norm.

        Shapes: (B, S, H), or (B, 1, H) with `first_token_only`: then the other tokens are keys and values only.
        """
        query_BTH = x_BSH[:, :1] if first_token_only else x_BSH
        attended = self.attention_output(self._attention(query_BTH, x_BSH, bias_B11S))
        x = self.attention_norm(attended + query_BTH)
        fed: Tensor = self.output(functional.gelu(self.intermediate(x)))
        pre_norm: Tensor = fed + x
        return pre_norm

    def _attention(self, query_BTH: Tensor, x_BSH: Tensor, bias_B11S: Tensor) -> Tensor:
        q = self._split(self.query(query_BTH))
        k = self._split(self.key(x_BSH))
        v = self._split(self.value(x_BSH))
        scores_BATS = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]) + bias_B11S
        context_BATD = torch.softmax(scores_BATS, dim=-1) @ v
        merged: Tensor = context_BATD.transpose(1, 2).flatten(2)
        return merged

    def _split(self, x_BSH: Tensor) -> Tensor:
        heads: Tensor = x_BSH.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return heads


class Trunk(nn.Module):
    """A frozen BERT-family encoder.

    Agrees with `transformers.BertModel` without its pooler to float rounding (tested).
    """

    def __init__(self, config: TrunkConfig) -> None:
        super().__init__()
        self.config = config
        self.word_embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, config.hidden_size)
        self.embedding_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.num_hidden_layers))
        self.eval().requires_grad_(False)

    @property
    def blocks(self) -> list[Layer]:
        """The layers from the lowest up."""
        return cast(list[Layer], list(self.layers))

    def forward(self, input_ids_BS: Tensor, mask_BS: Tensor, *, depth: int) -> Tensor:
        """Returns the pre-norm output f + x of layer `depth`: what tasks share when no layer below has an adapter.

        Shapes: (B, S, H). Values at padded tokens are finite and meaningless.
        """
        positions = torch.arange(input_ids_BS.shape[1], device=input_ids_BS.device)
        embedded = self.word_embeddings(input_ids_BS) + self.token_type_embeddings.weight[0]
        x_BSH = self.embedding_norm(embedded + self.position_embeddings(positions))
        bias = attention_bias(mask_BS)
        for layer in self.blocks[:depth]:
            x_BSH = layer.norm(layer(x_BSH, bias))
        shared: Tensor = self.blocks[depth](x_BSH, bias)
        return shared


def attention_bias(mask_BS: Tensor) -> Tensor:
    """Returns (B, 1, 1, S) float32 to add to attention scores: 0 for tokens, a large negative number for padding."""
    return (1.0 - mask_BS[:, None, None, :].to(torch.float32)) * -1e9


def load_trunk(folder: Path) -> Trunk:
    """Returns the trunk in `folder` (config.json and model.safetensors), frozen and in evaluation mode.

    Raises:
        ArtefactError: a file is missing or does not hold a BERT encoder.
    """
    trunk = Trunk(TrunkConfig.read(folder / "config.json"))
    path = folder / "model.safetensors"
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}). Run `mtlops prepare` again.") from None
    try:
        trunk.load_state_dict({ours: tensors[theirs] for ours, theirs in _names(trunk, tensors).items()})
    except (KeyError, RuntimeError) as error:
        raise ArtefactError(f"{path}: does not fit its config.json ({error}).") from None
    return trunk


_HUGGING_FACE_NAMES = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "norm": "output.LayerNorm",
    "embedding_norm": "LayerNorm",
}


def _names(trunk: Trunk, tensors: dict[str, Tensor]) -> dict[str, str]:
    """Our parameter names mapped to those of a Hugging Face checkpoint, with or without the prefix `bert.`."""
    prefix = "bert." if any(name.startswith("bert.") for name in tensors) else ""
    names = {}
    for ours in trunk.state_dict():
        *path, part, leaf = ours.split(".")
        block = f"encoder.layer.{path[1]}" if path else "embeddings"
        names[ours] = f"{prefix}{block}.{_HUGGING_FACE_NAMES.get(part, part)}.{leaf}"
    return names
