"""Rows of each task by the hour: counted from the log, judged when the hour has ended, kept in the state."""

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtlops.drift.detector import DRIFTED, MONTH_SECONDS, OK
from mtlops.drift.finding import Finding
from mtlops.drift.volume import DAY_MINUTES, Rhythm
from mtlops.watch.judging import VOLUME, Judge, Moment
from mtlops.watch.references import References
from mtlops.watch.state import State

if TYPE_CHECKING:
    from mtlops.params import Drift

_LONGEST_GAP_DAYS = 31
_LIVE_DAYS = 7


@dataclass
class _Counter:
    """Rows of a task: its rhythm, the next slot to end, and the rows of that and later slots."""

    rhythm: Rhythm
    next: int
    open: dict[int, int] = field(default_factory=dict)


class Volumes:
    """Judges the number of rows of every task.

    A slot ends `drift.late_minutes` after its end, by the newest row of any task: that needs no clock, so a log read
    later gives the same verdicts. Where the log is being written now, a clock shows that all tasks have fallen silent.

    Args:
        drift: section `drift` of params.yaml.
        references: of the champion.
        judge: keeps the alarms.
    """

    def __init__(self, drift: "Drift", references: References, judge: Judge) -> None:
        self._drift, self._references, self._judge = drift, references, judge
        self._state: State = judge.state
        self._counters: dict[str, _Counter] = {}
        self._changed: set[str] = set()
        self._micros = drift.volume_minutes * 60_000_000

    def load(self) -> None:
        """Reads what the state holds; rhythms of tasks that have gone, or in other slots, are left."""
        self._counters, self._changed = {}, set()
        for row in self._state.rows("SELECT name, content FROM volumes"):
            facts = json.loads(row["content"])
            if row["name"] in self._references.by_name and facts["minutes"] == self._drift.volume_minutes:
                rhythm = Rhythm.from_json(facts, minutes=facts["minutes"], season=self._drift.season)
                rows = {int(slot): count for slot, count in facts["open"].items()}
                self._counters[row["name"]] = _Counter(rhythm, facts["next"], rows)

    def save(self) -> None:
        """Writes what has changed to the state."""
        for name in sorted(self._changed):
            counter = self._counters[name]
            facts = {"minutes": self._drift.volume_minutes, "next": counter.next, "open": counter.open,
                     **counter.rhythm.to_json()}  # fmt: skip
            self._state.run("INSERT OR REPLACE INTO volumes VALUES (?, ?)", name, json.dumps(facts))
        self._changed = set()

    def count(self, table: pa.Table) -> None:
        """Counts the rows of a table `predictions` whose role is champion, whatever bundle answered them."""
        for task in self._references.tasks:
            times = table["time"].filter(pc.equal(table["task"], task.name)).cast(pa.int64()).to_numpy()
            slots, rows = np.unique(times // self._micros, return_counts=True)
            if not len(slots):
                continue
            counter = self._counters.setdefault(
                task.name, _Counter(Rhythm(self._drift.volume_minutes, self._drift.season), int(slots[0]))
            )
            for slot, number in zip(slots.tolist(), rows.tolist(), strict=True):
                if slot < counter.next:
                    self._state.count("rows_late_for_volume", number)
                else:
                    counter.open[slot] = counter.open.get(slot, 0) + number
            self._changed.add(task.name)

    def close(self, newest: int, *, clock: int | None = None) -> None:
        """Judges the slots that have ended.

        Args:
            newest: time of the newest row, microseconds.
            clock: the time now, where the log is being written; left out where its newest row is a week old.
        """
        if clock is not None and newest < clock <= newest + _LIVE_DAYS * DAY_MINUTES * 60_000_000:
            newest = clock
        until = (newest - int(self._drift.late_minutes * 60e6)) // self._micros
        for name, counter in self._counters.items():
            if until > counter.next:
                self._changed.add(name)
            if until - counter.next > _LONGEST_GAP_DAYS * DAY_MINUTES // self._drift.volume_minutes:
                self._state.tell(name, f"no row for more than {_LONGEST_GAP_DAYS} days: its rhythm is learnt anew",
                                 time=newest)  # fmt: skip
                counter.rhythm = Rhythm(self._drift.volume_minutes, self._drift.season)
                counter.next = min((slot for slot in counter.open if slot >= until), default=until)
                counter.open = {slot: rows for slot, rows in counter.open.items() if slot >= counter.next}
            while counter.next < until:
                self._end(name, counter)

    def _end(self, name: str, counter: _Counter) -> None:
        number, rows = counter.next, counter.open.pop(counter.next, 0)
        finding = counter.rhythm.judge(number, rows, factor=self._drift.volume_factor)
        level = OK if finding is None else self._weigh(name, finding, stop=(number + 1) * self._micros)
        counter.rhythm.add(number, rows, is_calm=level != DRIFTED)
        counter.next = number + 1

    def _weigh(self, name: str, finding: Finding, *, stop: int) -> str:
        """Adds a slot to the evidence of the task's cell; returns its level."""
        moment = Moment(name, self._references.by_name[name].version, stop)
        months = self._micros / 1e6 / MONTH_SECONDS
        weighed = self._judge.weigh(moment, VOLUME, finding.p_value, months=months)
        is_drifted = weighed["level"] == DRIFTED
        cell = {
            "kind": VOLUME, "verdict": "drifted" if is_drifted else "stable", "score": finding.score,
            "p_value": finding.p_value, "p_adjusted": finding.p_value,
            "effect": {"value": finding.effect, "low": finding.low, "high": finding.high, "floor": finding.floor},
            "rows": finding.rows, "reference_rows": finding.reference_rows, "drifted": [VOLUME] if is_drifted else [],
            "moved": None if finding.moved is None else vars(finding.moved), **weighed,
        }  # fmt: skip
        self._judge.remember(moment, VOLUME, cell)
        return str(weighed["level"])
