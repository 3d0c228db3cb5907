"""Real encoders of a few kilobytes with random weights, for tests that need no quality."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel

from mtlops.files import sha256_file

WORDS = (
    "the a of and is was not very good great bad awful fine film plot movie actor phone battery screen game team "
    "goal engine car road god church planet moon chip disk code vote law it this that i you we loved hated"
).split()

_BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
_ROBERTA_TOKENS = ("<s>", "<pad>", "</s>", "<unk>")


def write_encoder(folder: Path, *, hidden: int = 16, layers: int = 3, seed: int = 0, family: str = "bert") -> Path:
    """Writes config.json, model.safetensors and tokenizer.json, as a user's encoder folder holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    config = make_config(family, hidden=hidden, layers=layers)
    model = make_model(config, seed=seed)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    make_tokenizer(family).save(str(folder / "tokenizer.json"))
    return folder


def write_prepared_encoder(folder: Path, *, family: str = "bert", **sizes: int) -> Path:
    """Writes the same as `prepare` leaves it: with encoder.json."""
    write_encoder(folder, family=family, **sizes)
    facts = {
        "name": "tiny",
        "requirement": None,
        "licence": "none",
        "trunk_sha256": sha256_file(folder / "model.safetensors"),
        "tokenizer_sha256": sha256_file(folder / "tokenizer.json"),
    }
    (folder / "encoder.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def make_config(family: str, *, hidden: int = 16, layers: int = 3, **settings: object) -> PretrainedConfig:
    """Returns a configuration of transformers; DistilBERT has its own words for the same sizes."""
    counts_from_padding = family in ("roberta", "xlm-roberta", "camembert", "mpnet")
    sizes = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
        "intermediate_size": 4 * hidden,
    }
    if family == "distilbert":
        sizes = {"dim": hidden, "n_layers": layers, "n_heads": 4, "hidden_dim": 4 * hidden}
    if family == "electra":
        sizes["embedding_size"] = hidden // 2
    return AutoConfig.for_model(
        family, **sizes, vocab_size=len(WORDS) + 4, max_position_embeddings=66 if counts_from_padding else 64,
        initializer_range=0.2, **settings,
    )  # fmt: skip


def make_model(config: PretrainedConfig, *, seed: int = 0) -> PreTrainedModel:
    """Returns the base model without a pooler, with random norms and biases too."""
    torch.manual_seed(seed)
    has_pooler = config.model_type in ("bert", "roberta", "xlm-roberta", "camembert", "mpnet")
    model = AutoModel.from_config(config, **({"add_pooling_layer": False} if has_pooler else {}))
    return model.eval()


def make_tokenizer(family: str) -> Tokenizer:
    """Returns a tokenizer of whole words with the family's special tokens; RoBERTa's padding token is 1."""
    is_bert = family in ("bert", "distilbert", "electra")
    special = _BERT_TOKENS if is_bert else _ROBERTA_TOKENS
    pad, unknown, first, last = special if is_bert else (special[1], special[3], special[0], special[2])
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, vocabulary[first]), (last, vocabulary[last])]
    )
    tokenizer.add_special_tokens([pad])
    return tokenizer
