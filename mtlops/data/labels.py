"""Label cells of a source to the labels that splits carry."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtlops.tasks import Task

SEPARATOR = "|"
"""Stands between the classes of a multilabel cell in CSV."""


class BadCellError(ValueError):
    """A cell that is not what the task promises; its message says why."""


@dataclass(frozen=True)
class Labels:
    """The labels of one task in one source.

    Attributes:
        values: for each row a class name (binary, multiclass, ordinal), a tuple of class names
            (multilabel; tagging: one a word), a finite number (regression), or None where the row has no label.
        faults: row -> why its cell cannot be read.
    """

    values: list[Any]
    faults: dict[int, str]


def read_labels(task: Task, columns: Mapping[str, Sequence[Any]], *, label: str | Sequence[str]) -> Labels:
    """Returns a task's labels from the column, or from one 0/1 column per class, that params.yaml names.

    Labels outside the classes stay as they are: telling of them is the work of `validate`.
    """
    if isinstance(label, str):
        read = _reader(task)
        return _collect((lambda cell: read(cell, label)), columns[label])
    names = list(label)
    rows = list(zip(*(columns[name] for name in names), strict=True))
    return _collect(lambda cells: _switches(cells, names, task.classes), rows)


def is_empty(cell: Any) -> bool:
    """Says whether a cell holds nothing: None, not-a-number, or blank text."""
    if isinstance(cell, str):
        return not cell.strip()
    return cell is None or (isinstance(cell, float) and math.isnan(cell))


def word(cell: Any) -> str:
    """Returns a scalar cell as text: `true`/`false`, and a whole number without `.0`."""
    if isinstance(cell, bool):
        return "true" if cell else "false"
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return str(cell).strip()


def _reader(task: Task) -> Callable[[Any, str], Any]:
    if task.kind == "regression":
        return _number
    if task.per_word:
        return lambda cell, name: _tags(cell, name, task.classes)
    if task.kind == "multilabel":
        order = {name: i for i, name in enumerate(task.classes)}
        return lambda cell, name: _names(cell, name, order)
    return _name


def _collect(read: Callable[[Any], Any], cells: Sequence[Any]) -> Labels:
    values: list[Any] = []
    faults: dict[int, str] = {}
    for row, cell in enumerate(cells):
        try:
            values.append(read(cell))
        except BadCellError as error:
            values.append(None)
            faults[row] = str(error)
    return Labels(values, faults)


def _name(cell: Any, column: str) -> str | None:
    if is_empty(cell):
        return None
    if isinstance(cell, (list, dict, bytes)):
        raise BadCellError(f"column {column!r} holds {_shown(cell)}, not one class")
    return word(cell)


def _names(cell: Any, column: str, order: Mapping[str, int]) -> tuple[str, ...] | None:
    if is_empty(cell):
        return None
    names = cell.split(SEPARATOR) if isinstance(cell, str) else cell
    if not isinstance(names, list) or any(is_empty(name) or isinstance(name, (list, dict)) for name in names):
        raise BadCellError(f"column {column!r} holds {_shown(cell)}, not a list of classes")
    return tuple(sorted({word(name) for name in names}, key=lambda name: (order.get(name, len(order)), name)))


def _tags(cell: Any, column: str, classes: Sequence[str]) -> tuple[str, ...] | None:
    """The tag of each word; a number that is no class is the position of one, as data sets of the hub have it."""
    if is_empty(cell):
        return None
    if not isinstance(cell, list) or any(is_empty(tag) or isinstance(tag, (list, dict, float)) for tag in cell):
        raise BadCellError(f"column {column!r} holds {_shown(cell)}, not a list with one tag for each word")
    tags = []
    for tag in cell:
        is_position = isinstance(tag, int) and not isinstance(tag, bool) and word(tag) not in classes
        if is_position and not 0 <= tag < len(classes):
            raise BadCellError(f"column {column!r} holds tag {tag}; {len(classes)} classes are counted from 0")
        tags.append(classes[tag] if is_position else word(tag))
    return tuple(tags)


def _number(cell: Any, column: str) -> float | None:
    if is_empty(cell):
        return None
    try:
        value = float(cell)
    except (TypeError, ValueError, OverflowError):
        raise BadCellError(f"column {column!r} holds {_shown(cell)}, not a number") from None
    if math.isnan(value):
        return None
    if isinstance(cell, bool) or math.isinf(value):
        raise BadCellError(f"column {column!r} holds {_shown(cell)}, not a finite number")
    return value


def _switches(cells: Sequence[Any], columns: Sequence[str], classes: Sequence[str]) -> tuple[str, ...] | None:
    if all(map(is_empty, cells)):
        return None
    switched = [_switch(cell, column) for cell, column in zip(cells, columns, strict=True)]
    return tuple(name for name, on in zip(classes, switched, strict=True) if on)


def _switch(cell: Any, column: str) -> bool:
    if is_empty(cell):
        raise BadCellError(f"column {column!r} is empty, while other labels of this row are not")
    switch = word(cell).lower()
    if switch not in {"0", "1", "0.0", "1.0", "false", "true"}:
        raise BadCellError(f"column {column!r} holds {_shown(cell)}, not 0 or 1")
    return switch in {"1", "1.0", "true"}


def _shown(cell: Any) -> str:
    text = repr(cell)
    return text if len(text) <= 40 else text[:39] + "…"
