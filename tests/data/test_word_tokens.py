"""Where a text's words begin among its tokens: as tokenizers say it that are given the words themselves."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from mtlops.data.tokenisation import Tokenizer

TEXTS = ["unlovable films !", "a", "loved it , loved it", "film's end ( unfilmed )", ""]


def _word_pieces() -> FastTokenizer:
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "un", "##lov", "##able", "##ed", "film", "##s", "##ed", "lov", "it"]
    vocabulary = {
        piece: i for i, piece in enumerate(dict.fromkeys([*pieces, "!", ",", "'", "s", "end", "(", ")", "a"]))
    }
    tokenizer = FastTokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer()
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
    )
    return tokenizer


def _bytes(*, trims: bool) -> FastTokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "</s>", "<pad>", *alphabet, "Ġf", "Ġfi", "lm", "Ġl"]
    merges = [("Ġ", "f"), ("Ġf", "i"), ("l", "m"), ("Ġ", "l")]
    tokenizer = FastTokenizer(models.BPE({token: i for i, token in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 1), ("<s>", 0), trim_offsets=trims)
    return tokenizer


@pytest.mark.parametrize("kind", ["word pieces", "bytes", "bytes with the space"])
def test_positions_are_those_of_a_tokenizer_that_is_given_words(tmp_path: Path, kind: str) -> None:
    """Its `word_ids`, as `is_split_into_words` of transformers gives them."""
    made = _word_pieces() if kind == "word pieces" else _bytes(trims=kind == "bytes")
    made.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", max_tokens=100)
    found = tokenizer.word_tokens(TEXTS)
    for text, ids, positions in zip(TEXTS, tokenizer.ids(TEXTS), found, strict=True):
        words = text.split()
        encoding = made.encode(words, is_pretokenized=True) if words else made.encode("")
        assert encoding.ids == ids
        assert positions[: len(words)].tolist() == [encoding.word_ids.index(word) for word in range(len(words))]
        assert (positions[len(words) :] == -1).all()


def test_words_behind_the_cut_have_no_token(tmp_path: Path) -> None:
    _word_pieces().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", max_tokens=6)
    ids, positions = tokenizer.ids(["unlovable film it it"])[0], tokenizer.word_tokens(["unlovable film it it"])
    assert len(ids) == 6
    np.testing.assert_array_equal(positions, [[1, 4, -1, -1]])


def test_a_word_of_which_the_tokenizer_keeps_nothing_has_no_token(tmp_path: Path) -> None:
    """Between others, so that the tags behind it stay with their words."""
    _word_pieces().save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer(tmp_path / "tokenizer.json", max_tokens=20)
    np.testing.assert_array_equal(tokenizer.word_tokens(["it \u200b it"]), [[1, -1, 2]])
