"""Which split each row of a labelled window goes to, so that nothing that was tested on is ever trained on.

A row joins what it belongs to: the same text, or the same group, decides. What touches test rows of any task is left
out, so the old test keeps its rows and stays a test; what touches validation rows validates, what touches training rows
trains, and what is wholly new is divided like any other data.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtlops.data.grouping import connect
from mtlops.data.prepared import SPLITS, Manifest, read_split, read_window
from mtlops.data.rows import Rows, fold
from mtlops.data.splitting import TEST, Evidence, assign
from mtlops.params import Params

WITH_TEST = "belongs to test rows"
WITH_CONTROL = "belongs to rows of a control window"
NOWHERE = -1

_NEW = -1
_CONTROL = len(SPLITS)


@dataclass
class Known:
    """What prepared splits hold: text keys and groups, each with the latest of its places.

    Attributes:
        place: text key or `(group,)` -> 0 train, 1 valid, 2 test, 3 control window.
    """

    place: dict[str | tuple[str], int] = field(default_factory=dict)
    _key: Callable[[str], str] = field(default_factory=lambda: cache(fold))  # tasks share texts

    def add(self, table: pa.Table, place: int) -> None:
        """Notes the rows of a part."""
        for text, group in zip(table["text"].to_pylist(), table["group"].to_pylist(), strict=True):
            for key in (self._key(text), (group,)):
                self.place[key] = max(place, self.place.get(key, _NEW))

    def of(self, keys: Iterable[str], group: str | None) -> int:
        """Returns the latest place of a row's text and group; -1 when both are new."""
        found = [self.place.get(key, _NEW) for key in keys]
        return max(found if group is None else [*found, self.place.get((group,), _NEW)])


def known_rows(prepared: Path, manifest: Manifest) -> Known:
    """Returns what the splits and control windows of all tasks hold. Raises like `read_split`."""
    known = Known()
    for task in manifest["tasks"]:
        for place, split in enumerate(SPLITS):
            known.add(read_split(prepared, task, split), place)
    for name, entry in manifest["windows"].items():
        if "share" in entry["rule"]:
            for task in entry["tasks"]:
                known.add(read_window(prepared, name, task), _CONTROL)
    return known


@dataclass(frozen=True)
class Placement:
    """Where rows go: (N,) int64 of 0 train, 1 valid, 2 test or `NOWHERE`, and how many go nowhere, by reason."""

    splits: NDArray[np.int64]
    left_out: Counter[str]


def place(params: Params, rows: Rows, known: Known) -> Placement:
    """Returns where each labelled row of a window goes."""
    labelled = np.flatnonzero(rows.has_label(list(rows.labels)))
    components = connect(
        [rows.ids[row] for row in labelled],
        keys=[rows.keys[row] for row in labelled],
        groups=[rows.groups[row] for row in labelled],
    )
    places = np.full(len(components), _NEW)
    of_row = np.asarray([known.of([rows.keys[row]], rows.groups[row]) for row in labelled], dtype=np.int64)
    np.maximum.at(places, components.of_row, of_row)
    new = places == _NEW
    if new.any():
        rest = labelled[new[components.of_row]]
        evidence = Evidence(
            source=rows.source[rest],
            times=rows.times[rest],
            splits=[rows.splits[row] for row in rest],
            labels={task: [values[row] for row in rest] for task, values in rows.labels.items()},
        )
        places[new] = assign(components.select(new), evidence, data=params.data)
    # New components may be tests; old ones that touch a test may not join it.
    spoilt = ~new & (places >= TEST)
    reasons = {
        WITH_TEST: int((spoilt & (places == TEST))[components.of_row].sum()),
        WITH_CONTROL: int((places == _CONTROL)[components.of_row].sum()),
    }
    splits = np.full(len(rows), NOWHERE)
    splits[labelled] = np.where(spoilt, NOWHERE, places)[components.of_row]
    return Placement(splits, Counter({reason: count for reason, count in reasons.items() if count}))
