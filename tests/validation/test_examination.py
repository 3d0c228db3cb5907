"""Every promise: kept by good data, broken by bad data, and nothing else broken with it."""

from collections.abc import Callable, Mapping
from dataclasses import replace

import pyarrow as pa
import pytest

from mtlops.data.normalisation import fingerprint
from mtlops.tasks import Task
from mtlops.validation.checks import MOST_ROWS, NO_ROW_ID, Check
from mtlops.validation.evidence import WORDINGS, label_space_fact, normalisation_fact
from mtlops.validation.examination import examine


def failures(suite, *, facts=(), min_words=2) -> dict[str, Check]:
    """The failed checks by name; of several with one name the first."""
    failed = [c for c in examine(suite.parts.values(), facts=facts, min_words=min_words) if not c.passed]
    return {check.name: check for check in reversed(failed)}


def touched(suite, original):
    """The suite with only those parts that were changed."""
    parts = {name: part for name, part in suite.parts.items() if part is not original.parts.get(name)}
    return replace(suite, parts=parts)


def filled(suite, name, label, *, keep=0):
    """The suite with one label in all but the first `keep` rows of a part."""
    rows = range(keep, suite.parts[name].table.num_rows)
    return suite.change(name, {"label": dict.fromkeys(rows, label)})


def without(suite, name, column):
    """The suite without a column of a part."""
    return suite.put(name, suite.parts[name].table.drop_columns([column]))


def shortened(suite, name, rows):
    """The suite with only the first rows of a part."""
    return suite.put(name, suite.parts[name].table.slice(0, rows))


def mistold(suite, name, **entry):
    """The suite with another manifest entry for a part."""
    part = suite.parts[name]
    return suite.put(name, part.table, entry={**part.entry, **entry})


def production(suite, *names):
    """The suite with one more window for each name: new texts of known groups, the same in each window."""
    for name in names:
        window = replace(suite.parts["mood/test"], split=f"windows/{name}", is_apart=False)
        suite = replace(suite, parts={**suite.parts, window.name: window})
        suite = suite.change_texts(window.name, {row: f"traffic {row}" for row in range(window.table.num_rows)})
    return suite


BREAK: Mapping[str, Callable] = {
    "row_count": lambda s: shortened(s, "mood/train", 9),
    "useful_row_count": lambda s: shortened(s, "mood/test", 99),
    "row_id_unique": lambda s: s.copy_row("mood/train", "mood/train"),
    "text_present": lambda s: s.change("mood/train", {"text": {3: None}}),
    "text_words": lambda s: s.change_texts("mood/test", {3: "alone", 4: "a word"}),
    "text_length": lambda s: s.change_texts("mood/train", {0: "word " * 20_000 + "end"}),
    "group_present": lambda s: s.change("mood/test", {"group": {5: None}}),
    "label_present": lambda s: s.change("mood/train", {"label": {5: None}}),
    "label_in_classes": lambda s: s.change("mood/test", {"label": {7: "great", 9: "awful"}}),
    "columns": lambda s: without(s, "mood/test", "group"),
    "manifest_rows": lambda s: mistold(s, "mood/test", rows=104),
    "manifest_labels": lambda s: mistold(s, "mood/test", label_counts={"bad": 35, "fair": 34, "good": 36}),
    "text_normalised": lambda s: s.change_texts("mood/test", {1: "two  spaces &amp; an entity"}),
    "shared_texts": lambda s: s.copy_row("mood/train", "mood/test", group="file:other"),
    "shared_groups": lambda s: s.change("mood/test", {"group": {0: "file:mood-train-0"}}),
    "conflicting_labels": lambda s: production(s, "may", "june").change("mood/windows/june", {"label": {0: "good"}}),
    "class_in_training": lambda s: s.change("mood/train", {"label": dict.fromkeys(range(2, 210, 3), "bad")}),
    "class_rows": lambda s: s.change("mood/test", {"label": dict.fromkeys(range(14, 105, 3), "bad")}),
    "class_balance": lambda s: filled(s, "mood/train", "bad", keep=3),
}
"""How to break each promise about a task with classes; the task is `mood` (bad, fair, good)."""

ALSO: Mapping[str, set[str]] = {
    "row_count": {"useful_row_count", "class_rows"},
    "class_in_training": {"class_rows"},
    "class_balance": {"class_rows"},
}
"""What cannot but break with it."""


ONLY_WARNINGS = {"useful_row_count", "text_length", "class_rows", "class_balance"}


@pytest.fixture(scope="module")
def mood(suite_of, tasks):
    return suite_of(tasks["multiclass"])


@pytest.fixture(scope="module")
def price(suite_of, tasks):
    return suite_of(tasks["regression"])


def test_good_data_of_every_kind_keeps_every_promise(suite_of, tasks):
    facts = [label_space_fact(task, kind=task.kind, classes=task.classes) for task in tasks.values()]
    suite = suite_of(*tasks.values(), splits=["train", "windows/control"])
    checks = examine(suite.parts.values(), facts=[*facts, normalisation_fact(fingerprint())], min_words=2)
    assert [check.message for check in checks if not check.passed] == []
    assert {check.name for check in checks} == {*BREAK, *WORDINGS, "label_in_range"}


@pytest.mark.parametrize("name", BREAK)
def test_a_broken_promise_is_found_and_no_other_is_blamed(mood, name):
    suite = BREAK[name](mood)
    found = failures(suite if name.startswith("shared_") else touched(suite, mood))
    assert set(found) == {name} | ALSO.get(name, set())
    assert all("\n" not in check.message for check in found.values())
    assert found[name].is_broken == (name not in ONLY_WARNINGS)


def test_every_kind_of_evidence_is_broken_by_some_test():
    assert set(WORDINGS) <= {*BREAK, "label_varies", "label_space", "normalisation"}


@pytest.mark.parametrize(
    "label, said", [(-0.01, "1 of 210 labels: -0.01"), (0.11, "1 of 210 labels: 0.11"), (float("inf"), "inf")]
)
def test_label_outside_its_range_is_named(price, label, said):
    found = failures(price.change("price/train", {"label": {3: label}}))
    assert set(found) == {"label_in_range"}
    assert said in found["label_in_range"].message
    assert "expected a number from 0 to 0.1" in found["label_in_range"].message


def test_label_without_a_range_must_be_finite(suite_of):
    suite = suite_of(Task("price", "regression"))
    assert set(failures(suite.change("price/test", {"label": {0: float("-inf")}}))) == {"label_in_range"}


def test_label_that_is_not_a_number_is_missing(price):
    assert set(failures(price.change("price/test", {"label": {0: float("nan")}}))) == {"label_present"}


def test_constant_number_cannot_be_learned(price):
    assert set(failures(filled(price, "price/train", 0.05))) == {"label_varies"}


def test_lists_of_labels_are_checked_one_by_one(suite_of, tasks):
    suite = suite_of(tasks["multilabel"])
    part = suite.parts["tags/train"].table
    found = failures(suite.change("tags/train", {"label": {0: ["red", "blue"], 1: ["pink"]}}))
    assert set(found) == {"label_in_classes"}
    assert "2 of" in found["label_in_classes"].message
    assert "'blue', 'pink'; expected any of red, green." in found["label_in_classes"].message
    assert found["label_in_classes"].failing_rows == tuple(sorted(part["row_id"].to_pylist()[:2]))


@pytest.mark.parametrize("label", [None, ["red", None]])
def test_missing_list_and_missing_label_in_a_list_are_found(suite_of, tasks, label):
    suite = suite_of(tasks["multilabel"])
    assert set(failures(suite.change("tags/train", {"label": {0: label}}))) == {"label_present"}


def test_facts_of_the_caller_are_checked_too(mood):
    task = mood.parts["mood/train"].task
    facts = [normalisation_fact("0123456789abcdef"), label_space_fact(task, kind=task.kind, classes=["bad", "good"])]
    found = failures(mood, facts=facts)
    assert set(found) == {"normalisation", "label_space"}
    assert "prepared as multiclass of bad, good;" in found["label_space"].message
    assert (found["normalisation"].task, found["normalisation"].split) == (None, None)
    assert found["normalisation"].message.startswith("suite: normalisation: 1 differences, prepared with 0123456789")


def test_wrong_type_stops_the_other_checks_of_that_split_and_says_so(mood):
    table = mood.parts["mood/train"].table
    wrong = table.set_column(2, "label", pa.array([1] * table.num_rows))
    found = failures(mood.put("mood/train", wrong))
    assert set(found) == {"columns"}
    assert found["columns"].message == (
        "mood/train: columns: 1 wrong columns of 6, label int64 instead of string; expected each of the prepared "
        "columns with its type. No other check of this split was run. Run `mtlops prepare` again."
    )


def test_one_text_with_two_labels_is_named(mood):
    found = failures(BREAK["conflicting_labels"](mood))["conflicting_labels"]
    (row,) = found.failing_rows
    assert row == production(mood, "may").parts["mood/windows/may"].table["row_id"][0].as_py()
    assert found.message == (
        f"mood: conflicting labels: 1 texts with several labels; expected one label for one text. Rows {row}. "
        f"Remove all but the right one of these rows from the source."
    )


def test_failed_check_says_what_where_and_what_to_do_in_one_line(mood):
    found = failures(BREAK["label_in_classes"](mood))["label_in_classes"]
    ids = mood.parts["mood/test"].table["row_id"]
    rows = sorted([ids[7].as_py(), ids[9].as_py()])
    assert found == Check(
        "label_in_classes", "mood", "test", "error", False,
        "2 of 105 labels: 'awful', 'great'", "one of bad, fair, good", tuple(rows),
        f"mood/test: label in classes: 2 of 105 labels: 'awful', 'great'; expected one of bad, fair, good. "
        f"Rows {rows[0]}, {rows[1]}. Correct the labels in the source, or add the class to "
        f"suite.tasks.mood.classes.",
    )  # fmt: skip


def test_rows_named_are_limited(mood):
    found = failures(filled(mood, "mood/test", "awful"))["label_in_classes"]
    assert len(found.failing_rows) == MOST_ROWS
    assert found.message.count(", ...") == 1
    assert "105 of 105 labels: 'awful'" in found.message


def test_missing_row_ids_are_found_without_a_crash(mood):
    suite = mood.change("mood/train", {"row_id": {0: None, 1: None}, "label": {1: "worst"}})
    found = failures(suite.copy_row("mood/train", "mood/test", row=0, group="file:new"))
    assert set(found) == {"text_normalised", "shared_texts", "label_in_classes"}
    assert all(check.failing_rows == (NO_ROW_ID,) for check in found.values())


def test_empty_split_is_explained(mood):
    found = failures(shortened(mood, "mood/test", 0))
    assert set(found) == {"row_count", "useful_row_count", "class_rows"}
    assert "0; expected at least 2 rows" in found["row_count"].message


def test_same_data_gives_the_same_checks(mood):
    suite = BREAK["label_in_classes"](mood)
    assert examine(suite.parts.values()) == examine(suite.parts.values())
