"""Rows of the log as numbers: what one task answered, what came in with it, and what is wrong with some of it."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from mtlops.decoding import Outputs
from mtlops.drift.columns import (
    Column,
    Columns,
    embedding_column,
    label_columns,
    prediction_columns,
    quality_columns,
)
from mtlops.drift.profile import ENCODER
from mtlops.tasks import Task

Floats = NDArray[np.float64]

SEPARATOR = "\x1f"
"""Between the names of a multilabel answer, where it is kept as text."""

UNREADABLE = "a text of which the tokenizer knows less than half"
UNKNOWN_SHARE = "unknown_token_share"
MOST_UNKNOWN = 0.5
"""From this share of unknown tokens a text is garbage: a wrong encoding, or another script."""

_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Inputs:
    """What came in, for M of the rows of a sample.

    Attributes:
        positions: (M,) the rows that have it, ascending.
        statistics: of the texts, by name: (M,) each, not-a-number where one is missing.
        vectors: (M, H) embeddings; None when the log has none.
    """

    positions: NDArray[np.int64]
    statistics: Mapping[str, Floats]
    vectors: NDArray[np.float32] | None

    def part(self, start: int, stop: int) -> "Inputs":
        """Returns what belongs to the rows from `start` up to `stop`."""
        some = slice(*np.searchsorted(self.positions, [start, stop]).tolist())
        statistics = {name: values[some] for name, values in self.statistics.items()}
        vectors = None if self.vectors is None else self.vectors[some]
        return Inputs(self.positions[some] - start, statistics, vectors)


@dataclass(frozen=True)
class Sample:
    """N rows of one task, or of the encoder, in the order of the log.

    Attributes:
        times: (N,) microseconds since 1970.
        keys: the request of each row: rows of one request are not independent.
        inputs: what came in.
        outputs: the answers; None for the encoder.
        encoded: true labels as `Task.encode` gives them; None for traffic.
        labels: true labels as the log holds them.
    """

    times: NDArray[np.int64]
    keys: Sequence[str]
    inputs: Inputs
    outputs: Outputs | None = None
    encoded: NDArray[Any] | None = None
    labels: Sequence[Any] = ()

    def __len__(self) -> int:
        return len(self.times)

    def part(self, start: int, stop: int) -> "Sample":
        """Returns the rows from `start` up to `stop`."""
        outputs = self.outputs and Outputs(
            **{name: None if values is None else values[start:stop] for name, values in vars(self.outputs).items()}
        )
        encoded = None if self.encoded is None else self.encoded[start:stop]
        return Sample(self.times[start:stop], self.keys[start:stop], self.inputs.part(start, stop), outputs,
                      encoded, self.labels[start:stop])  # fmt: skip

    def columns(self, task: Task | None, *, width: int) -> Columns:
        """Returns what drift is judged by.

        Args:
            task: None for the encoder.
            width: numbers in an embedding of the reference; embeddings of another width are left out.
        """
        if self.encoded is not None:
            assert task is not None and self.outputs is not None
            return {**label_columns(task, self.labels), **quality_columns(task, self.outputs, self.encoded)}
        found: dict[str, Column] = {
            f"text.{name}": Column("input", "numeric", values) for name, values in self.inputs.statistics.items()
        }
        vectors = self.inputs.vectors
        if vectors is not None and len(vectors) and vectors.shape[1] == width:
            found |= embedding_column(vectors[self._has_vector()])
        if task is not None and self.outputs is not None:
            found |= prediction_columns(task, self.outputs)
        return found

    def vector_keys(self) -> list[str]:
        """Returns the request of each row that has an embedding."""
        return [self.keys[position] for position in self.inputs.positions[self._has_vector()].tolist()]

    def _has_vector(self) -> NDArray[np.bool_]:
        vectors = self.inputs.vectors
        if vectors is None:
            return np.zeros(len(self.inputs.positions), dtype=bool)
        return np.asarray(np.isfinite(vectors).all(axis=1))


@dataclass(frozen=True)
class Answered:
    """The rows of a log that count.

    Attributes:
        champion: rows that a champion answered, whichever.
        rows: those of the bundle that is watched, of tasks that it has.
        counts: all rows, and those that were left out, by reason.
    """

    champion: pa.Table
    rows: pa.Table
    counts: Counter[str]


@dataclass
class Parsed:
    """What a table of the log holds.

    Attributes:
        samples: by task, and by `encoder` for rows that were asked for every task.
        faults: by task, by what is wrong: rows that cannot be used.
    """

    samples: dict[str, Sample] = field(default_factory=dict)
    faults: dict[str, Counter[str]] = field(default_factory=dict)


def answered_by(table: pa.Table, bundle_id: str, tasks: Sequence[Task]) -> Answered:
    """Returns the rows of a predictions table that a bundle answered as champion."""
    champion = _where(table, pc.equal(table["role"], "champion"))
    own = _where(champion, pc.equal(champion["bundle_id"], bundle_id))
    known = _where(own, pc.is_in(own["task"], value_set=pa.array([task.name for task in tasks])))
    counts = {"rows": table.num_rows, "rows_of_other_roles": table.num_rows - champion.num_rows,
              "rows_of_other_bundles": champion.num_rows - own.num_rows,
              "rows_of_unknown_tasks": own.num_rows - known.num_rows}  # fmt: skip
    return Answered(champion, known, Counter(counts))


def _where(table: pa.Table, mask: pa.ChunkedArray) -> pa.Table:
    """The rows that a mask keeps; a table of which all are kept is not copied."""
    return table if pc.all(mask).as_py() else table.filter(mask)


def parse_predictions(table: pa.Table, tasks: Sequence[Task]) -> Parsed:
    """Returns the rows of a predictions table by task.

    A row that was asked for every task belongs, with its text, to the encoder alone: the same text is not judged once
    a task. What was asked for some of the tasks is compared with what those tasks know.
    """
    parsed = Parsed()
    table = table.combine_chunks()
    row_of, first_of, num_tasks = _rows_of_requests(table)
    inputs = _Inputs(table, first_of)
    is_whole = (num_tasks == len(tasks))[row_of]
    names = np.asarray(table["task"].to_pylist(), dtype=object)
    answers = table.select(["label", "probabilities", "value"])
    for task in tasks:
        chosen = np.flatnonzero(names == task.name)
        if len(chosen):
            outputs, is_good = _outputs(task, answers.take(pa.array(chosen)), parsed)
            chosen = chosen[is_good]
            wanted = np.where(is_whole[chosen], -1, inputs.position_of[row_of[chosen]])
            parsed.samples[task.name] = _sample(table, chosen, inputs=inputs.at(wanted), outputs=outputs)
    whole = inputs.positions[is_whole[inputs.positions]]
    if len(whole):
        wanted = inputs.position_of[row_of[whole]]
        parsed.samples[ENCODER] = _sample(table, whole, inputs=inputs.at(wanted), outputs=None)
    _count_missing_inputs(parsed, row_of=row_of, inputs=inputs, names=names)
    _count_unreadable(parsed, row_of=row_of, inputs=inputs, names=names)
    return parsed


def labelled(
    task: Task, *, answers: Outputs, labels: Sequence[Any], times: Sequence[int], keys: Sequence[str]
) -> Sample:
    """Returns answers with their true labels as a sample; the labels are the task's own, checked before."""
    nothing = Inputs(np.zeros(0, dtype=np.int64), {}, None)
    return Sample(np.asarray(times, dtype=np.int64), keys, nothing, answers, task.encode(labels), labels)


def outputs_of(task: Task, rows: Sequence[Mapping[str, Any]]) -> Outputs:
    """Returns answers that `kept_answers` gave, as rows with `label`, `probabilities` and `value`."""
    if task.kind == "regression":
        return Outputs(values=np.asarray([row["value"] for row in rows], dtype=np.float32))
    shares = np.stack([np.frombuffer(row["probabilities"], dtype=np.float32) for row in rows])
    names = [row["label"].split(SEPARATOR) if row["label"] else [] for row in rows]
    return Outputs(probabilities=shares, labels=_positions(task, names))


def label_of(task: Task, row: Mapping[str, Any]) -> Any:
    """Returns a label of a feedback row as the task's data hold it; None when it is none of the task's."""
    if task.kind == "regression":
        value = row["value"]
        return None if value is None or not np.isfinite(value) else float(value)
    names = row["label"]
    if names is None or any(name not in task.classes for name in names):
        return None
    if task.kind == "multilabel":
        return list(names)
    return names[0] if len(names) == 1 else None


class _Inputs:
    """The text statistics and embeddings of a table, by the position of the log row that holds them."""

    def __init__(self, table: pa.Table, first_of: NDArray[np.int64]) -> None:
        has = pc.is_valid(table["statistics"]).to_numpy(zero_copy_only=False)
        self.positions = np.flatnonzero(has)
        self.statistics = _statistics(table["statistics"], self.positions)
        self.vectors = _vectors(table["embedding"], self.positions)
        index = np.full(len(has), -1, dtype=np.int64)
        index[self.positions] = np.arange(len(self.positions))
        self.position_of = index[first_of]
        """(R,) for each request row where its inputs are; -1 where the log has none."""

    def at(self, wanted: NDArray[np.int64]) -> Inputs:
        there = np.flatnonzero(wanted >= 0)
        some = wanted[there]
        statistics = {name: values[some] for name, values in self.statistics.items()}
        return Inputs(there, statistics, None if self.vectors is None else self.vectors[some])


def _rows_of_requests(table: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """For each log row the number of its (request, row); for each of those the log row that holds its inputs, and its
    number of tasks."""  # noqa: D209
    requests = table["request_id"].combine_chunks().dictionary_encode().indices.to_numpy().astype(np.int64)
    rows = table["row"].to_numpy().astype(np.int64)
    _, row_of = np.unique(requests * (int(rows.max(initial=0)) + 1) + rows, return_inverse=True)
    num_tasks = np.bincount(row_of)
    first_of = np.zeros(len(num_tasks), dtype=np.int64)
    order = np.arange(len(row_of))[::-1]
    first_of[row_of[order]] = order
    has = pc.is_valid(table["statistics"]).to_numpy(zero_copy_only=False)
    with_inputs = np.flatnonzero(has)[::-1]
    first_of[row_of[with_inputs]] = with_inputs
    return row_of, first_of, num_tasks


def _statistics(column: pa.ChunkedArray, positions: NDArray[np.int64]) -> dict[str, Floats]:
    some = column.take(pa.array(positions)).combine_chunks()
    if isinstance(some, pa.ChunkedArray):
        some = pa.concat_arrays(some.chunks) if some.num_chunks else pa.array([], type=column.type)
    lengths = np.diff(some.offsets.to_numpy())
    row = np.repeat(np.arange(len(positions)), lengths)
    encoded = some.keys.dictionary_encode()
    keys, items = encoded.indices.to_numpy(), some.items.to_numpy(zero_copy_only=False)
    start = some.offsets[0].as_py() if len(some) else 0
    keys, items = keys[start : start + len(row)], items[start : start + len(row)]
    found: dict[str, Floats] = {}
    for number, name in enumerate(encoded.dictionary.to_pylist()):
        values = np.full(len(positions), np.nan)
        values[row[keys == number]] = items[keys == number]
        found[name] = values
    return found


def _vectors(column: pa.ChunkedArray, positions: NDArray[np.int64]) -> NDArray[np.float32] | None:
    some = column.take(pa.array(positions))
    lengths = np.asarray(pc.fill_null(pc.list_value_length(some), 0).to_pylist(), dtype=np.int64)
    width = int(lengths.max(initial=0))
    if width == 0:
        return None
    vectors = np.full((len(positions), width), np.nan, dtype=np.float32)
    full = lengths == width
    flat = pc.list_flatten(some.filter(pa.array(full))).to_numpy()
    vectors[full] = flat.reshape(-1, width)
    return vectors


def _outputs(task: Task, rows: pa.Table, parsed: Parsed) -> tuple[Outputs, NDArray[np.bool_]]:
    """The answers that can be used, and which rows they are; the others are counted."""
    faults = parsed.faults.setdefault(task.name, Counter())
    if task.kind == "regression":
        values = rows["value"].to_numpy(zero_copy_only=False).astype(np.float64)
        good = np.isfinite(values)
        faults["no value"] += int((~good).sum())
        return Outputs(values=values[good].astype(np.float32)), good
    if task.per_word:
        return _tags(task, rows, faults)
    lengths = np.asarray(pc.fill_null(pc.list_value_length(rows["probabilities"]), -1).to_pylist(), dtype=np.int64)
    good = lengths == len(task.classes)
    faults["probabilities of another number of classes"] += int((~good).sum())
    shares = np.full((len(lengths), len(task.classes)), np.nan, dtype=np.float32)
    flat = pc.list_flatten(rows["probabilities"].filter(pa.array(good)))
    shares[good] = flat.to_numpy(zero_copy_only=False).reshape(-1, len(task.classes))
    broken = good & ~_is_distribution(task, shares)
    faults["probabilities that are none"] += int(broken.sum())
    good &= ~broken
    labels = rows["label"].to_pylist()
    known = np.asarray([names is not None and all(name in task.classes for name in names) for names in labels])
    if task.kind != "multilabel":
        known &= np.asarray([names is not None and len(names) == 1 for names in labels])
    faults["a label that the task does not have"] += int((good & ~known).sum())
    good &= known
    chosen = [labels[position] for position in np.flatnonzero(good).tolist()]
    return Outputs(probabilities=shares[good], labels=_positions(task, chosen)), good


def _tags(task: Task, rows: pa.Table, faults: Counter[str]) -> tuple[Outputs, NDArray[np.bool_]]:
    """The tags of each row's words. The log has their mean confidence: each word gets that, the other tags the rest."""
    labels, sure = rows["label"].to_pylist(), rows["value"].to_numpy(zero_copy_only=False).astype(np.float64)
    known = np.asarray([names is not None and all(name in task.classes for name in names) for names in labels])
    faults["a label that the task does not have"] += int((~known).sum())
    good = known & np.isfinite(sure) & (sure >= 0.0) & (sure <= 1.0 + _SUM_TOLERANCE)
    faults["no confidence"] += int((known & ~good).sum())
    tags = task.encode([names for names, is_good in zip(labels, good.tolist(), strict=True) if is_good]).astype(
        np.int64
    )
    confidence = sure[good][:, None, None]
    is_answer = tags[..., None] == np.arange(len(task.classes))
    shares = np.where(is_answer, confidence, (1.0 - confidence) / max(1, len(task.classes) - 1))
    shares = np.where(tags[..., None] >= 0, shares, np.nan).astype(np.float32)
    return Outputs(probabilities=shares, labels=tags), good


def _is_distribution(task: Task, shares: NDArray[np.float32]) -> NDArray[np.bool_]:
    with np.errstate(invalid="ignore"):
        inside = ((shares >= 0.0) & (shares <= 1.0 + _SUM_TOLERANCE)).all(axis=1)
        if task.kind == "multilabel":
            return np.asarray(inside)
        return np.asarray(inside & (np.abs(shares.sum(axis=1) - 1.0) <= _SUM_TOLERANCE))


def _positions(task: Task, labels: Sequence[Sequence[str]]) -> NDArray[Any]:
    position = {name: i for i, name in enumerate(task.classes)}
    if task.kind != "multilabel":
        return np.asarray([position[names[0]] for names in labels], dtype=np.int64)
    found = np.zeros((len(labels), len(task.classes)), dtype=bool)
    for row, names in enumerate(labels):
        found[row, [position[name] for name in names]] = True
    return found


def _sample(table: pa.Table, chosen: NDArray[np.int64], *, inputs: Inputs, outputs: Outputs | None) -> Sample:
    rows = table.select(["time", "request_id"]).take(pa.array(chosen))
    times = rows["time"].cast(pa.int64()).to_numpy()
    return Sample(times, rows["request_id"].to_pylist(), inputs, outputs)


def _count_missing_inputs(
    parsed: Parsed, *, row_of: NDArray[np.int64], inputs: _Inputs, names: NDArray[Any]
) -> None:  # fmt: skip
    without = inputs.position_of[row_of] < 0
    for name in set(names[without].tolist()):
        if name in parsed.samples:
            parsed.faults.setdefault(name, Counter())["no text statistics"] += int((without & (names == name)).sum())


def _count_unreadable(
    parsed: Parsed, *, row_of: NDArray[np.int64], inputs: _Inputs, names: NDArray[Any]
) -> None:  # fmt: skip
    shares = inputs.statistics.get(UNKNOWN_SHARE)
    if shares is None or not len(shares):
        return
    place = inputs.position_of[row_of]
    unreadable = (place >= 0) & (shares[place] >= MOST_UNKNOWN)
    for name in set(names[unreadable].tolist()):
        if name in parsed.samples:
            parsed.faults.setdefault(name, Counter())[UNREADABLE] += int((unreadable & (names == name)).sum())


def kept_answers(table: pa.Table) -> Iterator[tuple[Any, ...]]:
    """Yields (request, row, task, time, bundle, label, probabilities, value, text) of each row, as they are kept for
    late labels: the names of a label joined by a unit separator, probabilities as float32 bytes.
    """
    names = ("request_id", "row", "task", "bundle_id", "label", "value", "text")
    request, row, task, bundle, label, value, text = (table[name].to_pylist() for name in names)
    times = table["time"].cast(pa.int64()).to_pylist()
    given = table["probabilities"].to_pylist()
    shares = [None if p is None else np.asarray(p, dtype=np.float32).tobytes() for p in given]
    # The log has a text once, on the first of its tasks.
    texts = {(request[i], row[i]): words for i, words in enumerate(text) if words is not None}
    for i, time in enumerate(times):
        joined = None if label[i] is None else SEPARATOR.join(label[i])
        words = texts.get((request[i], row[i]))
        yield request[i], row[i], task[i], time, bundle[i], joined, shares[i], value[i], words
