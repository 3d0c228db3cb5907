"""More training rows out of those there are: the same labels on changed texts.

Source: Wei and Zou 2019, "EDA: Easy Data Augmentation Techniques for Boosting Performance on Text Classification
Tasks", section 2 (random deletion, random swap), arXiv:1901.11196; here n swaps a text, not a share of its length.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.data.normalisation import normalise
from mtlops.params import Augmentation
from mtlops.training.batches import task_seed


@dataclass(frozen=True)
class Copies:
    """Training rows with their copies behind them: each row's first copy in order, then each row's second, ...

    Attributes:
        row_ids: `<row_id>#<copy>-<hash of the text>` for a copy: another text is another row of every cache.
        texts: N times (copies + 1) texts.
        labels: encoded labels of these rows.
    """

    row_ids: list[str]
    texts: list[str]
    labels: NDArray[Any]


def augment(
    row_ids: Sequence[str], texts: Sequence[str], labels: NDArray[Any], *, settings: Augmentation, seed: int
) -> Copies:
    """Returns the rows and `settings.copies` changed copies of each; rows come first and stay as they are.

    A copy depends on (seed, row id, number of the copy) and the settings alone.
    """
    ids, all_texts = list(row_ids), list(texts)
    for copy in range(1, settings.copies + 1):
        for row_id, text in zip(row_ids, texts, strict=True):
            changed = _change(text, np.random.default_rng(task_seed(seed, row_id, "copy", copy)), settings)
            ids.append(f"{row_id}#{copy}-{hashlib.sha256(changed.encode()).hexdigest()[:8]}")
            all_texts.append(changed)
    return Copies(ids, all_texts, np.concatenate([labels] * (settings.copies + 1)))


def _change(text: str, random: np.random.Generator, settings: Augmentation) -> str:
    words = normalise(text).split(" ")
    for _ in range(settings.word_swap if len(words) > 1 else 0):
        a, b = random.choice(len(words), size=2, replace=False)
        words[a], words[b] = words[b], words[a]
    kept = [
        word for word, drawn in zip(words, random.random(len(words)), strict=True) if drawn >= settings.word_dropout
    ]
    return " ".join(kept or [words[int(random.integers(len(words)))]])
