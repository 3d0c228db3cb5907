"""Parts of the test rows that are measured on their own: by a column of the source, by length of the text, by time.

A slice may hold few groups or few classes, so its numbers are wider and mean less than the task's: read its interval.
"""

import datetime as dt
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtlops import catalog
from mtlops.data.labels import is_empty, word
from mtlops.decoding import Outputs
from mtlops.evaluation.bootstrap import Floats, Interval, Resamples, every_row, interval, p_value, resample_groups
from mtlops.evaluation.comparison import are_identical, seed_noise
from mtlops.evaluation.metrics import Metrics
from mtlops.params import Gates
from mtlops.tasks import Task

NONE = "(none)"
"""The slice of the rows whose cell is empty."""

OTHER = "(other)"
"""The slice of all values but the most frequent ones."""

MOST_VALUES = 20
"""A column with more values is cut at quartiles when they are numbers; else all but the 19 most frequent are one."""

LENGTH = "words in the text"
TIME = "time"


Named = list[tuple[str, list[int]]]
"""Slices of one column: their names, and the positions of their rows."""


@dataclass(frozen=True)
class Slice:
    """The positions of its rows among the test rows, (n,) int64, and what they have in common."""

    column: str
    value: str
    rows: NDArray[np.int64]


@dataclass(frozen=True)
class SliceScores:
    """What was measured on one slice.

    Attributes:
        column: what the slice is made by.
        value: its value, or range of values.
        rows: how many test rows it holds.
        note: why it is not judged, or None when it is.
        metrics: the primary metric; macro-F1 is here the mean over the classes that occur among the labels.
        champion: the same of the champion on the same rows, or None without one.
        change: this model's metric minus the champion's.
        p_worse: p-value of "rows and seeds alone", small when it is worse; None where the slice is not judged, or both
            models answer its rows alike.
    """

    column: str
    value: str
    rows: int
    note: str | None
    metrics: Mapping[str, Interval]
    champion: Mapping[str, Interval] | None = None
    change: Interval | None = None
    p_worse: float | None = None


def slice_rows(train: pa.Table, test: pa.Table, *, columns: Sequence[str]) -> list[Slice]:
    """Returns the slices of a task's test rows by each of `columns`, by the length of the text and by time.

    Numbers of more than `MOST_VALUES` values are cut at the quartiles of the training rows, and so is the length;
    time is cut at the quartiles of the test rows, which may all be newer than the training rows. What would hold all
    rows or none is left out.

    Args:
        train: training rows, which say where to cut and which values are frequent.
        test: the rows that are cut; both as `read_split` returns them.
        columns: names of columns of both tables.
    """
    times = _microseconds(test)
    found = [(name, _by_value(train[name].to_pylist(), test[name].to_pylist())) for name in columns]
    found += [
        (LENGTH, _by_quartile(_lengths(train), _lengths(test), name=_words)),
        (TIME, _by_quartile(times, times, name=_dates)),
    ]
    return [
        Slice(column, value, np.asarray(rows, dtype=np.int64))
        for column, named in found
        for value, rows in named
        if 0 < len(rows) < test.num_rows
    ]


def measure_slices(
    task: Task,
    labels: NDArray[Any],
    *,
    slices: Sequence[Slice],
    model: Outputs,
    champion: Outputs | None,
    groups: Sequence[str],
    gates: Gates,
) -> list[SliceScores]:
    """Returns the primary metric on each slice, beside the champion's on the same rows.

    Shapes: labels: (N,) or (N, C) as `Task.encode` returns them; groups: N names; every Outputs: N rows.
    """
    found = []
    for part in slices:
        its_groups = [groups[row] for row in part.rows]
        samples = resample_groups(its_groups, num_samples=gates.resamples, seed=gates.seed)
        theirs = None if champion is None else _take(champion, part.rows)
        noise = seed_noise(task, gates, gates.resamples, share=len(part.rows) / len(labels))
        found.append(_measure(task, labels[part.rows], part, _take(model, part.rows), theirs, samples, gates, noise))
    return found


def _measure(
    task: Task,
    labels: NDArray[Any],
    part: Slice,
    model: Outputs,
    champion: Outputs | None,
    samples: Resamples,
    gates: Gates,
    noise: Floats,
) -> SliceScores:
    """Measures one slice; labels, answers and samples are those of its rows."""
    primary, confidence = task.primary, gates.confidence
    value, resampled = _values(task, labels, model, samples)
    metrics = {primary: interval(value, resampled, confidence=confidence)}
    note = _note(task, labels, gates)
    scores = SliceScores(part.column, part.value, len(part.rows), note, metrics)
    if champion is None:
        return scores
    alike = are_identical(model, champion, labels)
    theirs, theirs_resampled = (value, resampled) if alike else _values(task, labels, champion, samples)
    change, changes = value - theirs, resampled - theirs_resampled
    return replace(
        scores,
        champion={primary: interval(theirs, theirs_resampled, confidence=confidence)},
        change=interval(change, changes, confidence=confidence),
        p_worse=None if note or alike else p_value(-change, -changes - noise, beyond=0.0),
    )


def _note(task: Task, labels: NDArray[Any], gates: Gates) -> str | None:
    if len(labels) < gates.slice_rows:
        return f"too small to judge: {len(labels)} rows, fewer than gates.slice_rows, {gates.slice_rows}"
    if task.kind in ("ordinal", "regression") and (labels == labels[0]).all():
        return f"all labels are the same: {task.primary} is not defined"
    return None


def _values(task: Task, labels: NDArray[Any], outputs: Outputs, samples: Resamples) -> tuple[float, Floats]:
    """Returns the primary metric on all rows, and (B,) on each sample."""
    plain, resampled = (_primary(task, labels, outputs, s) for s in (every_row(len(labels)), samples))
    return float(plain[0]), resampled


def _primary(task: Task, labels: NDArray[Any], outputs: Outputs, samples: Resamples) -> Floats:
    """The primary metric, macro-F1 over labelled classes only.

    A slice often lacks most classes (posts of one newsgroup have one topic). Macro-F1 over labels and answers would
    then fall to a half by a single wrong answer, since that answer's class counts with an F1 of 0.
    """
    metrics: Metrics = catalog.load(catalog.KINDS[task.kind].metrics)
    values = metrics.over(samples, task, labels, outputs)[task.primary]
    if task.primary != "macro_f1" or task.has_label_lists:
        return values
    assert outputs.labels is not None
    one_hot = np.eye(len(task.classes))
    sums = samples.sums({"labelled": one_hot[labels], "answered": one_hot[outputs.labels]})
    labelled = (sums["labelled"] > 0).sum(axis=1)
    either = (sums["labelled"] + sums["answered"] > 0).sum(axis=1)
    corrected: Floats = values * (either / labelled)
    return corrected


def _take(outputs: Outputs, rows: NDArray[np.int64]) -> Outputs:
    return Outputs(**{name: None if part is None else part[rows] for name, part in vars(outputs).items()})


def _by_value(train: Sequence[Any], test: Sequence[Any]) -> Named:
    """Returns a slice for each value, or for each range of many numbers; empty cells and rare values last."""
    sides = [[None if is_empty(cell) else word(cell) for cell in cells] for cells in (train, test)]
    counts = Counter(name for name in sides[0] if name is not None)
    values = set(counts) | {name for name in sides[1] if name is not None}
    if len(values) > MOST_VALUES:
        if all(_number(name) is not None for name in values):
            return _by_quartile(_numbers(sides[0]), _numbers(sides[1]), name=_range)
        values = set(sorted(values, key=lambda name: (-counts[name], name))[: MOST_VALUES - 1])
    rows: dict[str, list[int]] = {name: [] for name in [*sorted(values, key=_natural), OTHER, NONE]}
    for row, name in enumerate(sides[1]):
        rows[NONE if name is None else name if name in values else OTHER].append(row)
    return list(rows.items())


def _by_quartile(train: Floats, test: Floats, *, name: Callable[[float, float, Floats], str]) -> Named:
    """Returns a slice for each range between the quartiles of `train`; NaN stands for an empty cell.

    Equal values are never torn apart, so there may be fewer than four.
    """
    known = train[~np.isnan(train)]
    edges = np.unique(np.quantile(known, [0.25, 0.5, 0.75], method="lower")) if len(known) else np.empty(0)
    number = np.where(np.isnan(test), len(edges) + 1, np.searchsorted(edges, test, side="left"))
    rows = [np.flatnonzero(number == i).tolist() for i in range(len(edges) + 2)]
    ends = [-math.inf, *edges.tolist(), math.inf]
    ranges = zip(ends, ends[1:], rows, strict=False)
    return [*((name(low, high, test[part]), part) for low, high, part in ranges if part), (NONE, rows[-1])]


def _range(low: float, high: float, _: Floats) -> str:
    if math.isinf(low):
        return f"up to {high:g}"
    return f"over {low:g}" if math.isinf(high) else f"over {low:g}, up to {high:g}"


def _words(low: float, high: float, _: Floats) -> str:
    if math.isinf(low) or math.isinf(high):
        return _range(low, high, _)
    return f"{low + 1:g} to {high:g}" if low + 1 < high else f"{high:g}"


def _dates(low: float, high: float, microseconds: Floats) -> str:
    first, last = (dt.datetime.fromtimestamp(end / 1e6, dt.UTC) for end in (microseconds.min(), microseconds.max()))
    style = "%Y-%m-%d" if last - first >= dt.timedelta(days=2) else "%Y-%m-%d %H:%M:%S"
    return f"{first.strftime(style)} to {last.strftime(style)}"


def _natural(name: str) -> tuple[float, str]:
    """Numbers by size, then names."""
    number = _number(name)
    return (math.inf, name) if number is None else (number, name)


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _numbers(names: Sequence[str | None]) -> Floats:
    return np.asarray([math.nan if name is None else float(name) for name in names], dtype=np.float64)


def _lengths(table: pa.Table) -> Floats:
    return np.asarray([text.count(" ") + 1 for text in table["text"].to_pylist()], dtype=np.float64)


def _microseconds(table: pa.Table) -> Floats:
    times = table["timestamp"].cast(pa.int64()).to_pylist()
    return np.asarray([math.nan if time is None else time for time in times], dtype=np.float64)
