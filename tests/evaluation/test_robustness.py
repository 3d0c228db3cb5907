"""Small changes of texts: what they do, that they are always the same ones, and how their effect is measured."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from mtlops.decoding import UNCALIBRATED
from mtlops.evaluation.robustness import (
    PERTURBATIONS,
    Robustness,
    dropped_words,
    measure_robustness,
    no_punctuation,
    typos,
    upper_case,
)
from mtlops.params import Gates
from mtlops.tasks import Task

TASK = Task("length", "multiclass", ("short", "long"))
TEXTS = [f"Row {i}, number {i}!" if i % 2 else f"this is the much longer text of row {i}" for i in range(60)]
LABELS = np.asarray([0 if i % 2 else 1 for i in range(60)])


def _random(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_a_typo_is_the_letter_on_the_next_key() -> None:
    text = "The Quick brown fox jumps over the lazy dog and goes on for a while."
    found = typos(text, _random())
    changed = [(a, b) for a, b in zip(text, found, strict=True) if a != b]
    assert len(changed) == round(0.05 * len(text))
    for before, after in changed:
        assert before.isupper() == after.isupper()
        row = next(row for row in ("qwertyuiop", "asdfghjkl", "zxcvbnm") if before.lower() in row)
        assert abs(row.index(before.lower()) - row.index(after.lower())) == 1
    assert sum(a != b for a, b in zip("ab", typos("ab", _random()), strict=True)) == 1


def test_words_are_dropped_in_order() -> None:
    words = [f"w{i}" for i in range(20)]
    left = dropped_words(" ".join(words), _random()).split()
    assert len(left) == 18
    assert left == [word for word in words if word in left]
    assert dropped_words("one", _random()) == "one"
    assert dropped_words("one two", _random()) in ("one", "two")


def test_punctuation_and_case() -> None:
    assert no_punctuation("Well -- don't (ever) stop!", _random()) == "Well dont ever stop"
    assert no_punctuation("?!", _random()) == "?!"
    assert upper_case("Quiet, please", _random()) == "QUIET, PLEASE"


@pytest.mark.parametrize("name", PERTURBATIONS)
@given(text=st.text(max_size=80))
def test_any_text_can_be_changed_and_the_same_seed_changes_it_alike(name: str, text: str) -> None:
    perturb = PERTURBATIONS[name]
    assert perturb(text, _random(7)) == perturb(text, _random(7))
    assert bool(perturb(text, _random(7)).strip()) == bool(text.strip())


def _measure(answer, *, rows: int = 200, order: Sequence[int] = range(60)) -> dict[str, Robustness]:
    return measure_robustness(
        TASK, LABELS[list(order)], texts=[TEXTS[i] for i in order], row_ids=[f"id{i}" for i in order],
        groups=[f"g{i // 2}" for i in order], answer=answer, calibration=UNCALIBRATED,
        gates=Gates(resamples=200, robustness_rows=rows),
    )  # fmt: skip


def _by_length(texts: Sequence[str]) -> NDArray[np.float32]:
    """Right on every text of the rows, and still on most that lose a word."""
    size = np.asarray([len(text.split()) for text in texts])
    return np.stack([5.5 - size, size - 5.5], axis=1).astype(np.float32)


def _by_case(texts: Sequence[str]) -> NDArray[np.float32]:
    """Right, unless everything is written in capitals."""
    size = np.asarray([-9 if text.isupper() else len(text.split()) for text in texts])
    return np.stack([5.5 - size, size - 5.5], axis=1).astype(np.float32)


def test_a_model_that_does_not_look_there_does_not_change() -> None:
    found = _measure(_by_length)
    for name in ("typos", "upper_case", "no_punctuation"):
        assert found[name].value.value == 1.0
        assert (found[name].change.low, found[name].change.value, found[name].change.high) == (0, 0, 0)
    assert found["no_punctuation"].changed == 30
    assert found["typos"].changed == found["upper_case"].changed == 60


def test_a_loss_is_found_and_paired() -> None:
    found = _measure(_by_case)["upper_case"]
    assert found.value.value == pytest.approx(1 / 3)  # all rows are called short: F1 of 2/3 and 0
    assert found.change.value == pytest.approx(1 / 3 - 1)
    assert found.change.high < 0


def test_the_rows_are_bounded_and_depend_on_their_ids_alone() -> None:
    seen: list[list[str]] = []

    def answer(texts: Sequence[str]) -> NDArray[np.float32]:
        seen.append(list(texts))
        return _by_length(texts)

    first = _measure(answer, rows=10)
    again = _measure(answer, rows=10, order=range(59, -1, -1))
    assert len(seen[0]) == 10 * (1 + len(PERTURBATIONS))
    assert sorted(seen[0]) == sorted(seen[1])
    assert {name: (r.value.value, r.rows, r.changed) for name, r in first.items()} == {
        name: (r.value.value, r.rows, r.changed) for name, r in again.items()
    }


def test_0_rows_switch_it_off() -> None:
    assert _measure(_by_length, rows=0) == {}
