"""Copies of rows: what changes, what stays, and that the same copy comes out every time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlops.data.normalisation import normalise
from mtlops.params import Augmentation
from mtlops.training.augmentation import augment

TEXTS = ["the film was great and I loved every long minute of it", "bad phone", "one"]
IDS = ["a", "b", "c"]
LABELS = np.array([2, 0, 1])


def _texts(settings: Augmentation, *, seed: int = 0, texts: list[str] = TEXTS) -> list[str]:
    return augment(IDS[: len(texts)], texts, LABELS[: len(texts)], settings=settings, seed=seed).texts


def test_rows_stay_first_and_labels_are_copied() -> None:
    made = augment(IDS, TEXTS, LABELS, settings=Augmentation(copies=2, word_dropout=0.3), seed=0)
    assert made.row_ids[:3] == IDS and made.texts[:3] == TEXTS
    assert made.labels.tolist() == [2, 0, 1] * 3
    assert [row_id.partition("-")[0] for row_id in made.row_ids[3:]] == ["a#1", "b#1", "c#1", "a#2", "b#2", "c#2"]
    several = augment(["a"], ["x y"], np.array([[1.0, 0.0]]), settings=Augmentation(copies=1, word_swap=1), seed=0)
    assert several.labels.tolist() == [[1.0, 0.0], [1.0, 0.0]]


def test_a_copy_depends_on_seed_row_and_number_alone() -> None:
    settings = Augmentation(copies=3, word_dropout=0.4, word_swap=2)
    whole = augment(IDS, TEXTS, LABELS, settings=settings, seed=7)
    alone = augment(IDS[:1], TEXTS[:1], LABELS[:1], settings=settings, seed=7)
    assert alone.texts == whole.texts[0::3] and alone.row_ids == whole.row_ids[0::3]
    assert len(set(alone.texts)) == 4
    assert _texts(settings, seed=8)[3:] != whole.texts[3:]


def test_another_text_is_another_row_of_the_cache() -> None:
    settings = [Augmentation(copies=1, word_dropout=p) for p in (0.1, 0.8)]
    first, second = (augment(IDS[:1], TEXTS[:1], LABELS[:1], settings=s, seed=0) for s in settings)
    assert first.texts[1] != second.texts[1] and first.row_ids[1] != second.row_ids[1]


@given(st.text(min_size=1).filter(str.split), st.floats(0.01, 0.99), st.integers(0, 5), st.integers(0, 99))
def test_words_are_dropped_or_moved_and_never_made_up(text: str, dropout: float, swap: int, seed: int) -> None:
    made = augment(
        ["r"], [text], np.array([0]), settings=Augmentation(copies=1, word_dropout=dropout, word_swap=swap), seed=seed
    )
    words, kept = normalise(text).split(" "), made.texts[1].split(" ")
    assert 1 <= len(kept) <= len(words)
    assert all(kept.count(word) <= words.count(word) for word in kept)


def test_a_swap_keeps_all_words_and_moves_two() -> None:
    words, swapped = (text.split() for text in _texts(Augmentation(copies=1, word_swap=1), texts=TEXTS[:1]))
    assert sorted(words) == sorted(swapped)
    assert sum(a != b for a, b in zip(words, swapped, strict=True)) == 2


def test_the_share_of_dropped_words_is_the_one_asked_for() -> None:
    text = " ".join(map(str, range(4000)))
    assert len(_texts(Augmentation(copies=1, word_dropout=0.25), texts=[text])[1].split()) == pytest.approx(
        3000, abs=90
    )


@pytest.mark.parametrize("value", [{"copies": 1}, {"word_swap": 1}, {"word_dropout": 0.1}])
def test_half_a_setting_is_refused(value: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="Give both"):
        Augmentation(**value)
