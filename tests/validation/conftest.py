"""Small prepared splits in memory that keep every promise, to be broken one at a time."""

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import pytest

from mtlops.tasks import Task
from mtlops.validation.parts import LoadedPart, column_types

SIZES = {"train": 210, "valid": 60, "test": 105, "windows/control": 30}


@dataclass(frozen=True)
class Suite:
    """The parts of a suite of tasks, and ways to change one of them.

    Attributes:
        parts: the parts by name, in the order in which they are examined.
    """

    parts: Mapping[str, LoadedPart]

    def change(self, name: str, columns: Mapping[str, Mapping[int, Any]]) -> "Suite":
        """Returns the suite with values replaced: column -> row -> value; the manifest entry follows."""
        table = self.parts[name].table
        for column, values in columns.items():
            cells = table[column].to_pylist()
            for row, value in values.items():
                cells[row] = value
            field = table.schema.field(column)
            table = table.set_column(table.schema.get_field_index(column), field, pa.array(cells, field.type))
        return self.put(name, table)

    def change_texts(self, name: str, texts: Mapping[int, str]) -> "Suite":
        """Returns the suite with other texts, and the row ids that belong to them."""
        return self.change(name, {"text": texts, "row_id": {row: row_id(text) for row, text in texts.items()}})

    def put(self, name: str, table: pa.Table, **values: Any) -> "Suite":
        """Returns the suite with another table in a part, whose manifest entry follows unless given."""
        part = self.parts[name]
        part = replace(part, **{"table": table, "entry": entry(table, part.task), **values})
        return Suite({**self.parts, name: part})

    def copy_row(self, source: str, target: str, *, row: int = 0, **cells: Any) -> "Suite":
        """Returns the suite with one row of a part, `cells` replaced, also at the end of another part."""
        copied = {**self.parts[source].table.slice(row, 1).to_pylist()[0], **cells}
        table = self.parts[target].table
        return self.put(target, pa.concat_tables([table, pa.Table.from_pylist([copied], schema=table.schema)]))


@pytest.fixture(scope="session")
def suite_of() -> Callable[..., Suite]:
    """Returns a function from tasks, and the splits wanted, to a suite of them that keeps every promise."""

    def build(*tasks: Task, splits: Sequence[str] = ("train", "test")) -> Suite:
        parts = [_part(task, split) for task in tasks for split in splits]
        return Suite({part.name: part for part in parts})

    return build


@pytest.fixture(scope="session")
def tasks() -> dict[str, Task]:
    """Returns one task of each kind, by kind."""
    return {
        "binary": Task("spam", "binary", ("no", "yes")),
        "multiclass": Task("mood", "multiclass", ("bad", "fair", "good")),
        "multilabel": Task("tags", "multilabel", ("red", "green")),
        "ordinal": Task("stars", "ordinal", ("one", "two", "three")),
        "regression": Task("price", "regression", (), (0.0, 0.1)),
    }


def row_id(text: str) -> str:
    """Returns the row id of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def entry(table: pa.Table, task: Task) -> dict[str, Any]:
    """Returns what a truthful manifest says about a table."""
    counts: Counter[str] = Counter()
    if task.classes and "label" in table.column_names:
        for label in table["label"].to_pylist():
            counts.update(name for name in (label if isinstance(label, list) else [label]) if name is not None)
    return {"rows": table.num_rows, "sha256": "", "path": "", "label_counts": dict(counts)}


def _part(task: Task, split: str) -> LoadedPart:
    types, size = column_types(task), SIZES[split]
    texts = [f"row {row} of {split} for {task.name}" for row in range(size)]
    columns = {
        "row_id": [row_id(text) for text in texts],
        "text": texts,
        "label": _labels(task, size),
        "group": [f"file:{task.name}-{split}-{row // 2}" for row in range(size)],
        "timestamp": [None] * size,
        "source": ["file"] * size,
    }
    table = pa.table({name: pa.array(columns[name], kind) for name, kind in types.items()})
    return LoadedPart(task, split, table, entry(table, task))


def _labels(task: Task, size: int) -> Sequence[Any]:
    if not task.classes:
        return [0.1 * row / (size - 1) for row in range(size)]
    names = [task.classes[row % len(task.classes)] for row in range(size)]
    if task.kind != "multilabel":
        return names
    return [[] if row % 5 == 0 else list(task.classes) if row % 5 == 1 else [name] for row, name in enumerate(names)]
