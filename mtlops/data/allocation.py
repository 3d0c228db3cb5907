"""Where each row goes: to a split, to production windows, or nowhere, and then why."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtlops.data import windows
from mtlops.data.grouping import Components, connect
from mtlops.data.rows import Rows, SetAside
from mtlops.data.selection import conflicting
from mtlops.data.splitting import Evidence, assign
from mtlops.params import Params

CONFLICT = "conflicting labels"
IN_WINDOW = "text is also in a window"
WITH_CONTROL = "belongs to rows of a control window"
NOWHERE = -1

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Allocation:
    """Where each of N rows goes.

    Attributes:
        splits: (N,) int64: 0 train, 1 valid, 2 test, or `NOWHERE`.
        windows: window -> which rows it takes; (N,) bool, in the order of params.yaml.
        left_out: how many rows go nowhere, by reason.
        num_components: components among the rows that no rule-made window took.
        largest_rows: rows of the largest of them.
    """

    splits: NDArray[np.int64]
    windows: dict[str, Mask]
    left_out: Counter[str]
    num_components: int
    largest_rows: int


def without_conflicts(rows: Rows) -> Rows:
    """Returns the rows, with no label for a task where the same text has two; each such row is set aside."""
    labels = {task: list(values) for task, values in rows.labels.items()}
    aside = list(rows.set_aside)
    for task, values in labels.items():
        for row in conflicting(rows.ids, values).tolist():
            source = rows.sources[rows.source[row]]
            line = source.lines[rows.position[row]]
            detail = f"{values[row]!r} here, another label elsewhere"
            aside.append(SetAside(source.name, line, task, CONFLICT, detail, rows.texts[row][:200]))
            values[row] = None
    return dataclasses.replace(rows, labels=labels, set_aside=aside)


def allocate(params: Params, rows: Rows) -> Allocation:
    """Returns where each row goes, so that no text and no group stands on two sides.

    First the rows of windows with a rule leave, and with them every row with the same text. What is left
    falls into components; a control window takes whole components, the splits take the others.

    Raises:
        UsageError, DataError: as `windows.by_rule`.
    """
    chosen = windows.by_rule(params, rows)
    taken = _any(list(chosen.values()), len(rows))
    texts = {rows.keys[row] for row in np.flatnonzero(taken)}
    same_text = np.fromiter((key in texts for key in rows.keys), dtype=bool, count=len(rows))
    labelled = rows.has_label(list(rows.labels))
    free = np.flatnonzero(labelled & ~same_text)
    components = connect(
        [rows.ids[row] for row in free],
        keys=[rows.keys[row] for row in free],
        groups=[rows.groups[row] for row in free],
    )
    controls = windows.controls(params, components, has_task=_has_task(rows, free, components))
    kept = ~_any(list(controls.values()), len(components))
    splits = np.full(len(rows), NOWHERE)
    rest = free[kept[components.of_row]]
    splits[rest] = _assign(params, rows, rest, components.select(kept))
    for name, mask in controls.items():
        chosen[name] = np.zeros(len(rows), dtype=bool)
        chosen[name][free[mask[components.of_row]]] = True
        chosen[name] &= rows.has_label(params.data.windows[name].tasks)
    nowhere = labelled & (splits == NOWHERE) & ~_any(list(chosen.values()), len(rows))
    reasons = {IN_WINDOW: int((nowhere & same_text).sum()), WITH_CONTROL: int((nowhere & ~same_text).sum())}
    return Allocation(
        splits=splits,
        windows={name: chosen[name] for name in params.data.windows},
        left_out=Counter(reasons),
        num_components=len(components),
        largest_rows=int(components.sizes.max(initial=0)),
    )


def _assign(params: Params, rows: Rows, free: NDArray[np.int64], components: Components) -> NDArray[np.int64]:
    """The split of each row in `free`."""
    evidence = Evidence(
        source=rows.source[free],
        times=rows.times[free],
        splits=[rows.splits[row] for row in free],
        labels={task: [values[row] for row in free] for task, values in rows.labels.items()},
    )
    return assign(components, evidence, data=params.data)[components.of_row]


def _has_task(rows: Rows, free: NDArray[np.int64], components: Components) -> dict[str, Mask]:
    """Task -> which components hold a label of it."""
    found = {}
    for task in rows.labels:
        found[task] = np.zeros(len(components), dtype=bool)
        found[task][components.of_row[rows.has_label([task])[free]]] = True
    return found


def _any(masks: Sequence[Mask], length: int) -> Mask:
    found = np.zeros(length, dtype=bool)
    for mask in masks:
        found |= mask
    return found
