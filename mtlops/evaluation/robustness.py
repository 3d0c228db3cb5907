"""How much of a task's quality is left when its test texts are changed in ways that should not matter.

The changes are small and keep the label of nearly every text; a dropped word can be the one that carried it. All
randomness is seeded by row and change, so tasks with the same texts see the same changed texts.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.decoding import Calibration, decode
from mtlops.evaluation.bootstrap import Interval, interval, resample_groups
from mtlops.evaluation.comparison import measure
from mtlops.params import Gates
from mtlops.tasks import Task

TYPO_SHARE = 0.05
"""Share of the characters that are mistyped."""

DROPPED_SHARE = 0.1
"""Share of the words that are dropped."""

_KEYBOARD = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS = MappingProxyType({
    key: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in _KEYBOARD for i, key in enumerate(row)
})  # fmt: skip
"""Key -> the keys beside it in its row of a QWERTY keyboard."""

Perturbation = Callable[[str, np.random.Generator], str]


def typos(text: str, random: np.random.Generator) -> str:
    """Returns the text with `TYPO_SHARE` of its characters, at least one, replaced by the letter on the next key."""
    letters = [i for i, character in enumerate(text) if character.lower() in _NEIGHBOURS]
    count = min(len(letters), max(1, round(TYPO_SHARE * len(text))))
    characters = list(text)
    for i in random.choice(len(letters), size=count, replace=False) if letters else ():
        character = text[letters[i]]
        typed = str(random.choice(list(_NEIGHBOURS[character.lower()])))
        characters[letters[i]] = typed.upper() if character.isupper() else typed
    return "".join(characters)


def upper_case(text: str, random: np.random.Generator) -> str:
    """Returns the text in capitals."""
    del random
    return text.upper()


def no_punctuation(text: str, random: np.random.Generator) -> str:
    """Returns the text without punctuation, or as it is when it holds nothing else."""
    del random
    left = "".join(character for character in text if not unicodedata.category(character).startswith("P"))
    return re.sub(r"\s+", " ", left).strip() or text


def dropped_words(text: str, random: np.random.Generator) -> str:
    """Returns the text without `DROPPED_SHARE` of its words, at least one; a single word stays."""
    words = text.split()
    if len(words) < 2:
        return text
    dropped = set(random.choice(len(words), size=max(1, round(DROPPED_SHARE * len(words))), replace=False).tolist())
    return " ".join(word for i, word in enumerate(words) if i not in dropped)


PERTURBATIONS: Mapping[str, Perturbation] = MappingProxyType({
    "typos": typos, "upper_case": upper_case, "no_punctuation": no_punctuation, "dropped_words": dropped_words,
})  # fmt: skip


@dataclass(frozen=True)
class Robustness:
    """A task's primary metric under one change of its texts.

    Attributes:
        value: on the changed texts.
        change: the same minus the metric on the texts as they are, on the same rows and resamples.
        rows: how many test rows were used.
        changed: how many of their texts the change changes at all.
    """

    value: Interval
    change: Interval
    rows: int
    changed: int


def measure_robustness(
    task: Task,
    labels: NDArray[Any],
    *,
    texts: Sequence[str],
    row_ids: Sequence[str],
    groups: Sequence[str],
    answer: Callable[[Sequence[str]], NDArray[np.float32]],
    calibration: Calibration,
    gates: Gates,
) -> dict[str, Robustness]:
    """Returns the primary metric under each of `PERTURBATIONS`, on `gates.robustness_rows` of the test rows.

    Nothing for a task that tags words: changed texts have other words.

    Shapes: labels: (N,) or (N, C) as `Task.encode` returns them; texts, row_ids, groups: N values.

    Args:
        task: what is measured.
        labels: of the test rows.
        texts: of the test rows.
        row_ids: of the test rows; their hashes choose the rows, so that tasks on the same texts take the same ones.
        groups: which test rows belong together.
        answer: from texts to the model's logits (len(texts), C).
        calibration: from logits to answers.
        gates: number of rows, level, number and seed of the resamples.
    """
    if task.per_word:
        return {}
    chosen = np.asarray(_chosen(row_ids, gates.robustness_rows, seed=gates.seed), dtype=np.int64)
    if not len(chosen):
        return {}
    plain = [texts[row] for row in chosen]
    changed = {
        name: [perturb(text, _random(gates.seed, name, row_ids[row])) for text, row in zip(plain, chosen, strict=True)]
        for name, perturb in PERTURBATIONS.items()
    }
    logits = answer([text for part in (plain, *changed.values()) for text in part])
    outputs = [decode(task, part, calibration) for part in np.split(logits, 1 + len(changed))]
    samples = resample_groups([groups[row] for row in chosen], num_samples=gates.resamples, seed=gates.seed)
    before, *after = (measure(task, labels[chosen], part, samples) for part in outputs)
    primary = task.primary
    return {
        name: Robustness(
            value=interval(found.values[primary], found.resampled[primary], confidence=gates.confidence),
            change=found.minus(before, primary, gates.confidence),
            rows=len(chosen),
            changed=sum(a != b for a, b in zip(plain, changed[name], strict=True)),
        )
        for name, found in zip(changed, after, strict=True)
    }


def _chosen(row_ids: Sequence[str], most: int, *, seed: int) -> list[int]:
    """Returns the positions, ascending, of at most `most` rows; the hash of the id decides."""
    order = sorted(range(len(row_ids)), key=lambda row: _digest(seed, "rows", row_ids[row]))
    return sorted(order[:most])


def _random(seed: int, purpose: str, row_id: str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(_digest(seed, purpose, row_id)[:8], "big"))


def _digest(seed: int, purpose: str, row_id: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{purpose}\0{row_id}".encode()).digest()
