"""Great Expectations as a part: silent, in memory, one context for many tables."""

import logging

import great_expectations.expectations as gxe
import pyarrow as pa
import pytest

from mtlops.validation.checks import Wording
from mtlops.validation.engine import Engine, Promise

WORDING = Wording("this", "Do that.")


def promise(column="label", **values):
    return Promise("labels", WORDING, gxe.ExpectColumnValuesToBeInSet, {"column": column, "value_set": ["a"]}, **values)


@pytest.fixture(scope="module")
def engine():
    return Engine()


def test_outcome_names_the_rows_that_fail(engine):
    table = pa.table({"row_id": ["1", "2", "3"], "label": ["a", "b", "c" * 50]})
    (outcome,) = engine.outcomes(table, [promise(counted="labels")], key="row_id", most=20)
    assert (outcome.passed, outcome.keys) == (False, ("2", "3"))
    assert outcome.observed == f"2 of 3 labels: 'b', '{'c' * 37}...'"


def test_outcome_names_at_most_as_many_rows_as_asked(engine):
    table = pa.table({"row_id": [str(i) for i in range(9)], "label": ["b"] * 9})
    (outcome,) = engine.outcomes(table, [promise()], key="row_id", most=4)
    assert outcome.keys == ("0", "1", "2", "3")
    assert outcome.observed == "9 of 9 rows: 'b'"


def test_tables_are_not_mixed_up(engine):
    promises = [promise(), Promise("rows", WORDING, gxe.ExpectTableRowCountToBeBetween, {"min_value": 2})]
    good, bad = pa.table({"row_id": ["1", "2"], "label": ["a", "a"]}), pa.table({"row_id": ["1"], "label": ["b"]})
    for _ in range(2):
        assert [(o.passed, o.observed) for o in engine.outcomes(good, promises, key="row_id", most=20)] == [
            (True, "2 rows"), (True, "2"),
        ]  # fmt: skip
        assert [(o.passed, o.observed) for o in engine.outcomes(bad, promises, key="row_id", most=20)] == [
            (False, "1 of 1 rows: 'b'"), (False, "1"),
        ]  # fmt: skip


def test_promise_that_cannot_be_checked_is_not_kept(engine):
    table = pa.table({"row_id": ["1"]})
    (outcome,) = engine.outcomes(table, [promise()], key="row_id", most=20)
    assert not outcome.passed
    assert outcome.observed == 'it could not be checked (Error: The column "label" in BatchData does not exist.)'


def test_nothing_is_printed_or_written(engine, capfd, tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    caplog.set_level(logging.WARNING)
    table = pa.table({"row_id": ["1"], "label": ["b"]})
    Engine().outcomes(table, [promise()], key="row_id", most=20)
    assert list(tmp_path.rglob("*")) == []
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
