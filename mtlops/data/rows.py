"""The usable rows of all sources in one place: text normalised, cells read, every other row accounted for."""

import datetime as dt
import hashlib
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.catalog import suggest
from mtlops.data.labels import BadCellError, is_empty, read_labels, word
from mtlops.data.normalisation import normalise
from mtlops.data.prepared import SPLITS
from mtlops.data.sources import Source
from mtlops.errors import DataError
from mtlops.params import Params
from mtlops.tasks import Task

logger = logging.getLogger(__name__)

BAD_ROW = "bad row"
TOO_SHORT = "too few words"
NO_TIME = np.iinfo(np.int64).min
"""Stands in `Rows.times` where a row has no time."""

EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
_NOT_WORD = re.compile(r"[\W_]+")


@dataclass(frozen=True)
class SetAside:
    """A row that is left out: where it stands, why, and how it starts.

    Attributes:
        source: name of the source.
        line: line of the file, or number of the row where there are no lines; from 1.
        task: the task that it is left out of; None for all.
        reason: one of a few, for counting.
        detail: the particular fault, for reading.
        text: at most 200 characters of what stands there.
    """

    source: str
    line: int
    task: str | None
    reason: str
    detail: str
    text: str


@dataclass(frozen=True)
class Rows:
    """All usable rows; every list and array has one value a row.

    Attributes:
        sources: the sources that rows come from.
        source: position in `sources`.
        position: position of the row in its source's columns.
        texts: normalised texts.
        ids: 32 hex digits of the sha256 of the text: equal texts have equal ids.
        keys: texts without case, punctuation and space: equal keys are one text for the split.
        groups: what a row belongs to, with its source's name before it; None where nothing is said.
        times: microseconds since 1970 in UTC, or `NO_TIME`.
        splits: `train`, `valid` or `test` where the source says so, else None.
        labels: task -> labels (see `labels.Labels.values`); None where a row has none.
        set_aside: the rows that are not among these.
    """

    sources: Sequence[Source]
    source: NDArray[np.int64]
    position: NDArray[np.int64]
    texts: list[str]
    ids: list[str]
    keys: list[str]
    groups: list[str | None]
    times: NDArray[np.int64]
    splits: list[str | None]
    labels: dict[str, list[Any]]
    set_aside: list[SetAside]

    def __len__(self) -> int:
        """Number of rows."""
        return len(self.texts)

    def has_label(self, tasks: Sequence[str]) -> NDArray[np.bool_]:
        """Returns for each row whether it has a label of at least one of `tasks`; (N,) bool."""
        found = np.zeros(len(self), dtype=bool)
        for task in tasks:
            found |= np.fromiter((label is not None for label in self.labels[task]), dtype=bool, count=len(self))
        return found


def read_rows(params: Params, sources: Sequence[Source]) -> Rows:
    """Returns the usable rows of all sources, and those that had to be set aside.

    Raises:
        DataError: a row cannot be read and `data.bad_rows` is `fail`, or a source has no usable row.
    """
    parts = []
    for source in sources:
        parts.append(_read(params, source))
        _check(params, source, parts[-1])
        logger.info("source=%s rows=%d usable=%d", source.name, source.num_rows, len(parts[-1].keep))
    sizes = [len(part.keep) for part in parts]
    texts = [text for part in parts for text in part.texts]
    labels: dict[str, list[Any]] = {task: [] for task in params.suite.tasks}
    for part in parts:
        for task, values in labels.items():
            values.extend(part.labels.get(task, [None] * len(part.keep)))
    return Rows(
        sources=sources,
        source=np.repeat(np.arange(len(parts)), sizes),
        position=np.asarray([row for part in parts for row in part.keep], dtype=np.int64),
        texts=texts,
        ids=[row_id(text) for text in texts],
        keys=[fold(text) for text in texts],
        groups=[group for part in parts for group in part.groups],
        times=np.asarray([time for part in parts for time in part.times], dtype=np.int64),
        splits=[split for part in parts for split in part.splits],
        labels=labels,
        set_aside=[row for part in parts for row in part.set_aside],
    )


def row_id(text: str) -> str:
    """Returns the id of a row with this normalised text."""
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def fold(text: str) -> str:
    """Returns a text without case, punctuation and space, or the text itself when nothing is left.

    The same sentence stands in two corpora with other quotes, dashes and capitals; it is one text.
    """
    return _NOT_WORD.sub("", text.casefold()) or text


@dataclass(frozen=True)
class _Part:
    """The usable rows of one source."""

    keep: list[int]
    texts: list[str]
    groups: list[str | None]
    times: list[int]
    splits: list[str | None]
    labels: dict[str, list[Any]]
    set_aside: list[SetAside]


def _read(params: Params, source: Source) -> _Part:
    inputs = source.inputs
    faults: dict[int, str] = {}
    texts = _cells(source, inputs.text, _text, faults)
    groups = _cells(source, inputs.group, _group, faults)
    times = _cells(source, inputs.timestamp, _microseconds, faults)
    splits = _cells(source, inputs.split, _split, faults)
    labels = {}
    for task in (task for task in params.tasks() if task.name in source.tasks):
        found = read_labels(task, source.columns, label=params.suite.tasks[task.name].label)
        labels[task.name] = found.values
        faults.update(found.faults)
        if task.per_word:
            faults.update(_unequal(task, texts, found.values))
    least = params.data.min_words
    short = {row for row, text in enumerate(texts) if row not in faults and _num_words(text) < least}
    keep = [row for row in range(len(texts)) if row not in faults and row not in short]
    return _Part(
        keep=keep,
        texts=_take(texts, keep),
        groups=[None if group is None else f"{source.name}:{group}" for group in _take(groups, keep)],
        times=[NO_TIME if time is None else time for time in _take(times, keep)],
        splits=_take(splits, keep),
        labels={task: _take(values, keep) for task, values in labels.items()},
        set_aside=_set_aside(source, faults, short),
    )


def _set_aside(source: Source, faults: Mapping[int, str], short: set[int]) -> list[SetAside]:
    unread = [SetAside(source.name, row.line, None, BAD_ROW, row.reason, row.text) for row in source.bad]
    texts = source.columns[source.inputs.text]
    for row in sorted(faults.keys() | short):
        reason, detail = (BAD_ROW, faults[row]) if row in faults else (TOO_SHORT, TOO_SHORT)
        start = "" if texts[row] is None else str(texts[row])[:200]
        unread.append(SetAside(source.name, source.lines[row], None, reason, detail, start))
    return sorted(unread, key=lambda row: row.line)


def _check(params: Params, source: Source, part: _Part) -> None:
    bad = [row for row in part.set_aside if row.reason == BAD_ROW]
    if bad and params.data.bad_rows == "fail":
        others = f" ({len(bad)} of {source.num_rows} rows cannot be read)" if len(bad) > 1 else ""
        raise DataError(
            f"{source.where}: {source.unit} {bad[0].line}: {bad[0].detail}{others}. Correct it, or set "
            f"data.bad_rows: quarantine to put such rows aside."
        )
    if not part.keep:
        raise DataError(
            f"{source.where}: none of its {source.num_rows} rows is usable: {len(bad)} cannot be read, "
            f"{len(part.set_aside) - len(bad)} have fewer than {params.data.min_words} words (data.min_words)."
        )


def _cells(source: Source, column: str | None, read: Callable[[Any], Any], faults: dict[int, str]) -> list[Any]:
    """What `read` makes of each cell of a column; a cell that it refuses goes to `faults`."""
    if column is None:
        return [None] * len(source.lines)
    values = []
    for row, cell in enumerate(source.columns[column]):
        try:
            values.append(read(cell))
        except BadCellError as error:
            values.append(None)
            faults.setdefault(row, f"column {column!r} {error}")
    return values


def _unequal(task: Task, texts: Sequence[str | None], labels: Sequence[Any]) -> dict[int, str]:
    """The rows that have another number of tags than of words."""
    return {
        row: f"task {task.name}: {len(tags)} tags for {_num_words(text)} words"
        for row, (text, tags) in enumerate(zip(texts, labels, strict=True))
        if text is not None and tags is not None and len(tags) != _num_words(text)
    }


def _text(cell: Any) -> str:
    if cell is None:
        return ""
    if isinstance(cell, list):
        return _joined(cell)
    if not isinstance(cell, str):
        raise BadCellError(f"holds a {type(cell).__name__}, not text")
    return normalise(cell)


def _joined(words: Sequence[Any]) -> str:
    """The text of a list of words: with one space between them, so that they can be told apart again."""
    found = [normalise(each) if isinstance(each, str) else "" for each in words]
    text = normalise(" ".join(found))
    if text.split() != found:
        wrong = next((position for position, each in enumerate(found) if each.split() != [each]), len(found))
        raise BadCellError(f"holds a list whose word {wrong + 1} is blank, no text, or of several words")
    return text


def _group(cell: Any) -> str | None:
    if isinstance(cell, (list, dict, bytes)):
        raise BadCellError(f"holds a {type(cell).__name__}, not a name or number")
    return None if is_empty(cell) else word(cell)


def _microseconds(cell: Any) -> int | None:
    if is_empty(cell):
        return None
    if isinstance(cell, str):
        try:
            cell = dt.datetime.fromisoformat(cell.strip())
        except ValueError:
            raise BadCellError(f"holds {cell[:40]!r}, not an ISO 8601 time such as 2024-05-31T12:00:00Z") from None
    elif isinstance(cell, dt.date) and not isinstance(cell, dt.datetime):
        cell = dt.datetime(cell.year, cell.month, cell.day)  # noqa: DTZ001 - the zone is set below
    if not isinstance(cell, dt.datetime):
        raise BadCellError(f"holds a {type(cell).__name__}, not a time")
    aware = cell if cell.tzinfo else cell.replace(tzinfo=dt.UTC)
    return (aware - EPOCH) // dt.timedelta(microseconds=1)


def _split(cell: Any) -> str | None:
    if is_empty(cell):
        return None
    name = word(cell)
    if name not in SPLITS:
        raise BadCellError(f"holds {name[:40]!r}. {suggest(name, list(SPLITS))}")
    return name


def _num_words(text: str) -> int:
    return text.count(" ") + 1 if text else 0


def _take(values: Sequence[Any], rows: Sequence[int]) -> list[Any]:
    return [values[row] for row in rows]
