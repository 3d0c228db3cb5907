"""Promises follow from what a task is, not from its name or kind."""

import pytest

from mtlops.tasks import Task
from mtlops.validation.expectations import label_promises, table_promises


def arguments(task):
    return {promise.name: promise.arguments for promise in label_promises(task)}


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel", "ordinal"])
def test_classes_are_the_only_labels(tasks, kind):
    task = tasks[kind]
    assert arguments(task)["label_in_classes"] == {"column": "label", "value_set": list(task.classes)}


def test_range_is_rounded_like_the_labels_it_limits(tasks):
    limits = arguments(tasks["regression"])["label_in_range"]
    assert limits["min_value"] == 0.0
    assert limits["max_value"] == pytest.approx(0.1) and limits["max_value"] > 0.1


def test_number_without_a_range_must_be_finite():
    limits = arguments(Task("price", "regression"))["label_in_range"]
    assert -limits["min_value"] == limits["max_value"] == pytest.approx(3.4028235e38)


def test_names_are_unique_among_the_promises_of_a_part(tasks):
    for task in tasks.values():
        names = [promise.name for promise in (*table_promises("train", min_words=2), *label_promises(task))]
        assert len(names) == len(set(names))


def test_windows_need_rows_but_not_many():
    rows = {
        p.name: p.arguments["min_value"] for p in table_promises("windows/tweets", min_words=1) if "row_count" in p.name
    }
    assert rows == {"row_count": 1}


def test_every_wording_is_an_ending_and_a_sentence(tasks):
    promises = [p for task in tasks.values() for p in (*table_promises("train", min_words=2), *label_promises(task))]
    for promise in promises:
        assert not promise.wording.expected.endswith(".")
        assert promise.wording.remedy.endswith(".")
