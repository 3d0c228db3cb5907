"""The baselines of tasks that tag words: those of `baselines`, on words in place of texts.

What TF-IDF weighs here is what a linear tagger looks at: the word, its neighbours, its ending and its shape.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.evaluation import baselines
from mtlops.evaluation.baselines import Logits
from mtlops.tasks import Task

MOST_WORDS = 50_000
"""The baselines are trained on the words of at most so many, evenly spread, training rows that hold about this many."""

_ENDING = 3
_SIGN = re.compile(r"\W")


@dataclass(frozen=True)
class WordRows:
    """Rows of one split of one task.

    Attributes:
        texts: N texts, whose words stand between spaces.
        labels: (N, W) int64 as `Task.encode` returns them.
        vectors: (N, W, H) float32 of the frozen trunk, not-a-number where a row has no such word.
    """

    texts: Sequence[str]
    labels: NDArray[Any]
    vectors: NDArray[np.float32]

    @property
    def judged(self) -> NDArray[np.bool_]:
        """(N, W): the words that are there and that the model sees."""
        seen: NDArray[np.bool_] = np.isfinite(self.vectors).all(axis=-1) & (self.labels >= 0)
        return seen

    def flat(self) -> baselines.Rows:
        """Returns one row for each judged word."""
        judged = self.judged
        described = [_described(text.split(" ")) for text in self.texts]
        texts = [described[row][word] for row, word in zip(*map(np.ndarray.tolist, np.nonzero(judged)), strict=True)]
        return baselines.Rows(texts, self.labels[judged], self.vectors[judged])


def training_rows(texts: Sequence[str]) -> NDArray[np.int64]:
    """Returns the positions of the rows that the baselines are trained on: all, or fewer, evenly spread."""
    num_words = sum(text.count(" ") + 1 for text in texts)
    return np.arange(0, len(texts), max(1, -(-num_words // MOST_WORDS)))


def logits(
    task: Task, train: WordRows, *, valid: WordRows, test: WordRows, names: Collection[str] = baselines.NAMES
) -> dict[str, Logits]:
    """Returns the logits (N, W, C) of some baselines for the test rows; not-a-number: no word to judge."""
    one = Task(task.name, "multiclass", task.classes)
    found = baselines.logits(one, train.flat(), valid=valid.flat(), test=test.flat(), names=names)
    return {name: _placed(of_words, test.judged) for name, of_words in found.items()}


def _placed(of_words: Logits, judged: NDArray[np.bool_]) -> Logits:
    placed = np.full((*judged.shape, of_words.shape[1]), np.nan, dtype=np.float32)
    placed[judged] = of_words
    return placed


def _described(words: Sequence[str]) -> list[str]:
    """What a linear tagger looks at, for each word, as terms for a vectoriser."""
    around = ["", *words, ""]
    terms = []
    for position, word in enumerate(words, start=1):
        parts = {
            "word": word, "before": around[position - 1], "after": around[position + 1], "ending": word[-_ENDING:],
            "shape": _shape(word),
        }  # fmt: skip
        terms.append(" ".join(f"{name}_{_SIGN.sub(_code, part)}" for name, part in parts.items()))
    return terms


def _shape(word: str) -> str:
    if any(character.isdigit() for character in word):
        return "digits"
    if word.isupper():
        return "capitals"
    return "capital" if word[:1].isupper() else "small"


def _code(sign: re.Match[str]) -> str:
    return f"u{ord(sign.group()):x}"
