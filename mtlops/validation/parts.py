"""A split or window of one task, loaded, beside what the manifest says about it."""

from dataclasses import dataclass, field

import pyarrow as pa

from mtlops.data.prepared import Part
from mtlops.tasks import Task


@dataclass(frozen=True)
class LoadedPart:
    """One split or window of one task.

    Attributes:
        task: the task, as params.yaml describes it.
        split: `train`, `valid`, `test` or `windows/<name>`.
        table: its rows.
        entry: what the manifest says about it.
        is_apart: whether its groups may not meet those of training. True for splits and for control
            windows; other windows may hold known authors or products, as real traffic does.
    """

    task: Task
    split: str
    table: pa.Table = field(repr=False)
    entry: Part
    is_apart: bool = True

    @property
    def name(self) -> str:
        """`task/split`."""
        return f"{self.task.name}/{self.split}"


def column_types(task: Task) -> dict[str, pa.DataType]:
    """Returns the columns that every part of a task has, with their types."""
    return {
        "row_id": pa.string(),
        "text": pa.string(),
        "label": _label_type(task),
        "group": pa.string(),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "source": pa.string(),
    }


def _label_type(task: Task) -> pa.DataType:
    if not task.classes:
        return pa.float32()
    return pa.list_(pa.string()) if task.has_label_lists else pa.string()


def wrong_columns(part: LoadedPart) -> dict[str, str]:
    """Returns what is wrong with the columns of a part, by column; empty when nothing is."""
    schema = part.table.schema
    return {
        name: f"{schema.field(name).type} instead of {wanted}" if name in schema.names else "missing"
        for name, wanted in column_types(part.task).items()
        if name not in schema.names or schema.field(name).type != wanted
    }


def single_labels(part: LoadedPart) -> pa.Table:
    """Returns a table with one label in each row: that of the part itself, unless its labels are lists.

    A row with a list of labels gives one row for each of them: none for an empty list, which is a
    label ("none of the classes"), and one null for a missing list, which is not.
    """
    if not pa.types.is_list(part.table.schema.field("label").type):
        return part.table
    rows = [
        (row_id, label)
        for row_id, names in zip(part.table["row_id"].to_pylist(), part.table["label"].to_pylist(), strict=True)
        for label in ([None] if names is None else names)
    ]
    return pa.table([pa.array([row[i] for row in rows], pa.string()) for i in range(2)], names=["row_id", "label"])
