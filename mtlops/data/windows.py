"""Which rows are set aside as production windows."""

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.catalog import suggest
from mtlops.data.grouping import Components
from mtlops.data.labels import is_empty, word
from mtlops.data.rows import EPOCH, NO_TIME, Rows
from mtlops.data.sources import Source
from mtlops.errors import DataError, UsageError
from mtlops.params import Params, Window

Mask = NDArray[np.bool_]


def by_rule(params: Params, rows: Rows) -> dict[str, Mask]:
    """Returns for each window with `where` or `after` which rows it takes; masks (N,) bool.

    Raises:
        UsageError: `after` for a task whose source has no timestamp.
        DataError: `where` names a column that a source lacks, or a window takes no row at all.
    """
    masks = {}
    for name, window in params.data.windows.items():
        if window.share is not None:
            continue
        chosen = [_chosen(name, window, source) for source in rows.sources]
        offsets = np.cumsum([0, *(len(part) for part in chosen)])[:-1]
        mask = np.concatenate(chosen)[offsets[rows.source] + rows.position]
        if window.after is not None:
            mask &= (rows.times != NO_TIME) & (rows.times >= _microseconds(window.after))
        masks[name] = mask & rows.has_label(window.tasks)
        if not masks[name].any():
            raise DataError(f"data.windows.{name}: takes no row. {_hint(window, rows.sources)}")
    return masks


def controls(params: Params, components: Components, *, has_task: Mapping[str, Mask]) -> dict[str, Mask]:
    """Returns for each window with `share` which components it takes; masks (C,) bool, at most one holds for each.

    Args:
        params: the windows and the seed.
        components: of the rows that no other window took.
        has_task: task -> which components hold a label of it; (C,) bool.
    """
    masks = {}
    free = np.ones(len(components), dtype=bool)
    for name, window in params.data.windows.items():
        if window.share is None:
            continue
        wanted = np.any([has_task[task] for task in window.tasks], axis=0)
        drawn = components.chance(seed=params.data.seed, purpose=f"window {name}") < window.share
        masks[name] = free & wanted & drawn
        free &= ~masks[name]
    return masks


def rule(window: Window) -> dict[str, Any]:
    """Returns the rule of a window as the manifest records it."""
    return window.model_dump(mode="json", include={"where", "after", "share"}, exclude_none=True)


def _chosen(name: str, window: Window, source: Source) -> Mask:
    """Which rows of a source the window's `where` takes (all, for a window with `after`)."""
    mask = np.full(len(source.lines), fill_value=bool(set(window.tasks) & set(source.tasks)))
    if not mask.any():
        return mask
    if window.after is not None and source.inputs.timestamp is None:
        raise UsageError(
            f"params.yaml: data.windows.{name}.after: {source.name} has no timestamp. Name its column in "
            f"suite.inputs.timestamp, or use `where` or `share`."
        )
    for column, values in (window.where or {}).items():
        if column not in source.columns:
            hint = suggest(column, list(source.columns))
            raise DataError(f"data.windows.{name}.where: {source.where} has no column {column!r}. {hint}")
        wanted = set(values)
        mask &= np.fromiter((_word(cell) in wanted for cell in source.columns[column]), dtype=bool, count=len(mask))
    return mask


def _word(cell: Any) -> str | None:
    return None if is_empty(cell) or isinstance(cell, (list, dict, bytes)) else word(cell)


def _microseconds(time: dt.datetime) -> int:
    aware = time if time.tzinfo else time.replace(tzinfo=dt.UTC)
    return (aware - EPOCH) // dt.timedelta(microseconds=1)


def _hint(window: Window, sources: Sequence[Source]) -> str:
    if window.after is not None:
        return "No row is as new as `after`: choose an earlier time."
    for column, values in (window.where or {}).items():
        cells = [cell for source in sources if set(window.tasks) & set(source.tasks) for cell in source.columns[column]]
        there = sorted({text for cell in cells if (text := _word(cell)) is not None})
        missing = [value for value in values if value not in there]
        if missing and there:
            return f"No row has {missing[0]!r} in {column!r}. {suggest(missing[0], there[:20])}"
    return "No row with a label of its tasks meets all conditions."
