"""A real BERT encoder of a few kilobytes with random weights, for tests that need no quality."""

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel

from mtlops.files import sha256_file

WORDS = (
    "the a of and is was not very good great bad awful fine film plot movie actor phone battery screen game team "
    "goal engine car road god church planet moon chip disk code vote law it this that i you we loved hated"
).split()


def write_encoder(folder: Path, *, hidden: int = 16, layers: int = 3, seed: int = 0) -> Path:
    """Writes config.json, model.safetensors and tokenizer.json, as a user's encoder folder holds them."""
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary), hidden_size=hidden, num_hidden_layers=layers, num_attention_heads=4,
        intermediate_size=4 * hidden, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    model = BertModel(config, add_pooling_layer=False)
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config.to_dict()), encoding="utf-8")
    _tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    return folder


def write_prepared_encoder(folder: Path, **sizes: int) -> Path:
    """Writes the same as `prepare` leaves it: with encoder.json."""
    write_encoder(folder, **sizes)
    facts = {
        "name": "tiny",
        "requirement": None,
        "licence": "none",
        "trunk_sha256": sha256_file(folder / "model.safetensors"),
        "tokenizer_sha256": sha256_file(folder / "tokenizer.json"),
    }
    (folder / "encoder.json").write_text(json.dumps(facts), encoding="utf-8")
    return folder


def _tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return tokenizer
