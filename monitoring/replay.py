"""A table judged as if its rows were traffic: answered by a bundle, window by window, without a server."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from mtlops.data.tables import read_table
from mtlops.drift.columns import text_columns
from mtlops.errors import DataError, UsageError
from mtlops.params import Params
from mtlops.prediction_log import FEEDBACK_SCHEMA, PREDICTION_SCHEMA
from mtlops.serving.passes import PAIRS
from mtlops.tasks import Task
from mtlops.watch.engine import Watch
from mtlops.watch.references import References
from mtlops.watch.requests import request_training
from mtlops.watch.rows import label_of
from mtlops.watch.state import State
from mtlops.watch.summary import summarise

if TYPE_CHECKING:
    from mtlops.serving.runtime import Runtime

_START = datetime(2026, 1, 1, tzinfo=UTC)
_ROWS_AT_ONCE = 1024
_BATCH = 8
"""Texts of one pass: more are not quicker on a CPU, and take 3 MB of memory each."""


@dataclass(frozen=True)
class Traffic:
    """Rows to replay.

    Attributes:
        texts: N texts.
        groups: what each row belongs to; rows of one group count as one request.
        labels: true labels by task, None where a row has none.
        asked: tasks that each row is asked for; None: all rows for the same tasks.
    """

    texts: Sequence[str]
    groups: Sequence[str]
    labels: dict[str, list[Any]]
    asked: Sequence[frozenset[str]] | None = None

    def tasks_of(self, row: int, tasks: Sequence[str]) -> tuple[str, ...]:
        """Returns the tasks that a row is asked for, among `tasks`."""
        return tuple(name for name in tasks if self.asked is None or name in self.asked[row])


def read_traffic(path: Path, tasks: Sequence[Task], *, text: str = "text") -> Traffic:
    """Returns the rows of a table, or of a folder with one prepared table for each task (`data/prepared/windows/*`).

    A table may have a column named like a task, or, of one task's own file, a column `label`, with true labels; and a
    column `group`.

    Args:
        path: CSV, JSON Lines or Parquet file, or such a folder.
        tasks: of the bundle.
        text: column with the text.

    Raises:
        DataError: the file cannot be read, or has no such column.
    """
    if path.is_dir():
        return _read_folder(path, tasks)
    columns = _columns(path)
    if text not in columns:
        raise DataError(f"{path}: has no column {text!r}; it has {', '.join(columns)}. Give --text COLUMN.")
    texts = [value if isinstance(value, str) else "" for value in columns[text]]
    empty = sum(not value.strip() for value in texts)
    if empty:
        raise DataError(f"{path}: {empty} of {len(texts)} rows have no text. Remove them: a server would refuse them.")
    groups = columns.get("group", range(len(texts)))
    named = {task.name: task.name for task in tasks if task.name in columns}
    if not named and "label" in columns and path.stem in {task.name for task in tasks}:
        named = {path.stem: "label"}
    labels = {name: list(columns[column]) for name, column in named.items()}
    return Traffic(texts, [str(group) for group in groups], labels)


def answer(
    traffic: Traffic, runtime: "Runtime", *, tasks: Sequence[str], rows_per_day: float = 1000.0, shuffle: int | None = 0
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Yields what a server would have logged: tables of predictions, each with the labels that come back for it.

    Args:
        traffic: the rows.
        runtime: the bundle that answers.
        tasks: that rows are asked for; a row of a prepared window only for those whose rows it is among.
        rows_per_day: how fast rows come: alarms are budgeted by time.
        shuffle: seed of the order of the rows; None keeps the table's.

    Raises:
        ArtefactError: the bundle's graph gives no embeddings.
        DataError: a label is none of its task's.
    """
    runtime.check_embedding()
    order = list(range(len(traffic.texts)))
    if shuffle is not None:
        np.random.default_rng(shuffle).shuffle(order)
    known = {task.name: task for task in runtime.tasks}
    gap = timedelta(days=1.0 / rows_per_day)
    for start in range(0, len(order), _ROWS_AT_ONCE):
        rows = order[start : start + _ROWS_AT_ONCE]
        times = {row: _START + gap * (start + i) for i, row in enumerate(rows)}
        yield _predictions(traffic, times, runtime=runtime, tasks=tasks), _feedback(traffic, times, tasks=known)


def judge(
    tables: Iterable[tuple[pa.Table, pa.Table]], folder: Path, *, params: Params, with_labels: bool = True
) -> dict[str, Any]:
    """Returns the report of a monitor that has seen these tables as traffic.

    Args:
        tables: what `answer` yields.
        folder: of the bundle that answered.
        params: sections `drift` and `trigger` are used.
        with_labels: labels come back as feedback.
    """
    references = References.of_bundle(folder)
    watch = Watch(params.drift, references, State(":memory:"))
    for predictions, labels in tables:
        with watch.state.transaction():
            watch.take_predictions(predictions)
            if with_labels:
                watch.take_labels(labels)
            request_training(watch.state, references, trigger=params.trigger, log="replay")
    watch.close_all()
    with watch.state.transaction():
        request_training(watch.state, references, trigger=params.trigger, log="replay")
        report = summarise(watch, log="replay")
    watch.state.close()
    return report


def _read_folder(path: Path, tasks: Sequence[Task]) -> Traffic:
    files = [(task.name, path / f"{task.name}.parquet") for task in tasks]
    files = [(name, file) for name, file in files if file.exists()]
    if not files:
        raise UsageError(f"{path}: holds no table of a task of this bundle, such as {tasks[0].name}.parquet.")
    texts: dict[str, tuple[str, str]] = {}
    labels: dict[str, dict[str, Any]] = {}
    for name, file in files:
        rows = _columns(file)
        ids = [str(row_id) for row_id in rows["row_id"]]
        texts |= dict(zip(ids, zip(rows["text"], map(str, rows["group"]), strict=True), strict=True))
        labels[name] = dict(zip(ids, rows["label"], strict=True))
    ids = sorted(texts)
    return Traffic(
        [texts[row][0] for row in ids], [texts[row][1] for row in ids],
        {name: [found.get(row) for row in ids] for name, found in labels.items()},
        [frozenset(name for name, found in labels.items() if row in found) for row in ids],
    )  # fmt: skip


def _columns(path: Path) -> dict[str, list[Any]]:
    table = read_table(path)
    if table.bad:
        first = table.bad[0]
        raise DataError(f"{path}: {len(table.bad)} rows cannot be read, the first on {table.unit} {first.line}: "
                        f"{first.reason}. Correct or remove them.")  # fmt: skip
    return table.columns


def _predictions(
    traffic: Traffic, times: Mapping[int, datetime], *, runtime: "Runtime", tasks: Sequence[str]
) -> pa.Table:  # fmt: skip
    """The rows that come at these times: answered in batches of similar length, logged in their order."""
    asked = {row: traffic.tasks_of(row, tasks) for row in times}
    rows = sorted((row for row in times if asked[row]), key=lambda row: (asked[row], len(traffic.texts[row])))
    found: dict[int, list[dict[str, Any]]] = {}
    for names, group in itertools.groupby(rows, key=asked.__getitem__):
        for batch in _batches(list(group), tasks=len(names)):
            found |= _answered(traffic, {row: times[row] for row in batch}, runtime=runtime, tasks=names)
    entries = [entry for row in times for entry in found.get(row, [])]
    return pa.Table.from_pylist(entries, schema=PREDICTION_SCHEMA)


def _batches(rows: Sequence[int], *, tasks: int) -> Iterator[Sequence[int]]:
    size = max(1, min(_BATCH, PAIRS // tasks))
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _answered(
    traffic: Traffic, times: Mapping[int, datetime], *, runtime: "Runtime", tasks: Sequence[str]
) -> dict[int, list[dict[str, Any]]]:  # fmt: skip
    texts = [traffic.texts[row] for row in times]
    statistics = text_columns(texts, runtime.tokenizer.unknown_shares(texts))
    positions, rows = runtime.positions(tasks), range(len(texts))
    pair_row, pair_task = zip(*itertools.product(rows, positions), strict=True)
    logits, vectors = runtime.compute(runtime.tokenizer.ids(texts), pair_row, pair_task, embed_row=rows)
    answers = {
        runtime.tasks[position].name: runtime.decode(position, logits[i :: len(positions)])
        for i, position in enumerate(positions)
    }
    found: dict[int, list[dict[str, Any]]] = {}
    for i, (row, time) in enumerate(times.items()):
        said = [(name.removeprefix("text."), float(column.values[i])) for name, column in statistics.items()]
        common = {"time": time, "request_id": traffic.groups[row], "row": row,
                  "bundle_id": runtime.bundle_id, "role": "champion"}  # fmt: skip
        found[row] = [{**common, "task": task.name, **_answer(task, answers[task.name], i)}
                      for task in runtime.tasks if task.name in answers]  # fmt: skip
        found[row][0] |= {"statistics": said, "embedding": vectors[i]}
    return found


def _answer(task: Task, outputs: Any, i: int) -> dict[str, Any]:
    if task.per_word:
        raise UsageError(f"task {task.name!r} tags words: a scenario replays tasks with one answer to a text.")
    if task.kind == "regression":
        return {"value": float(outputs.values[i])}
    if task.kind == "multilabel":
        label = [name for name, is_set in zip(task.classes, outputs.labels[i], strict=True) if is_set]
    else:
        label = [task.classes[int(outputs.labels[i])]]
    return {"label": label, "probabilities": outputs.probabilities[i]}


def _feedback(traffic: Traffic, times: Mapping[int, datetime], *, tasks: Mapping[str, Task]) -> pa.Table:
    found = [
        entry
        for name, labels in traffic.labels.items()
        for entry in _labels(traffic, times, task=tasks[name], labels=labels)
    ]
    return pa.Table.from_pylist(found, schema=FEEDBACK_SCHEMA)


def _labels(
    traffic: Traffic, times: Mapping[int, datetime], *, task: Task, labels: Sequence[Any]
) -> Iterator[dict[str, Any]]:  # fmt: skip
    for row, time in times.items():
        label = labels[row]
        if label is None:
            continue
        is_number = task.kind == "regression"
        names = None if is_number else [str(name) for name in label] if isinstance(label, list) else [str(label)]
        value = float(label) if is_number else None
        if label_of(task, {"label": names, "value": value}) is None:
            raise DataError(f"row {row}: {task.name}: label {label!r} is not one of {list(task.classes)}. Correct it.")
        yield {"time": time, "request_id": traffic.groups[row], "row": row, "task": task.name, "label": names,
               "value": value}  # fmt: skip
