"""Rows to the Arrow tables that are written."""

import datetime as dt
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from mtlops.data.labels import is_empty, word
from mtlops.data.prepared import COLUMNS
from mtlops.data.rows import NO_TIME, Rows, SetAside
from mtlops.data.selection import Index
from mtlops.data.sources import Source
from mtlops.tasks import Task

_NAMES = pa.list_(pa.field("element", pa.string()))
LABEL_TYPES = {"multilabel": _NAMES, "tagging": _NAMES, "regression": pa.float32()}
"""Arrow types of labels; any other kind has a string."""

_EXACT = 1 << 53
"""Larger whole numbers are not exact as float64, and stay text beside fractions."""


class Tabulation:
    """Makes the tables of tasks from rows.

    Args:
        rows: all rows; the further columns of their sources are given one Arrow type each, over all rows.
    """

    def __init__(self, rows: Rows) -> None:
        self._rows = rows
        self._slices = [slices(source) for source in rows.sources]

    def table(self, task: Task, index: Index) -> pa.Table:
        """Returns the rows `index` with the columns of `prepared.COLUMNS` and those of the task's source."""
        rows = self._rows
        picked = index.tolist()
        number = next(n for n, source in enumerate(rows.sources) if task.name in source.tasks)
        times = rows.times[index]
        values = rows.labels[task.name]
        columns = {
            "row_id": pa.array([rows.ids[row] for row in picked], pa.string()),
            "text": pa.array([rows.texts[row] for row in picked], pa.string()),
            "label": pa.array([values[row] for row in picked], LABEL_TYPES.get(task.kind, pa.string())),
            "group": pa.array([rows.groups[row] or rows.ids[row] for row in picked], pa.string()),
            "timestamp": pa.array(times, pa.timestamp("us", tz="UTC"), mask=times == NO_TIME),
            "source": pa.array([rows.sources[number].name] * len(picked), pa.string()),
        }
        position = pa.array(rows.position[index])
        return pa.table(columns | {name: array.take(position) for name, array in self._slices[number].items()})


def slices(source: Source) -> dict[str, pa.Array]:
    """Returns the further columns of a source: strings or numbers; a name that is ours gets `raw_` before it."""
    arrays: dict[str, pa.Array] = {}
    for name in source.slices:
        own = name
        while own in COLUMNS or (own != name and own in source.slices):
            own = f"raw_{own}"
        arrays[own] = _array(source.columns[name])
    return arrays


def set_aside_table(rows: Sequence[SetAside]) -> pa.Table:
    """Returns the table of rows that were set aside: where they stand, why, and how they start."""
    return pa.table({
        "source": pa.array([row.source for row in rows], pa.string()),
        "line": pa.array([row.line for row in rows], pa.int64()),
        "task": pa.array([row.task for row in rows], pa.string()),
        "reason": pa.array([row.reason for row in rows], pa.string()),
        "detail": pa.array([row.detail for row in rows], pa.string()),
        "text": pa.array([row.text for row in rows], pa.string()),
    })  # fmt: skip


def _array(cells: Sequence[Any]) -> pa.Array:
    values = [None if is_empty(cell) else cell for cell in cells]
    numbers = [value for value in values if value is not None]
    kinds = {type(value) for value in numbers}
    if kinds == {int} and all(-(1 << 63) <= number < 1 << 63 for number in numbers):
        return pa.array(values, pa.int64())
    if float in kinds and kinds <= {int, float} and all(abs(number) <= _EXACT for number in numbers):
        return pa.array(values, pa.float64())
    return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _text(value: Any) -> str:
    return value.isoformat() if isinstance(value, (dt.date, dt.time)) else word(value)
