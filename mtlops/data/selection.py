"""Which of a task's rows are kept: no text twice, no text with two labels, at most so many."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.data.grouping import chance

Index = NDArray[np.int64]


def conflicting(ids: Sequence[str], labels: Sequence[Any]) -> Index:
    """Returns the rows whose text also stands there with another label: (K,) int64, ascending.

    There is no saying which label is right, so all of them are returned. Rows without a label have no say.
    """
    labels_of: dict[str, set[Any]] = {}
    for name, label in zip(ids, labels, strict=True):
        if label is not None:
            labels_of.setdefault(name, set()).add(label)
    torn = {name for name, found in labels_of.items() if len(found) > 1}
    rows = (row for row, name in enumerate(ids) if name in torn and labels[row] is not None)
    return np.fromiter(rows, dtype=np.int64)


def first_of_each(ids: Sequence[str], rows: Index) -> Index:
    """Returns those of `rows` whose id no earlier one has, ordered by id."""
    first: dict[str, int] = {}
    for row in rows.tolist():
        first.setdefault(ids[row], row)
    return np.asarray([first[name] for name in sorted(first)], dtype=np.int64)


def at_most(
    most: int, splits: Mapping[str, Index], *, ids: Sequence[str], labels: Sequence[Any], seed: int
) -> dict[str, Index]:
    """Returns at most `most` rows of all splits together, taken from each split in proportion.

    The hash of the id decides, so that tasks on the same texts keep the same ones; but the first row of
    each class comes before the second of any. 0 keeps all rows.
    """
    total = sum(map(len, splits.values()))
    if not most or total <= most:
        return dict(splits)
    return {
        name: _sample(rows, max(1, most * len(rows) // total) if len(rows) else 0, ids=ids, labels=labels, seed=seed)
        for name, rows in splits.items()
    }


def _sample(rows: Index, size: int, *, ids: Sequence[str], labels: Sequence[Any], seed: int) -> Index:
    order = sorted(rows.tolist(), key=lambda row: chance(ids[row], seed=seed, purpose="sample"))
    first: list[int] = []
    others: list[int] = []
    seen: set[Any] = set()
    for row in order:
        names = _classes(labels[row])
        (others if names <= seen else first).append(row)
        seen |= names
    return np.asarray(sorted([*first, *others][:size], key=lambda row: ids[row]), dtype=np.int64)


def _classes(label: Any) -> set[Any]:
    if isinstance(label, tuple):
        return set(label)
    return {label} if isinstance(label, str) else set()
