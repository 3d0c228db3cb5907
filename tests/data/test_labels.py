import math

import pytest

from mtlops.data.labels import read_labels
from mtlops.tasks import Task

CLASSES = ("low", "high")


def read(kind, cells, label="label", classes=CLASSES):
    columns = {label: cells} if isinstance(label, str) else dict(zip(label, zip(*cells, strict=True), strict=True))
    return read_labels(Task("t", kind, () if kind == "regression" else classes), columns, label=label)


@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal"])
def test_one_class_is_a_word_and_an_empty_cell_no_label(kind):
    found = read(kind, ["low", " high ", "", None, math.nan, 1, 1.0, True, "new"])
    assert found.values == ["low", "high", None, None, None, "1", "1", "true", "new"]
    assert found.faults == {}


def test_a_list_is_not_one_class():
    assert read("multiclass", ["low", ["low"]]).faults == {1: "column 'label' holds ['low'], not one class"}


def test_several_classes_come_in_the_order_of_the_classes_then_strangers():
    found = read("multilabel", [["high", "low", "high"], "high|new|low", [], None, ""])
    assert found.values == [("low", "high"), ("low", "high", "new"), (), None, None]


@pytest.mark.parametrize("cell", [["low", None], ["low", ["high"]], 5, {"low": 1}, "low||high"])
def test_what_is_no_list_of_classes_is_a_fault(cell):
    assert "not a list of classes" in read("multilabel", [cell]).faults[0]


def test_one_column_per_class_is_a_set_of_classes():
    found = read("multilabel", [("1", "0"), (True, 1.0), (0, False), (None, "")], label=["a", "b"])
    assert found.values == [("low",), ("low", "high"), (), None]
    assert found.faults == {}


@pytest.mark.parametrize(
    "cells, fault",
    [
        (("1", None), "column 'b' is empty, while other labels of this row are not"),
        (("2", "0"), "column 'a' holds '2', not 0 or 1"),
        (("0", [1]), "column 'b' holds [1], not 0 or 1"),
    ],
)
def test_a_switch_is_zero_or_one(cells, fault):
    assert read("multilabel", [cells], label=["a", "b"]).faults == {0: fault}


def test_a_regression_label_is_a_finite_number():
    found = read("regression", ["1.5", 2, "", "nan", "x" * 50, "inf", True, [1], 10**400])
    assert found.values == [1.5, 2.0, None, None, None, None, None, None, None]
    assert sorted(found.faults) == [4, 5, 6, 7, 8]
    assert found.faults[4] == f"column 'label' holds '{'x' * 38}…, not a number"
    assert "not a finite number" in found.faults[5]


def test_tags_stay_in_order_and_a_number_may_be_a_position():
    found = read("tagging", [["low", "high", "low"], [1, 0, 0], [], None, ["new"]])
    assert found.values == [("low", "high", "low"), ("high", "low", "low"), (), None, ("new",)]
    assert found.faults == {}
    assert read("tagging", [[1, 0]], classes=("0", "1")).values == [("1", "0")]


@pytest.mark.parametrize("cell", ["low high", [["low"]], ["low", ""], ["low", None], [1.0], [2], [-1], [True, {}]])
def test_what_is_no_list_of_tags_is_a_fault(cell):
    assert list(read("tagging", [cell]).faults) == [0]
