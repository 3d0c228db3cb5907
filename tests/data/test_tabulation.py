import datetime as dt

import numpy as np
import pyarrow as pa
import pytest

from mtlops.data.prepared import COLUMNS
from mtlops.data.rows import SetAside, read_rows
from mtlops.data.sources import Source
from mtlops.data.tabulation import Tabulation, set_aside_table, slices
from mtlops.params import Inputs, parse_params

PARAMS = """
suite:
  name: s
  inputs: {group: who, timestamp: when}
  tasks:
    mood: {kind: binary, source: a.csv, label: mood, classes: [bad, good]}
    about: {kind: multilabel, source: a.csv, label: about, classes: [story, device]}
    stars: {kind: regression, source: a.csv, label: stars}
"""


def source(slices=(), **columns):
    size = len(next(iter(columns.values())))
    columns = {"text": ["a text"] * size, "who": [None] * size, "when": [None] * size} | columns
    return Source(
        name="a.csv", where="a.csv", sha256="0" * 64, tasks=("mood", "about", "stars"), columns=columns,
        inputs=Inputs(group="who", timestamp="when"), lines=range(1, size + 1), unit="line", slices=slices,
    )  # fmt: skip


def test_a_table_has_our_columns_first_then_those_of_the_source():
    params = parse_params(PARAMS)
    rows = read_rows(params, [
        source(
            ("price", "label"), text=["one", "two"], who=["x", None], when=["2024-01-01", None], mood=["good", "bad"],
            about=["device|story", None], stars=["1.5", None], price=["1", "2"], label=["l", None],
        )
    ])  # fmt: skip
    tables = {task.name: Tabulation(rows).table(task, np.asarray([1, 0])) for task in params.tasks()}
    assert tables["mood"].column_names == [*COLUMNS, "price", "raw_label"]
    assert tables["mood"].to_pylist()[1] == {
        "row_id": rows.ids[0], "text": "one", "label": "good", "group": "a.csv:x",
        "timestamp": dt.datetime(2024, 1, 1, tzinfo=dt.UTC), "source": "a.csv", "price": "1", "raw_label": "l",
    }  # fmt: skip
    assert tables["mood"]["group"].to_pylist()[0] == rows.ids[1]
    assert tables["mood"]["timestamp"].to_pylist()[0] is None
    assert {name: table.schema.field("label").type for name, table in tables.items()} == {
        "mood": pa.string(), "about": pa.list_(pa.field("element", pa.string())), "stars": pa.float32(),
    }  # fmt: skip
    assert tables["about"]["label"].to_pylist()[1] == ["story", "device"]


@pytest.mark.parametrize(
    "cells, kind, values",
    [
        ([1, None, 3], pa.int64(), [1, None, 3]),
        ([1, 2.5, None], pa.float64(), [1.0, 2.5, None]),
        ([1, "a", True, 2.0], pa.string(), ["1", "a", "true", "2"]),
        ([1 << 70, 1], pa.string(), [str(1 << 70), "1"]),
        ([float("inf"), 1.5], pa.string(), ["inf", "1.5"]),
        ([dt.date(2024, 1, 2), None], pa.string(), ["2024-01-02", None]),
        ([None, "", float("nan")], pa.string(), [None, None, None]),
    ],
)
def test_a_further_column_is_numbers_or_strings(cells, kind, values):
    array = slices(source(("extra",), extra=cells))["extra"]
    assert array.type == kind
    assert array.to_pylist() == values


def test_names_that_are_ours_get_a_prefix_until_they_are_free():
    found = slices(source(("label", "raw_label", "row_id"), label=["a"], raw_label=["b"], row_id=["c"]))
    assert {name: array.to_pylist() for name, array in found.items()} == {
        "raw_raw_label": ["a"], "raw_label": ["b"], "raw_row_id": ["c"],
    }  # fmt: skip


def test_rows_set_aside_say_where_and_why():
    table = set_aside_table([SetAside("a.csv", 3, None, "bad row", "has 1 cells", "x")])
    assert table.to_pylist() == [
        {"source": "a.csv", "line": 3, "task": None, "reason": "bad row", "detail": "has 1 cells", "text": "x"}
    ]
