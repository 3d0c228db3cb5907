"""Texts to token ids: one class for training, export and serving, so that they cannot disagree."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer as FastTokenizer

from mtlops.data.normalisation import normalise
from mtlops.errors import ArtefactError


class Tokenizer:
    """The encoder's own tokenizer, with our truncation and no padding of its own.

    Attributes:
        pad_id: the padding token's id, as `prepare` wrote it; 0 in a file that does not say it.

        max_tokens: see below.

    Args:
        path: a `tokenizer.json` of Hugging Face tokenizers.
        max_tokens: longer texts are cut to this many tokens, special tokens included.

    Raises:
        ArtefactError: the file is missing or not a tokenizer.
    """

    def __init__(self, path: Path, *, max_tokens: int) -> None:
        try:
            self._tokenizer = FastTokenizer.from_file(str(path))
        except Exception as error:  # noqa: BLE001 - tokenizers raises bare Exception for every fault
            raise ArtefactError(f"{path}: is not a readable tokenizer ({error}). Make it again.") from None
        self.pad_id: int = (self._tokenizer.padding or {"pad_id": 0})["pad_id"]
        self._tokenizer.no_padding()
        self.max_tokens = max_tokens
        self._tokenizer.enable_truncation(max_length=max_tokens)

    def ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Returns the token ids of each text after `normalise`, special tokens included."""
        encoded = self._tokenizer.encode_batch_fast([normalise(text) for text in texts])
        return [encoding.ids for encoding in encoded]

    def word_tokens(self, texts: Sequence[str]) -> NDArray[np.int64]:
        """Returns (N, W): the position among `ids` of each word's first token, -1 where a word has none.

        Words are what stands between spaces after `normalise`; W is the most that a text has. A word has no token when
        the text is cut before it, or the tokenizer drops all of its characters; behind a row's last word is -1, too.
        A task that tags words judges a word at this token (Devlin et al. 2019, section 5.3).
        """
        plain = [normalise(text) for text in texts]
        found = [
            _first_tokens(text, encoding.offsets, encoding.word_ids)
            for text, encoding in zip(plain, self._tokenizer.encode_batch(plain), strict=True)
        ]
        positions = np.full((len(found), max(map(len, found), default=0)), -1, dtype=np.int64)
        for row, of_row in enumerate(found):
            positions[row, : len(of_row)] = of_row
        return positions

    @property
    def vocabulary_size(self) -> int:
        """Token ids are below this number."""
        return int(self._tokenizer.get_vocab_size())

    def unknown_shares(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Returns (N,): the share of each text's tokens, special ones left out, that the vocabulary lacks."""
        unknown = self._tokenizer.token_to_id(str(getattr(self._tokenizer.model, "unk_token", None)))
        if unknown is None:
            return np.zeros(len(texts))
        encoded = self._tokenizer.encode_batch_fast([normalise(text) for text in texts], add_special_tokens=False)
        return np.asarray([e.ids.count(unknown) / max(len(e.ids), 1) for e in encoded], dtype=np.float64)


def _first_tokens(text: str, offsets: Sequence[tuple[int, int]], parts: Sequence[int | None]) -> list[int]:
    """The position of each word's first token.

    A token belongs to the word of its last character: some tokenizers count the space in front of a word as its own.
    One that is that space alone begins the word, if the tokenizer cuts it from the same part of the text.

    Args:
        text: after `normalise`.
        offsets: characters of each token, from and up to.
        parts: which part of the text, as it was cut before tokens were made, a token comes from; None of a special one.
    """
    word_of = np.cumsum([character == " " for character in text])
    found = [-1] * (int(word_of[-1]) + 1 if text else 0)
    space: tuple[int, int | None] | None = None
    for position, ((start, end), part) in enumerate(zip(offsets, parts, strict=True)):
        if part is None:
            continue
        if not text[start:end].strip():
            space = space or (position, part)
            continue
        word = int(word_of[end - 1])
        if found[word] < 0:
            found[word] = space[0] if space is not None and space[1] == part else position
        space = None
    return found


def pad(
    ids: Sequence[Sequence[int]], *, pad_id: int = 0, length: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Returns (input_ids, attention_mask), both (B, S) int64, S the longest row or `length`; padded with `pad_id`."""
    longest = length or max(map(len, ids))
    if all(len(tokens) == longest for tokens in ids):
        input_ids = np.array(ids, dtype=np.int64)
        return input_ids, np.ones_like(input_ids)
    input_ids = np.full((len(ids), longest), pad_id, dtype=np.int64)
    mask = np.zeros((len(ids), longest), dtype=np.int64)
    for row, tokens in enumerate(ids):
        input_ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return input_ids, mask
