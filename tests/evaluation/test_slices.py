"""Test rows cut by columns, length and time, and the primary metric on each part."""

import datetime as dt
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from mtlops.decoding import Outputs, decode
from mtlops.evaluation.slices import (
    LENGTH,
    MOST_VALUES,
    NONE,
    OTHER,
    TIME,
    Slice,
    SliceScores,
    measure_slices,
    slice_rows,
)
from mtlops.params import Gates
from mtlops.tasks import Task

TOPIC = Task("topic", "multiclass", ("a", "b", "c"))
GATES = Gates(resamples=400, slice_rows=20)


def _table(times: Any = None, texts: Any = None, **columns: Any) -> pa.Table:
    size = len(next(iter(columns.values()), texts or times))
    times = pa.array(times or [None] * size, pa.timestamp("us", tz="UTC"))
    return pa.table({"text": texts or ["one two"] * size, "timestamp": times, **columns})


def _cut(column: str, train: pa.Table, test: pa.Table, columns: tuple[str, ...] = ()) -> dict[str, list[int]]:
    return {s.value: s.rows.tolist() for s in slice_rows(train, test, columns=columns) if s.column == column}


def test_words_are_slices_and_an_empty_cell_is_one_too() -> None:
    table = _table(shop=["north", None, "south", "north"])
    assert _cut("shop", table, table, ("shop",)) == {"north": [0, 3], "south": [2], NONE: [1]}


def test_a_column_of_one_value_gives_no_slice() -> None:
    table = _table(shop=["north", "north"])
    assert slice_rows(table, table, columns=["shop"]) == []


def test_rare_values_are_together() -> None:
    train = _table(shop=[f"s{i}" for i in range(30) for _ in range(30 - i)])
    test = _table(shop=["s0", "s18", "s19", "s29", "unseen", None])
    found = _cut("shop", train, test, ("shop",))
    assert found == {"s0": [0], "s18": [1], OTHER: [2, 3, 4], NONE: [5]}


@pytest.mark.parametrize("cells", [list(range(100)), [str(i) for i in range(100)]])
def test_numbers_of_many_values_are_cut_at_quartiles_of_the_training_rows(cells: list[Any]) -> None:
    test = _table(price=pa.array([cells[0], cells[24], cells[25], None, cells[99]]))
    assert _cut("price", _table(price=cells), test, ("price",)) == {
        "up to 24": [0, 1], "over 24, up to 49": [2], "over 74": [4], NONE: [3],
    }  # fmt: skip


def test_few_numbers_are_values_in_their_order() -> None:
    table = _table(stars=[10, 9, 1, 2.5])
    assert list(_cut("stars", table, table, ("stars",))) == ["1", "2.5", "9", "10"]


def test_length_is_cut_at_quartiles_of_the_training_rows() -> None:
    texts = [" ".join(["w"] * n) for n in range(1, 41)]
    found = _cut(LENGTH, _table(texts=texts), _table(texts=[texts[n - 1] for n in (1, 10, 11, 20, 40)]))
    assert found == {"up to 10": [0, 1], "11 to 20": [2, 3], "over 30": [4]}


def test_time_is_cut_at_quartiles_of_the_test_rows() -> None:
    start = dt.datetime(2024, 1, 1, tzinfo=dt.UTC)
    times = [start + dt.timedelta(days=i) for i in range(8)]
    found = _cut(TIME, _table(times=times), _table(times=[*times, None]))
    assert list(found.values()) == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]
    assert next(iter(found)) == "2024-01-01 00:00:00 to 2024-01-02 00:00:00" and list(found)[-1] == NONE
    weekly = [start + dt.timedelta(weeks=i) for i in range(8)]
    assert next(iter(_cut(TIME, _table(times=weekly), _table(times=weekly)))) == "2024-01-01 to 2024-01-08"


@given(st.lists(st.one_of(st.none(), st.integers(-50, 50), st.floats(allow_nan=False, width=32)), min_size=1))
def test_the_slices_of_a_column_hold_every_row_once(cells: list[Any]) -> None:
    table = _table(x=pa.array([None if c is None else float(c) for c in cells], pa.float64()))
    found = _cut("x", table, table, ("x",))
    rows = sorted(row for part in found.values() for row in part)
    assert rows in ([], list(range(len(cells))))
    assert len(found) <= MOST_VALUES + 2


def _outputs(labels: np.ndarray, *, right: float, seed: int) -> Outputs:
    random = np.random.default_rng(seed)
    answers = np.where(random.random(len(labels)) < right, labels, random.integers(0, 3, size=len(labels)))
    return decode(TOPIC, 3 * np.eye(3, dtype=np.float32)[answers])


def _measure(labels: np.ndarray, model: Outputs, champion: Outputs | None, *slices: Slice) -> list[SliceScores]:
    groups = [f"g{i // 2}" for i in range(len(labels))]
    return measure_slices(TOPIC, labels, slices=slices, model=model, champion=champion, groups=groups, gates=GATES)


def test_a_slice_is_measured_like_its_rows_alone() -> None:
    labels = np.random.default_rng(0).integers(0, 3, size=200)
    model = _outputs(labels, right=0.8, seed=1)
    (found,) = _measure(labels, model, None, Slice("shop", "north", np.arange(0, 200, 2)))
    expected = f1_score(labels[::2], model.labels[::2], average="macro")
    assert found.metrics["macro_f1"].value == pytest.approx(expected)
    assert found.metrics["macro_f1"].low < expected < found.metrics["macro_f1"].high
    assert (found.rows, found.note, found.champion, found.change, found.p_worse) == (100, None, None, None, None)


def test_macro_f1_of_a_slice_is_over_the_classes_that_it_has() -> None:
    labels = np.zeros(50, dtype=np.int64)
    answers = labels.copy()
    answers[0] = 2
    model = decode(TOPIC, 3 * np.eye(3, dtype=np.float32)[answers])
    (found,) = _measure(labels, model, None, Slice("shop", "north", np.arange(50)))
    assert found.metrics["macro_f1"].value == pytest.approx(
        f1_score(labels, answers, labels=[0], average="macro")
    ) == pytest.approx(98 / 99)  # fmt: skip


def test_a_small_slice_is_shown_and_not_judged() -> None:
    labels = np.arange(60) % 3
    model, champion = (_outputs(labels, right=share, seed=2) for share in (0.2, 1.0))
    (found,) = _measure(labels, model, champion, Slice("shop", "north", np.arange(19)))
    assert found.note == "too small to judge: 19 rows, fewer than gates.slice_rows, 20"
    assert found.p_worse is None and found.change is not None and found.change.value < 0


def test_a_slice_that_got_worse_has_a_small_p_and_its_neighbour_has_not() -> None:
    labels = np.random.default_rng(0).integers(0, 3, size=400)
    champion = _outputs(labels, right=0.9, seed=3)
    answers = champion.labels.copy()
    answers[:200] = (answers[:200] + (np.arange(200) % 3 == 0)) % 3
    model = decode(TOPIC, 3 * np.eye(3, dtype=np.float32)[answers])
    worse, same = _measure(
        labels, model, champion, Slice("x", "worse", np.arange(200)), Slice("x", "same", np.arange(200, 400))
    )
    assert worse.p_worse is not None and worse.p_worse < 0.01
    assert worse.change is not None and worse.champion is not None
    difference = worse.metrics["macro_f1"].value - worse.champion["macro_f1"].value
    assert worse.change.value == pytest.approx(difference)
    assert same.p_worse is None and same.change is not None and same.change.value == 0


def test_equal_labels_leave_kappa_undefined_and_unjudged() -> None:
    task, labels = Task("rank", "ordinal", ("l", "m", "h")), np.ones(30, dtype=np.int64)
    model = decode(task, np.tile(np.float32([0, 3, 0]), (30, 1)))
    (found,) = measure_slices(
        task, labels, slices=[Slice("x", "y", np.arange(30))], model=model, champion=None,
        groups=[str(i) for i in range(30)], gates=GATES,
    )  # fmt: skip
    assert found.note == "all labels are the same: quadratic_kappa is not defined"
