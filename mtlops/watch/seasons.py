"""Production that repeats itself: windows of the same phase of a day or week are compared with one another.

With a season a window ends where its phase ends. What a phase usually looks like is learnt from production:

start     until `drift.season_cycles` whole seasons are learnt, a window that is judged is a whole season, against the
          reference in the bundle, in which the phases are mixed; its parts are kept by phase
learning  a season without any alarm or suspicion becomes part of the phases' references; another is thrown away
after     each window is judged against the reference of its phase, and becomes part of it if nothing is even suspected,
          until that holds `MOST_CYCLES` seasons: then it is fixed, so that a slow drift is not learnt away

Two profiles a phase are kept, the season under way and what is learnt: as large as the bundle's reference each, however
long production goes on. A new version of the task's reference starts anew.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mtlops.drift.detector import OK
from mtlops.drift.volume import DAY_MINUTES, SEASONS
from mtlops.watch.judging import Judge
from mtlops.watch.references import References
from mtlops.watch.state import State
from mtlops.watch.streams import TRAFFIC, Stream, basis

if TYPE_CHECKING:
    from mtlops.params import Drift

MOST_CYCLES = 8
"""Seasons that the reference of a phase is made of, at most."""

_DAYS = ("Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed")  # 1970 began on a Thursday.


class Seasons:
    """Keeps what is usual in each phase.

    Args:
        drift: section `drift` of params.yaml.
        references: of the champion.
        judge: judges windows.
    """

    def __init__(self, drift: "Drift", references: References, judge: Judge) -> None:
        self._drift, self._references, self._judge = drift, references, judge
        self._state: State = judge.state
        self.phase_micros = drift.season_hours * 3_600_000_000
        self.season_micros = SEASONS[drift.season] * DAY_MINUTES * 60_000_000
        self._phases = self.season_micros // self.phase_micros

    @property
    def is_none(self) -> bool:
        """Whether production has no season."""
        return not self.season_micros

    def end_of(self, stream: Stream, first: int) -> int:
        """Returns the time at which the phase ends that a stream is in.

        Args:
            stream: the open window.
            first: time of the row that comes next.
        """
        newest = max(stream.stop if stream.rows else first, stream.last or 0)
        return (newest // self.phase_micros + 1) * self.phase_micros

    def close(self, stream: Stream) -> Iterator[dict[str, Any]]:
        """Takes a full window; yields what is said of it, and of the season that ended before it."""
        slot = max(stream.stop, stream.last or 0) // self.phase_micros
        facts = self._facts(stream, slot)
        cycle = (slot - facts["first"]) // self._phases
        if cycle != facts["cycle"]:
            yield from self._end_cycle(stream.name, facts)
            facts["cycle"] = cycle
        phase = slot % self._phases
        if facts["learnt"] < self._drift.season_cycles:
            self._put(stream, phase, is_learnt=False, cycle=cycle)
            self._remember(stream.name, facts)
            yield from self._judge.close_faulty(stream)
            return
        self._remember(stream.name, facts)
        yield self._against_phase(stream, phase, cycle=cycle)

    def finish(self, name: str) -> Iterator[dict[str, Any]]:
        """Yields what is said of a season that has begun, as if it had ended: for the end of a table."""
        facts = self._state.fact(f"season.{name}")
        if facts is not None:
            yield from self._end_cycle(name, facts)
            self._remember(name, facts)

    def learning(self) -> dict[str, int]:
        """Returns, by task whose phases have no reference yet, the seasons that are learnt."""
        if self.is_none:
            return {}
        facts = {name: self._state.fact(f"season.{name}") for name in self._references.by_name}
        return {name: f["learnt"] for name, f in facts.items() if f and f["learnt"] < self._drift.season_cycles}

    def _facts(self, stream: Stream, slot: int) -> dict[str, Any]:
        """How far a task has learnt; anew where its reference, or the season's settings, are others than before."""
        key = [stream.version, self._drift.season, self._drift.season_hours]
        found: dict[str, Any] | None = self._state.fact(f"season.{stream.name}")
        if found is None or found["key"] != key:
            self._state.run("DELETE FROM phases WHERE name = ?", stream.name)
            found = {"key": key, "first": slot, "cycle": 0, "learnt": 0}
        return found

    def _remember(self, name: str, facts: dict[str, Any]) -> None:
        self._state.remember(f"season.{name}", facts)

    def _end_cycle(self, name: str, facts: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Judges the season that ended as one window; its phases are learnt or thrown away."""
        parts = {row["phase"]: self._stream(row) for row in self._rows(name, is_learnt=False)}
        if not parts:
            return
        whole = sorted(parts.values(), key=lambda part: part.stop)
        season = whole[0]
        for part in whole[1:]:
            season = season.merged(part)
        content = {**self._judge.close(season), "reference": f"bundle, {self._drift.season}"}
        if content["level"] == OK:
            for phase, part in parts.items():
                self._put(part, phase, is_learnt=True, cycle=facts["cycle"])
            facts["learnt"] += 1
            said = f"season {facts['learnt']} of {self._drift.season_cycles} is learnt"
        else:
            said = f"a season is not learnt: {content['level']}"
        self._state.run("DELETE FROM phases WHERE name = ? AND is_learnt = 0", name)
        self._state.tell(name, said, time=season.stop)
        yield content

    def _against_phase(self, stream: Stream, phase: int, *, cycle: int) -> dict[str, Any]:
        found = self._rows(stream.name, is_learnt=True, phase=phase)
        usual = self._stream(found[0]).profile if found else None
        empty = basis(self._references.by_name[stream.name], TRAFFIC).of({})
        content = self._judge.close(stream, against=usual or empty)
        cycles = json.loads(found[0]["cycles"]) if found else []
        if content["level"] == OK and (len(cycles) < MOST_CYCLES or cycle in cycles):
            self._put(stream, phase, is_learnt=True, cycle=cycle)
        return {**content, "reference": f"{len(cycles)} seasons of {self._name(phase)}"}

    def _put(self, stream: Stream, phase: int, *, is_learnt: bool, cycle: int) -> None:
        """Adds a window to what is kept of a phase."""
        found = self._rows(stream.name, is_learnt=is_learnt, phase=phase)
        cycles = sorted({*(json.loads(found[0]["cycles"]) if found else []), cycle})
        kept = self._stream(found[0]).merged(stream) if found else stream
        if is_learnt:
            kept = replace(kept, kept={}, faults=type(kept.faults)())
        facts, arrays = kept.pack()
        self._state.run(
            "INSERT OR REPLACE INTO phases VALUES (?, ?, ?, ?, ?, ?, ?)", stream.name, int(is_learnt), phase,
            stream.version, json.dumps(cycles), facts, arrays,
        )  # fmt: skip

    def _rows(self, name: str, *, is_learnt: bool, phase: int | None = None) -> list[Any]:
        query = "SELECT * FROM phases WHERE name = ? AND is_learnt = ? AND (phase = ? OR ? IS NULL) ORDER BY phase"
        return self._state.rows(query, name, int(is_learnt), phase, phase)

    def _stream(self, row: Any) -> Stream:
        return Stream.unpack({**dict(row), "source": TRAFFIC})

    def _name(self, phase: int) -> str:
        """A phase in words, such as `Mon 06-12 h UTC`."""
        hours = self._drift.season_hours
        day, hour = divmod(phase * hours, 24)
        said = f"{hour:02}-{hour + hours:02} h UTC"
        return f"{_DAYS[day]} {said}" if self._drift.season == "weekly" else said
