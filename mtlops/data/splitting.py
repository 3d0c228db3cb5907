"""Which split each component of rows goes to: once, for all tasks and sources."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.data.grouping import Components
from mtlops.data.prepared import SPLITS
from mtlops.data.rows import NO_TIME
from mtlops.params import Data

logger = logging.getLogger(__name__)

TRAIN, VALID, TEST = range(3)
ENOUGH_ROWS = 20
"""A class with at least this many rows gets a row in every split, where its components allow it."""

_Demand = tuple[str, str]
"""(task, class) of which every split should have rows; class "" stands for any row of the task."""


@dataclass(frozen=True)
class Evidence:
    """What is known about M rows that bears on their split.

    Attributes:
        source: (M,) int64, number of the source.
        times: (M,) int64, microseconds since 1970 or `NO_TIME`.
        splits: M of `train`, `valid`, `test` or None, as the source says.
        labels: task -> M labels (a class, a tuple of classes, a number) or None.
    """

    source: NDArray[np.int64]
    times: NDArray[np.int64]
    splits: Sequence[str | None]
    labels: Mapping[str, Sequence[Any]]


def assign(components: Components, evidence: Evidence, *, data: Data) -> NDArray[np.int64]:
    """Returns for each component 0 (train), 1 (valid) or 2 (test); (C,) int64.

    In this order: what a source says stays, and a split that it lacks is cut from its `train`; where rows
    have times, the newest components of a source are `test` and the next newest `valid`; others are drawn
    by the hash of their name. A component that is told two things goes to the later of train, valid, test.
    One with more rows than `valid` should have is trained on. Last, components move, smallest first, until
    every split has rows of each task and of each class with `ENOUGH_ROWS`, as far as that can be.
    """
    allowed = _allowed(data, components, evidence)
    chance = {name: components.chance(seed=data.seed, purpose=name) for name in ("test", "valid")}
    to_test = allowed[:, TEST] & (~allowed[:, TRAIN] | (chance["test"] < data.test_share))
    valid_share = data.valid_share / (1 - data.test_share)
    to_valid = allowed[:, VALID] & (~allowed[:, TRAIN] | (chance["valid"] < valid_share))
    splits = np.where(to_test, TEST, np.where(to_valid, VALID, TRAIN))
    splits[(components.sizes > data.valid_share * len(components.of_row)) & allowed[:, TRAIN]] = TRAIN
    _fill(splits, allowed, components, _demands(components, evidence.labels))
    return splits


def _allowed(data: Data, components: Components, evidence: Evidence) -> NDArray[np.bool_]:
    """Which splits a component may go to; (C, 3) bool, at least one in each row."""
    codes = np.asarray([-1 if split is None else SPLITS.index(split) for split in evidence.splits], dtype=np.int64)
    by_row = np.ones((len(codes), len(SPLITS)), dtype=bool)
    timed = np.full(len(components), -1)
    for source in np.unique(evidence.source):
        mine = evidence.source == source
        said = np.unique(codes[mine & (codes >= 0)])
        if len(said):
            by_row[mine & (codes > TRAIN)] = False
            by_row[np.ix_(mine & (codes == TRAIN), said[said > TRAIN])] = False
        elif (evidence.times[mine] != NO_TIME).any():
            timed = np.maximum(timed, _by_time(data, components, np.where(mine, evidence.times, NO_TIME)))
    told = codes > TRAIN
    by_row[told, codes[told]] = True
    allowed = np.ones((len(components), len(SPLITS)), dtype=bool)
    np.logical_and.at(allowed, components.of_row, by_row)
    allowed[timed >= 0] &= np.eye(len(SPLITS), dtype=bool)[timed[timed >= 0]]
    np.maximum.at(timed, components.of_row, codes)
    torn = ~allowed.any(axis=1)
    allowed[torn] = np.eye(len(SPLITS), dtype=bool)[timed[torn]]
    return allowed


def _by_time(data: Data, components: Components, times: NDArray[np.int64]) -> NDArray[np.int64]:
    """The split of each component by the newest of `times` among its rows; -1 where it has none."""
    newest = np.full(len(components), NO_TIME)
    np.maximum.at(newest, components.of_row, times)
    has_time = np.flatnonzero(newest != NO_TIME)
    order = has_time[np.lexsort((np.asarray(components.names)[has_time], -newest[has_time]))]
    rows = components.sizes[order]
    rows_before = np.cumsum(rows) - rows
    is_test = rows_before < max(1, round(data.test_share * rows.sum()))
    is_valid = ~is_test & (rows_before < rows[is_test].sum() + max(1, round(data.valid_share * rows.sum())))
    splits = np.full(len(components), -1)
    splits[order] = np.where(is_test, TEST, np.where(is_valid, VALID, TRAIN))
    return splits


def _demands(components: Components, labels: Mapping[str, Sequence[Any]]) -> dict[_Demand, list[int]]:
    """(task, class) -> components with rows of it, for classes with enough rows; class "" is any row."""
    rows: dict[_Demand, list[int]] = {}
    for task, values in labels.items():
        for component, label in zip(components.of_row.tolist(), values, strict=True):
            if label is not None:
                names = label if isinstance(label, tuple) else (label,) if isinstance(label, str) else ()
                for name in ("", *names):
                    rows.setdefault((task, name), []).append(component)
    return {key: sorted(set(found)) for key, found in rows.items() if key[1] == "" or len(found) >= ENOUGH_ROWS}


class _Balance:
    """How many components each split has for each demand, kept while components move."""

    def __init__(self, splits: NDArray[np.int64], demands: Mapping[_Demand, Sequence[int]]) -> None:
        self.splits = splits
        self.counts = {key: np.bincount(splits[members], minlength=len(SPLITS)) for key, members in demands.items()}
        self.demands_of: dict[int, list[_Demand]] = {}
        for key, members in demands.items():
            for component in members:
                self.demands_of.setdefault(component, []).append(key)

    def is_spare(self, component: int) -> bool:
        """Says whether a component may leave its split without leaving a demand there unmet."""
        return all(self.counts[key][self.splits[component]] > 1 for key in self.demands_of[component])

    def move(self, component: int, split: int) -> None:
        for key in self.demands_of[component]:
            self.counts[key][self.splits[component]] -= 1
            self.counts[key][split] += 1
        self.splits[component] = split


def _fill(
    splits: NDArray[np.int64],
    allowed: NDArray[np.bool_],
    components: Components,
    demands: Mapping[_Demand, Sequence[int]],
) -> None:
    """Moves components, in place, into splits that lack rows of a demand: from the fullest, smallest first."""
    balance = _Balance(splits, demands)
    for key in sorted(demands):
        for split in (TRAIN, TEST, VALID):
            if balance.counts[key][split]:
                continue
            spare = [c for c in demands[key] if allowed[c, split] and balance.is_spare(c)]
            if spare:
                fullness = balance.counts[key]
                best = min(spare, key=lambda c: (-fullness[splits[c]], components.sizes[c], components.names[c]))
                balance.move(best, split)
            elif key[1]:
                logger.warning("task=%s class=%r split=%s has no row: too few groups hold it", *key, SPLITS[split])
