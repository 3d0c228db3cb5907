"""What the prediction log keeps of requests and labels, and the tables that its writer makes of them.

The writer makes a whole file's table at once, column by column: most of a row's cost is per call, not per row.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtlops.decoding import Outputs
from mtlops.serving.description import label_names
from mtlops.serving.questions import Answer, Question
from mtlops.serving.runtime import Runtime
from mtlops.tasks import Task

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Record:
    """What one request was, and what it was answered.

    Attributes:
        time: when it was answered.
        request_id: its id.
        role: `champion`, or `shadow`; a task that a canary answered says so itself.
        runtime: who answered.
        outputs: by task.
        texts: what was asked; None for token ids.
        embeddings: (N, H), if the graph gave them.
        num_rows: of the table.
    """

    time: datetime
    request_id: str
    role: str
    runtime: Runtime
    outputs: Mapping[str, Outputs]
    texts: Sequence[str] | None
    embeddings: NDArray[np.float32] | None
    num_rows: int

    @classmethod
    def of(cls, asked: Question, answer: Answer, *, role: str) -> "Record":
        """Returns the record of an answer that was given now."""
        return cls(
            datetime.now(UTC), asked.id, role, answer.runtime, answer.outputs, asked.texts, answer.embeddings,
            asked.num_rows * max(1, len(answer.outputs)),
        )  # fmt: skip

    @property
    def watched_texts(self) -> Sequence[str]:
        """Those whose statistics are kept: a shadow's are the champion's."""
        return () if self.texts is None or self.role == "shadow" else self.texts


@dataclass(frozen=True)
class Feedback:
    """A label that came late.

    Attributes:
        time: when it came.
        request_id: of the request that was answered.
        row: position in the request.
        task: its task.
        label: names of its classes; None for a value.
        value: of a regression.
    """

    time: datetime
    request_id: str
    row: int
    task: str
    label: list[str] | None
    value: float | None


def prediction_table(records: Sequence[Record], *, with_text: bool) -> "pa.Table":
    """Returns the rows of `records`, as `mtlops.prediction_log.PREDICTION_SCHEMA` has them."""
    import pyarrow as pa

    from mtlops.prediction_log import PREDICTION_SCHEMA as SCHEMA

    columns: dict[str, list[Any]] = {field.name: [] for field in SCHEMA}
    for record, statistics in zip(records, _statistics(records), strict=True):
        _add(columns, record, statistics, with_text=with_text)
    arrays = {
        "probabilities": _lists(columns["probabilities"]),
        "embedding": _lists(columns["embedding"]),
        "statistics": _statistics_column(columns["statistics"]),
    }
    made = [arrays.get(field.name, columns[field.name]) for field in SCHEMA]
    return pa.Table.from_arrays(
        [a if isinstance(a, pa.Array) else pa.array(a, type=f.type) for a, f in zip(made, SCHEMA, strict=True)],
        schema=SCHEMA,
    )


def feedback_table(labels: Sequence[Feedback]) -> "pa.Table":
    """Returns the rows of `labels`, as `mtlops.prediction_log.FEEDBACK_SCHEMA` has them."""
    import pyarrow as pa

    from mtlops.prediction_log import FEEDBACK_SCHEMA

    columns = [pa.array([getattr(label, field.name) for label in labels], type=field.type) for field in FEEDBACK_SCHEMA]
    return pa.Table.from_arrays(columns, schema=FEEDBACK_SCHEMA)


_Statistics = tuple[Sequence[str], NDArray[np.float64]]
"""Names of S statistics, and the values (N, S) of the texts of a request."""


def _add(columns: dict[str, list[Any]], record: Record, statistics: _Statistics | None, *, with_text: bool) -> None:
    """Appends a record's rows: its tasks one after the other, what concerns the text on the first of them."""
    served = {one.task.name: one for one in record.runtime.served}
    texts = record.watched_texts
    for position, (name, outputs) in enumerate(record.outputs.items()):
        task, bundle_id = served[name].task, served[name].bundle_id
        count = len(outputs.values if outputs.values is not None else outputs.probabilities)  # type: ignore[arg-type]
        nothing = [None] * count
        is_first = position == 0 and record.role != "shadow"
        of_rows: dict[str, Iterable[Any]] = {
            "time": [record.time] * count,
            "request_id": [record.request_id] * count,
            "row": range(count),
            "task": [name] * count,
            "bundle_id": [bundle_id] * count,
            "role": ["canary" if bundle_id != record.runtime.bundle_id else record.role] * count,
            "label": _labels(task, outputs, count),
            "probabilities": _probabilities(task, outputs, count),
            "value": _values(task, outputs, count),
            "statistics": [(statistics[0], row) for row in statistics[1]] if is_first and statistics else nothing,
            "embedding": record.embeddings if is_first and record.embeddings is not None else nothing,
            "text": texts if is_first and texts and with_text else nothing,
        }
        for column, found in of_rows.items():
            columns[column].extend(found)


def _labels(task: Task, outputs: Outputs, count: int) -> list[list[str] | None]:
    if outputs.labels is None or task.has_label_lists:
        return [label_names(task, outputs, row) for row in range(count)]
    names = [[name] for name in task.classes]
    return [names[label] for label in outputs.labels.tolist()]


def _probabilities(task: Task, outputs: Outputs, count: int) -> Iterable[Any]:
    """In class order; of a task that tags words each tag's share of the row's words."""
    if task.per_word:
        assert outputs.labels is not None
        is_tag = outputs.labels[..., None] == np.arange(len(task.classes))
        shares = is_tag.sum(axis=1) / np.maximum((outputs.labels >= 0).sum(axis=1), 1)[:, None]
        return [*shares.astype(np.float32)]
    return [None] * count if outputs.probabilities is None else outputs.probabilities


def _values(task: Task, outputs: Outputs, count: int) -> Sequence[float | None]:
    """Of a regression; of a task that tags words the mean confidence, None for a row without words."""
    if task.per_word:
        assert outputs.labels is not None and outputs.probabilities is not None
        is_word = outputs.labels >= 0
        sure = np.where(is_word, outputs.probabilities.max(axis=-1), 0.0).sum(axis=1)
        words = is_word.sum(axis=1).tolist()
        return [float(total) / number if number else None for total, number in zip(sure, words, strict=True)]
    return [None] * count if outputs.values is None else outputs.values.tolist()


def _statistics(records: Sequence[Record]) -> list[_Statistics | None]:
    """Statistics of the texts of each record, those of one tokenizer computed together."""
    found: list[_Statistics | None] = [None] * len(records)
    by_tokenizer: dict[int, list[int]] = {}
    for number, record in enumerate(records):
        if record.watched_texts:
            by_tokenizer.setdefault(id(record.runtime.tokenizer), []).append(number)
    for numbers in by_tokenizer.values():
        texts = [text for number in numbers for text in records[number].watched_texts]
        names, values = _text_statistics(records[numbers[0]].runtime, texts)
        at = 0
        for number in numbers:
            count = len(records[number].watched_texts)
            found[number] = names, values[at : at + count]
            at += count
    return found


def _text_statistics(runtime: Runtime, texts: Sequence[str]) -> _Statistics:
    from mtlops.drift.columns import text_columns

    columns = text_columns(texts, runtime.tokenizer.unknown_shares(texts))
    names = [name.removeprefix("text.") for name in columns]
    return names, np.stack([np.asarray(column.values, dtype=np.float64) for column in columns.values()], axis=1)


def _lists(rows: Sequence[NDArray[np.float32] | None]) -> "pa.Array":
    """A list<float> column of vectors, null where there is none."""
    import pyarrow as pa

    offsets, mask = _offsets([0 if row is None else len(row) for row in rows]), [row is None for row in rows]
    vectors = [row for row in rows if row is not None]
    values = np.concatenate(vectors).astype(np.float32, copy=False) if vectors else np.empty(0, dtype=np.float32)
    return pa.ListArray.from_arrays(offsets, pa.array(values), mask=pa.array(mask))


def _statistics_column(rows: Sequence[tuple[Sequence[str], NDArray[np.float64]] | None]) -> "pa.Array":
    """A map<string, double> column, null where a row has no statistics."""
    import pyarrow as pa

    offsets, mask = _offsets([0 if row is None else len(row[0]) for row in rows]), [row is None for row in rows]
    keys = [name for row in rows if row is not None for name in row[0]]
    values = [row[1] for row in rows if row is not None]
    items = pa.array(np.concatenate(values) if values else np.empty(0))
    return pa.MapArray.from_arrays(offsets, pa.array(keys, type=pa.string()), items, mask=pa.array(mask))


def _offsets(lengths: Sequence[int]) -> "pa.Array":
    import pyarrow as pa

    return pa.array(np.concatenate([[0], np.cumsum(lengths)]), type=pa.int32())
