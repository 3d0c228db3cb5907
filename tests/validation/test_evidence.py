"""Facts across tasks, splits and windows, and their limits."""

from dataclasses import replace

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtlops.data.normalisation import fingerprint
from mtlops.data.prepared import SPLITS
from mtlops.validation.evidence import (
    Fact,
    Keys,
    conflict_facts,
    evidence_table,
    keys,
    label_space_fact,
    normalisation_fact,
    shared_facts,
)


def broken(facts):
    """The facts outside their limits."""
    return [fact for fact in facts if not fact.lowest <= fact.observed <= fact.highest]


def shared(suite):
    """The broken facts about what parts of a suite share."""
    return broken(shared_facts([keys(part) for part in suite.parts.values()]))


@pytest.fixture
def two(suite_of, tasks):
    return suite_of(tasks["multiclass"], tasks["binary"], splits=["train", "valid", "test", "windows/control"])


def test_good_data_shares_nothing(two):
    assert shared(two) == []


LEAKS = [
    ("train", "valid"),
    ("train", "test"),
    ("valid", "test"),
    ("train", "windows/control"),
    ("test", "windows/control"),
]


@pytest.mark.parametrize("source, target", LEAKS)
@pytest.mark.parametrize("task", ["mood", "spam"])
def test_text_of_a_split_in_another_of_any_task_is_found(two, source, target, task):
    label = {"mood": "bad", "spam": "no"}[task]
    leaky = two.copy_row(f"mood/{source}", f"{task}/{target}", group="file:new", label=label)
    row = two.parts[f"mood/{source}"].table["row_id"][0].as_py()
    assert shared(leaky) == [Fact("shared_texts", "mood", source, f"in {task}/{target}", 1, 0, 0, (row,))]


@pytest.mark.parametrize("source, target", LEAKS)
@pytest.mark.parametrize("task", ["mood", "spam"])
def test_group_of_a_split_in_another_of_any_task_is_found(two, source, target, task):
    group = two.parts[f"mood/{source}"].table["group"][0].as_py()
    leaky = two.change(f"{task}/{target}", {"group": {4: group}})
    row = two.parts[f"{task}/{target}"].table["row_id"][4].as_py()
    assert shared(leaky) == [Fact("shared_groups", "mood", source, f"in {task}/{target}", 1, 0, 0, (row,))]


def test_text_is_the_same_with_other_capitals_and_punctuation(two):
    text = two.parts["mood/train"].table["text"][0].as_py()
    (leak,) = shared(two.change_texts("spam/test", {0: f"'{text.upper()}' ..."}))
    assert (leak.check, leak.subject, leak.observed) == ("shared_texts", "in spam/test", 1)


def test_production_window_may_hold_known_groups_but_no_known_text(two):
    window = replace(two.parts["mood/windows/control"], is_apart=False)
    production = replace(two, parts={**two.parts, window.name: window})
    known = two.parts["mood/train"].table["group"][0].as_py()
    assert shared(production.change(window.name, {"group": {0: known}})) == []
    (leak,) = shared(production.copy_row("spam/train", window.name, label="bad"))
    assert (leak.check, leak.task, leak.subject) == ("shared_texts", "spam", "in mood/windows/control")


def test_windows_may_share_rows_with_one_another(two):
    window = replace(two.parts["mood/windows/control"], split="windows/again")
    assert shared(replace(two, parts={**two.parts, window.name: window})) == []


def test_tasks_may_label_the_same_rows_in_the_same_split(suite_of, tasks):
    mood = suite_of(tasks["multiclass"], splits=["train", "valid", "test", "windows/control"])
    again = [replace(part, task=replace(part.task, name="tone")) for part in mood.parts.values()]
    assert shared(replace(mood, parts={**mood.parts, **{part.name: part for part in again}})) == []


@given(
    st.dictionaries(st.tuples(st.sampled_from("ab"), st.sampled_from(SPLITS)), st.sets(st.integers(0, 9)), min_size=2)
)
@settings(max_examples=60, deadline=None)
def test_shared_rows_are_those_of_set_intersection(ids):
    def column(numbers):
        return pa.chunked_array([pa.array([str(number) for number in sorted(numbers)], pa.string())])

    parts = [
        Keys(f"{task}/{split}", task, split, True, *[column(numbers)] * 4) for (task, split), numbers in ids.items()
    ]
    expected = {
        (task, split, f"in {other_task}/{other}"): len(numbers & others)
        for (task, split), numbers in ids.items()
        for (other_task, other), others in ids.items()
        if SPLITS.index(split) < SPLITS.index(other)
    }
    for check in ("shared_texts", "shared_groups"):
        facts = [fact for fact in shared_facts(parts) if fact.check == check]
        assert {(fact.task, fact.split, fact.subject): fact.observed for fact in facts} == expected


def test_conflicts_are_those_of_one_task(two):
    same = two.copy_row("mood/test", "spam/test", label="no")
    assert broken(conflict_facts([keys(part) for part in same.parts.values()])) == []
    again = two.copy_row("mood/test", "mood/windows/control", label="good")
    (conflict,) = broken(conflict_facts([keys(part) for part in again.parts.values()]))
    assert (conflict.task, conflict.observed) == ("mood", 1)


def test_order_of_a_list_of_labels_is_no_conflict(suite_of, tasks):
    suite = suite_of(tasks["multilabel"])
    row = suite.parts["tags/train"].table["label"].to_pylist().index(["red", "green"])
    again = suite.copy_row("tags/train", "tags/test", row=row, label=["green", "red"])
    assert broken(conflict_facts([keys(part) for part in again.parts.values()])) == []


@pytest.mark.parametrize("classes", [("bad", "good"), ("fair", "bad", "good")])
def test_other_classes_or_another_order_of_them_is_another_label_space(tasks, classes):
    assert broken([label_space_fact(tasks["multiclass"], kind="multiclass", classes=classes)])


def test_another_kind_is_another_label_space(tasks):
    task = tasks["multiclass"]
    assert broken([label_space_fact(task, kind="ordinal", classes=task.classes)])
    assert not broken([label_space_fact(task, kind=task.kind, classes=list(task.classes))])


def test_data_must_be_prepared_with_the_normalisation_of_serving():
    assert not broken([normalisation_fact(fingerprint())])
    assert broken([normalisation_fact("0123456789abcdef")])


def test_evidence_table_has_a_row_for_each_fact():
    facts = [Fact("manifest_rows", "mood", "train", "rows", 3, 3, 3), Fact("columns", None, None, "columns", 0)]
    assert evidence_table(facts).to_pylist() == [
        {"fact": 0, "check": "manifest_rows", "task": "mood", "split": "train", "subject": "rows",
         "observed": 3.0, "lowest": 3.0, "highest": 3.0},
        {"fact": 1, "check": "columns", "task": None, "split": None, "subject": "columns",
         "observed": 0.0, "lowest": 0.0, "highest": float("inf")},
    ]  # fmt: skip
