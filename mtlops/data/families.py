"""The families of encoders that can be a trunk: what each calls its sizes and its tensors."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from mtlops.catalog import suggest
from mtlops.errors import ArtefactError, DataError

ACTIVATIONS = ("gelu", "gelu_new", "relu")
"""Activations of the feed-forward block; `gelu_new` is the one with tanh."""

_BERT_PARTS = MappingProxyType({
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "attention_output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "norm": "output.LayerNorm",
})  # fmt: skip
_MPNET_PARTS = MappingProxyType({
    **_BERT_PARTS,
    "query": "attention.attn.q",
    "key": "attention.attn.k",
    "value": "attention.attn.v",
    "attention_output": "attention.attn.o",
    "attention_norm": "attention.LayerNorm",
})  # fmt: skip
_DISTILBERT_PARTS = MappingProxyType({
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "attention_output": "attention.out_lin",
    "attention_norm": "sa_layer_norm",
    "intermediate": "ffn.lin1",
    "output": "ffn.lin2",
    "norm": "output_layer_norm",
})  # fmt: skip
_DISTILBERT_KEYS = MappingProxyType({
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "hidden_dim",
    "hidden_act": "activation",
})  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How one family of encoders differs from BERT.

    Attributes:
        prefix: what stands in front of tensor names where a checkpoint also has a head.
        layers: where its layers are.
        parts: our name of a part of a layer -> theirs.
        keys: BERT's key in config.json -> theirs, where another word is used.
        has_token_types: it adds the vector of a token type; ours is always the first one.
        has_embedding_size: its embeddings may be narrower than its layers.
        layer_norm_eps: where config.json does not say it.
        counts_from_padding: the first token has the position after the padding token's id, and padding tokens
            are not counted (fairseq's way).
        has_relative_bias: attention also looks at the distance of two tokens (`model.relative`).
    """

    prefix: str
    layers: str = "encoder.layer"
    parts: Mapping[str, str] = field(default_factory=lambda: _BERT_PARTS)
    keys: Mapping[str, str] = field(default_factory=dict)
    has_token_types: bool = True
    has_embedding_size: bool = False
    layer_norm_eps: float | None = None
    counts_from_padding: bool = False
    has_relative_bias: bool = False


FAMILIES: Mapping[str, Family] = MappingProxyType({
    "bert": Family("bert."),
    "roberta": Family("roberta.", counts_from_padding=True),
    "xlm-roberta": Family("roberta.", counts_from_padding=True),
    "camembert": Family("roberta.", counts_from_padding=True),
    "distilbert": Family(
        "distilbert.", "transformer.layer", _DISTILBERT_PARTS, _DISTILBERT_KEYS,
        has_token_types=False, layer_norm_eps=1e-12,
    ),
    "electra": Family("electra.", has_embedding_size=True),
    "mpnet": Family(
        "mpnet.", parts=_MPNET_PARTS, has_token_types=False, counts_from_padding=True, has_relative_bias=True,
    ),
})  # fmt: skip
"""By `model_type` of config.json. Not here: DeBERTa and others whose keys depend on relative positions."""


@dataclass(frozen=True)
class TrunkConfig:
    """Sizes of an encoder.

    Attributes:
        model_type: a name of `FAMILIES`.
        type_vocab_size: token types; 0 where the family has none.
        activation: one of `ACTIVATIONS`.
        padding_position: the padding token's id where positions are counted from it, else None.
    """

    model_type: str
    vocab_size: int
    embedding_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    intermediate_size: int
    max_position_embeddings: int
    type_vocab_size: int
    layer_norm_eps: float
    activation: str
    padding_position: int | None

    @property
    def family(self) -> Family:
        """How its config and checkpoint name things."""
        return FAMILIES[self.model_type]

    @property
    def max_tokens(self) -> int:
        """The longest text that has positions, special tokens included."""
        return self.max_position_embeddings - (0 if self.padding_position is None else self.padding_position + 1)

    @classmethod
    def read(cls, path: Path) -> "TrunkConfig":
        """Returns the sizes in the config.json that `prepare` wrote.

        Raises:
            ArtefactError: the file is missing or not what `parse` wants.
        """
        try:
            return cls.parse(json.loads(path.read_text(encoding="utf-8")), where=str(path))
        except (OSError, ValueError) as error:
            raise ArtefactError(f"{path}: cannot be read ({error}). Run `mtlops prepare` again.") from None
        except DataError as error:
            raise ArtefactError(str(error)) from None

    @classmethod
    def parse(cls, value: Mapping[str, Any], *, where: str) -> "TrunkConfig":
        """Returns the sizes in the content of a config.json; messages name it `where`.

        Raises:
            DataError: it is not of an encoder that can be a trunk, or lacks a size.
        """
        model_type = value.get("model_type")
        if not isinstance(model_type, str) or model_type not in FAMILIES:
            raise DataError(
                f"{where}: model_type is {model_type!r}, which cannot be a trunk. Choose an encoder of one of: "
                f"{', '.join(FAMILIES)}."
            )
        family = FAMILIES[model_type]
        reader = _Reader(value, family, where)
        reader.refuse("position_embedding_type", ("absolute", None), "only absolute positions are known")
        if family.has_relative_bias:
            reader.refuse("relative_attention_num_buckets", (32, None), "only 32 ranges of distances are known")
        reader.refuse("is_decoder", (False, None), "only encoders, which see the whole text, can be a trunk")
        activation = value.get(family.keys.get("hidden_act", "hidden_act"), "gelu")
        if activation not in ACTIVATIONS:
            raise DataError(
                f"{where}: activation {activation!r} is not known. {suggest(str(activation), [*ACTIVATIONS])}"
            )
        hidden, heads = reader.size("hidden_size"), reader.size("num_attention_heads")
        if hidden % heads:
            raise DataError(f"{where}: {heads} attention heads do not divide the hidden size {hidden}.")
        return cls(
            model_type=model_type,
            vocab_size=reader.size("vocab_size"),
            embedding_size=reader.size("embedding_size") if family.has_embedding_size else hidden,
            hidden_size=hidden,
            num_hidden_layers=reader.size("num_hidden_layers"),
            num_attention_heads=heads,
            intermediate_size=reader.size("intermediate_size"),
            max_position_embeddings=reader.size("max_position_embeddings"),
            type_vocab_size=reader.size("type_vocab_size") if family.has_token_types else 0,
            layer_norm_eps=family.layer_norm_eps or reader.number("layer_norm_eps"),
            activation=activation,
            padding_position=reader.size("pad_token_id", least=0) if family.counts_from_padding else None,
        )


@dataclass(frozen=True)
class _Reader:
    """Values of a config.json by BERT's keys."""

    value: Mapping[str, Any]
    family: Family
    where: str

    def number(self, key: str) -> float:
        theirs = self.family.keys.get(key, key)
        number = self.value.get(theirs)
        if isinstance(number, bool) or not isinstance(number, int | float):
            raise DataError(f"{self.where}: {theirs} is {number!r}; a number is needed.")
        return number

    def size(self, key: str, *, least: int = 1) -> int:
        number = self.number(key)
        if not isinstance(number, int) or number < least:
            theirs = self.family.keys.get(key, key)
            raise DataError(f"{self.where}: {theirs} is {number}; a whole number of at least {least} is needed.")
        return number

    def refuse(self, key: str, allowed: tuple[Any, ...], reason: str) -> None:
        if self.value.get(key) not in allowed:
            raise DataError(f"{self.where}: {key} is {self.value[key]!r}; {reason}. Choose another encoder.source.")
