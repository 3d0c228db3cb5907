import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from mtlops.data.selection import at_most, conflicting, first_of_each

IDS = [f"{n * 7919 % 1000:03d}" for n in range(600)]


def sample(most, labels=None, **splits):
    labels = labels or ["x"] * len(IDS)
    index = {name: np.asarray(rows, dtype=np.int64) for name, rows in splits.items()}
    return at_most(most, index, ids=IDS, labels=labels, seed=0)


def test_texts_with_two_labels_are_found_whole():
    assert conflicting(["a", "b", "a", "a", "b", "c"], ["x", "y", "z", None, "y", None]).tolist() == [0, 2]
    assert conflicting(["a", "a"], [("x",), ("x", "y")]).tolist() == [0, 1]
    assert conflicting([], []).tolist() == []


@given(st.lists(st.sampled_from("abcde")))
def test_the_first_row_of_each_text_stays_in_the_order_of_ids(ids):
    rows = first_of_each(ids, np.arange(len(ids))).tolist()
    assert [ids[row] for row in rows] == sorted(set(ids))
    assert all(ids.index(ids[row]) == row for row in rows)


def test_a_sample_keeps_the_proportion_of_the_splits():
    found = sample(60, train=range(400), valid=range(400, 500), test=range(500, 600))
    assert {name: len(rows) for name, rows in found.items()} == {"train": 40, "valid": 10, "test": 10}


def test_few_enough_rows_or_no_limit_keep_all():
    assert len(sample(600, train=range(600))["train"]) == 600
    assert len(sample(0, train=range(600))["train"]) == 600


def test_tasks_on_the_same_texts_keep_the_same_ones():
    many = sample(100, train=range(600))["train"].tolist()
    fewer = sample(100, train=range(0, 600, 2))["train"].tolist()
    common = [row for row in fewer if row in set(many)]
    assert len(common) == len([row for row in many if row % 2 == 0])


def test_a_rare_class_survives_the_sample():
    labels = ["rare" if row in {77, 444} else "usual" for row in range(600)]
    found = sample(20, labels, train=range(300), test=range(300, 600))
    assert 77 in found["train"]
    assert 444 in found["test"]
