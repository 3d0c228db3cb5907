"""The watch: takes files of the log in order, each exactly once, and closes windows as they fill."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mtlops.drift.profile import ENCODER
from mtlops.prediction_log import PREDICTIONS
from mtlops.watch.judging import Judge
from mtlops.watch.log import DamagedFileError, LogFile, PredictionLog
from mtlops.watch.references import References
from mtlops.watch.rows import (
    UNREADABLE,
    Sample,
    answered_by,
    kept_answers,
    label_of,
    labelled,
    outputs_of,
    parse_predictions,
)
from mtlops.watch.seasons import Seasons
from mtlops.watch.state import State
from mtlops.watch.streams import LABELS, TRAFFIC, Stream
from mtlops.watch.volumes import Volumes

if TYPE_CHECKING:
    from mtlops.params import Drift

_DAY = 86_400_000_000
_ROWS_AT_ONCE = 20_000
_FILES_AT_ONCE = 64
_NAMES_KEPT_DAYS = 3
_NO_END = 1 << 62

logger = logging.getLogger(__name__)


@dataclass
class Progress:
    """What one pass did: files and rows read, files set aside, windows closed."""

    files: int = 0
    rows: int = 0
    quarantined: int = 0
    windows: list[dict[str, Any]] = field(default_factory=list)

    def add(self, other: "Progress") -> None:
        """Adds what another pass did."""
        self.files += other.files
        self.rows += other.rows
        self.quarantined += other.quarantined
        self.windows += other.windows


class Watch:
    """Everything between the log and the verdicts.

    Args:
        drift: section `drift` of params.yaml.
        references: of the champion.
        state: where everything is kept.
    """

    def __init__(self, drift: "Drift", references: References, state: State) -> None:
        self.drift, self.references, self.state = drift, references, state
        self.judge = Judge(drift, references, state)
        self.seasons = Seasons(drift, references, self.judge)
        self.volumes = Volumes(drift, references, self.judge)
        self._streams: dict[tuple[str, str], Stream] = {}
        with state.transaction():
            self._rebase()
        self._load()

    def catch_up(
        self, log: PredictionLog, *, listed: tuple[list[LogFile], list[str]], clock: int | None = None
    ) -> Progress:  # fmt: skip
        """Reads what is new in the log, in transactions of some files each; returns what was done.

        Args:
            log: to read.
            listed: what `PredictionLog.files` found.
            clock: the time now in microseconds, where the log is being written: it shows that rows have stopped.

        Raises:
            PlatformError: log or state cannot be read or written. What was done before is kept.
        """
        progress = Progress()
        files, strange = listed
        known = {row["name"] for row in self.state.rows("SELECT name FROM files")}
        oldest = self.state.fact("files_from") or 0
        new = [file for file in files if file.name not in known and file.micros >= oldest]
        for group in _groups(new):
            progress.add(self._take_group(log, group))
        with self.state.transaction():
            self.state.remember("strange_files", strange[:20])
            read = self.state.fact("first_sequences") or {}
            late = [
                file for file in files
                if file.micros < oldest and file.name not in known
                and file.sequence >= read.get(f"{file.table}/{file.writer}", 0)
            ]  # fmt: skip
            self.state.remember("forgotten_files", len(late))
            if clock is not None:
                self.volumes.close(self.state.fact("newest") or 0, clock=clock)
                self.volumes.save()
            if progress.files:
                self._find_lost()
                self._tidy()
        return progress

    def take_predictions(self, table: pa.Table) -> list[dict[str, Any]]:
        """Takes rows of the table `predictions`; returns the windows that they filled."""
        answered = answered_by(table, self.references.bundle_id, self.references.tasks)
        for what, number in answered.counts.items():
            self.state.count(what, number)
        kept = kept_answers(answered.champion)
        self.state.run_many("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", kept)
        self.volumes.count(answered.champion)
        if not answered.rows.num_rows:
            return []
        parsed = parse_predictions(answered.rows, self.references.tasks)
        self._remember_time(int(pc.max(answered.rows["time"]).cast(pa.int64()).as_py()))
        found = []
        for name in (ENCODER, *(task.name for task in self.references.tasks)):
            faults = parsed.faults.get(name, Counter())
            if self.references.by_name[name].has_unreadable:
                faults.pop(UNREADABLE, None)
            found += self._take(name, TRAFFIC, sample=parsed.samples.get(name), faults=faults)
        return found

    def take_labels(self, table: pa.Table) -> list[dict[str, Any]]:
        """Takes rows of the table `feedback` and joins them with the answers; returns the windows that they filled."""
        names = ("request_id", "row", "task", "label", "value")
        times = table["time"].cast(pa.int64()).to_pylist()
        columns = [table[name].to_pylist() for name in names]
        rows = (
            (request, row, task, time, None if label is None else json.dumps(label), value)
            for time, request, row, task, label, value in zip(times, *columns, strict=True)
        )
        self.state.count("labels", table.num_rows)
        self.state.run_many("INSERT OR REPLACE INTO waiting VALUES (?, ?, ?, ?, ?, ?)", rows)
        return self._join()

    def close_all(self) -> list[dict[str, Any]]:
        """Closes every open window that holds enough rows to be judged: for the end of a table."""
        found: list[dict[str, Any]] = []
        with self.state.transaction():
            full = [stream for stream in self._streams.values() if stream.rows >= self.drift.min_rows]
            for stream in full:
                found += self._close(stream)
            for name in () if self.seasons.is_none else self.references.by_name:
                ended = list(self.seasons.finish(name))
                self._add_windows(name, TRAFFIC, ended)
                found += ended
            self._save()
        return found

    def streams(self) -> Iterator[Stream]:
        """Yields the open windows."""
        yield from self._streams.values()

    def _take_group(self, log: PredictionLog, group: Sequence[LogFile]) -> Progress:
        """Takes files in one transaction: one that turns out to be damaged half way is as if it had not been begun."""
        damaged: dict[str, str] = {}
        while True:
            try:
                with self.state.transaction():
                    done = self._take_files(log, group, damaged)
                    self._save()
                return done
            except DamagedFileError as error:
                damaged[error.name] = str(error)
                self._load()
            except BaseException:
                self._load()
                raise

    def _take_files(self, log: PredictionLog, group: Sequence[LogFile], damaged: Mapping[str, str]) -> Progress:
        progress = Progress()
        for file in group:
            reason, rows = damaged.get(file.name), 0
            if reason is not None:
                progress.quarantined += 1
                self.state.tell("log", f"{file.name}: set aside: {reason}", time=file.micros)
                logger.warning("%s/%s: set aside: %s", log.url, file.name, reason)
            else:
                take = self.take_predictions if file.table == PREDICTIONS else self.take_labels
                for table in log.read(file):
                    rows += table.num_rows
                    progress.windows += take(table)
                self.volumes.close(self.state.fact("newest") or 0)
            self.state.run(
                "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", file.name, file.table, file.writer, file.sequence,
                file.micros, rows, reason,
            )  # fmt: skip
            progress.files += 1
            progress.rows += rows
        if self.state.rows("SELECT 1 FROM waiting LIMIT 1"):
            progress.windows += self._join()
        return progress

    def _join(self) -> list[dict[str, Any]]:
        """Labels meet the answers that they are about; the others wait."""
        query = (
            "SELECT a.request AS request, a.row AS row, a.task AS task, a.time AS time, a.bundle AS bundle,"
            " a.label AS label, a.probabilities AS probabilities, a.value AS value, a.text AS text,"
            " w.label AS true_label, w.value AS true_value FROM waiting w JOIN answers a"
            " ON a.request = w.request AND a.row = w.row AND a.task = w.task ORDER BY w.time, w.request, w.row"
        )
        joined = [dict(row) for row in self.state.rows(query)]
        for table in ("waiting", "answers"):
            self.state.run_many(f"DELETE FROM {table} WHERE request = ? AND row = ? AND task = ?",  # noqa: S608
                                [(row["request"], row["row"], row["task"]) for row in joined])  # fmt: skip
        self.state.count("labels_joined", len(joined))
        bundles: Mapping[str, Mapping[str, str]] = self.state.fact("bundles") or {}
        found = []
        for task in self.references.tasks:
            version = self.references.by_name[task.name].version
            mine = [row for row in joined if row["task"] == task.name]
            own = [row for row in mine if bundles.get(row["bundle"], {}).get(task.name) == version]
            self.state.count("labels_of_other_bundles", len(mine) - len(own))
            true = [
                label_of(task, {"label": None if row["true_label"] is None else json.loads(row["true_label"]),
                                "value": row["true_value"]}) for row in own
            ]  # fmt: skip
            good = [(row, label) for row, label in zip(own, true, strict=True) if label is not None]
            faults = Counter({"a label that the task does not have": len(own) - len(good)})
            self._keep_labelled(task.name, good)
            sample = None
            if good:
                sample = labelled(
                    task,
                    answers=outputs_of(task, [row for row, _ in good]),
                    labels=[label for _, label in good],
                    times=[row["time"] for row, _ in good],
                    keys=[row["request"] for row, _ in good],
                )
            found += self._take(task.name, LABELS, sample=sample, faults=faults)
        return found

    def _keep_labelled(self, task: str, good: Sequence[tuple[Mapping[str, Any], Any]]) -> None:
        """Rows whose text the log holds are kept with their label: to train with."""
        rows = [
            (row["request"], row["row"], task, row["time"], row["text"], json.dumps(label))
            for row, label in good
            if row["text"]
        ]
        self.state.run_many("INSERT OR REPLACE INTO labelled VALUES (?, ?, ?, ?, ?, ?)", rows)

    def _take(self, name: str, source: str, *, sample: Sample | None, faults: Counter[str]) -> list[dict[str, Any]]:
        """Adds rows to the open window of a task, closing it wherever it is full."""
        stream = self._streams[name, source]
        reference = self.references.by_name[name]
        if sample is None or not len(sample):
            stream.faults.update(+faults)
        most, least = self._limits(source)
        found, position, rows = [], 0, 0 if sample is None else len(sample)
        while sample is not None and position < rows:
            end = self._end_of(stream, int(sample.times[position]))
            stop = min(rows, position + max(1, most - stream.rows))
            over = np.flatnonzero(sample.times[position:stop] >= end)
            if len(over):
                stop = min(stop, max(position + int(over[0]), position + least - stream.rows))
            if stop > position:
                stream.add(sample.part(position, stop), reference)
                stream.faults.update(_share_of(faults, position, stop=stop, rows=rows))
            is_old = stop < rows and int(sample.times[stop]) >= end
            position = stop
            if stream.rows >= most or (is_old and stream.rows >= least):
                found += self._close(stream)
                stream = self._streams[name, source]
        if stream.rows + stream.bad >= most or stream.bad >= self.drift.window_rows:
            found += self._close(stream)
        return found

    def _limits(self, source: str) -> tuple[int, int]:
        """Most rows of a window, and the least with which it may end by time."""
        if self.seasons.is_none:
            most = self.drift.audit_rows if source == LABELS else self.drift.window_rows
            return most, self.drift.min_rows
        return (_NO_END, self.drift.audit_rows) if source == LABELS else (self.drift.window_rows, 0)

    def _end_of(self, stream: Stream, first: int) -> int:
        """The time at which an open window ends; with a season, labels are judged in whole seasons."""
        start = first if stream.start is None else stream.start
        if self.seasons.is_none:
            return start + int(self.drift.window_minutes * 60e6)
        return start + self.seasons.season_micros if stream.source == LABELS else self.seasons.end_of(stream, first)

    def _close(self, stream: Stream) -> list[dict[str, Any]]:
        by_phase = stream.source == TRAFFIC and not self.seasons.is_none
        contents = list(self.seasons.close(stream)) if by_phase else [self.judge.close(stream)]
        self._add_windows(stream.name, stream.source, contents)
        last = max(stream.stop, stream.last or 0)
        reference = self.references.by_name[stream.name]
        self._streams[stream.name, stream.source] = Stream.fresh(reference, stream.source, last=last)
        return contents

    def _add_windows(self, name: str, source: str, contents: Iterable[Mapping[str, Any]]) -> None:
        version = self.references.by_name[name].version
        for content in contents:
            self.state.add_window(name, source=source, version=version, bundle=self.references.bundle_id,
                                  content=content)  # fmt: skip
            self.state.count(f"windows.{source}", 1)

    def _rebase(self) -> None:
        """Where the champion's task or its reference is another than before, evidence starts anew, with a record."""
        versions = self.references.versions()
        before = self.state.fact("versions") or {}
        bundles = self.state.fact("bundles") or {}
        now = self.state.fact("newest") or 0
        for name, version in versions.items():
            if before and before.get(name) != version:
                self.state.tell(name, f"reference of bundle {self.references.bundle_id}: alarms start anew", time=now)
        self.state.run_many("DELETE FROM streams WHERE name = ? AND version != ?", list(versions.items()))
        self.state.run_many("DELETE FROM detectors WHERE name = ? AND version != ?", list(versions.items()))
        for table in ("streams", "detectors", "volumes", "phases"):
            for row in self.state.rows(f"SELECT DISTINCT name FROM {table}"):  # noqa: S608 - our own names
                if row["name"] not in versions:
                    self.state.run(f"DELETE FROM {table} WHERE name = ?", row["name"])  # noqa: S608
        bundles.pop(self.references.bundle_id, None)
        kept = dict(list(bundles.items())[-19:]) | {self.references.bundle_id: versions}
        for name, value in (("versions", versions), ("bundles", kept), ("bundle", self.references.bundle_id)):
            if self.state.fact(name) != value:
                self.state.remember(name, value)

    def _load(self) -> None:
        found = {
            (row["name"], row["source"]): Stream.unpack(dict(row)) for row in self.state.rows("SELECT * FROM streams")
        }
        for name, reference in self.references.by_name.items():
            for source in (TRAFFIC, LABELS) if reference.task else (TRAFFIC,):
                found.setdefault((name, source), Stream.fresh(reference, source))
        self._streams = found
        self.volumes.load()

    def _save(self) -> None:
        self.volumes.save()
        for (name, source), stream in self._streams.items():
            facts, arrays = stream.pack()
            self.state.run("INSERT OR REPLACE INTO streams VALUES (?, ?, ?, ?, ?)", name, source, stream.version,
                           facts, arrays)  # fmt: skip

    def _remember_time(self, newest: int) -> None:
        if newest > (self.state.fact("newest") or 0):
            self.state.remember("newest", newest)

    def _find_lost(self) -> None:
        """Numbers that a writer left out although a later file of it has been here for a while."""
        newest = self.state.fact("newest") or 0
        limit = newest - int(self.drift.late_minutes * 60e6)
        query = "SELECT kind, writer, sequence, micros FROM files ORDER BY kind, writer, sequence"
        by_writer: dict[tuple[str, str], list[tuple[int, int]]] = {}
        for row in self.state.rows(query):
            by_writer.setdefault((row["kind"], row["writer"]), []).append((row["sequence"], row["micros"]))
        floors: dict[str, int] = self.state.fact("first_sequences") or {}
        lost = []
        for (kind, writer), files in by_writer.items():
            expected = floors.get(f"{kind}/{writer}", 0)
            for sequence, micros in files:
                if sequence > expected and micros < limit:
                    lost.append({"kind": kind, "writer": writer, "from": expected, "to": sequence - 1})
                expected = sequence + 1
        before = self.state.fact("lost_files") or []
        if lost != before:
            self.state.remember("lost_files", lost)
            for gap in (gap for gap in lost if gap not in before):
                text = f"{gap['kind']} {gap['from']} to {gap['to']} of writer {gap['writer']} are missing"
                self.state.tell("log", text, time=newest)

    def _tidy(self) -> None:
        """Forgets what is too old to matter."""
        newest = self.state.fact("newest") or 0
        before = newest - int(self.drift.feedback_days * _DAY)
        expired = self.state.rows("SELECT count(*) AS n FROM waiting WHERE time < ?", before)[0]["n"]
        self.state.count("labels_without_answer", expired)
        self.state.run("DELETE FROM waiting WHERE time < ?", before)
        self.state.tidy(before=before)
        self._forget_names(newest - int((self.drift.feedback_days + _NAMES_KEPT_DAYS) * _DAY))

    def _forget_names(self, before: int) -> None:
        """Names of files are kept for some weeks; what turns up with an older name is reported, not read."""
        old = self.state.rows("SELECT kind, writer, max(sequence) AS last FROM files WHERE micros < ? "
                              "AND reason IS NULL GROUP BY kind, writer", before)  # fmt: skip
        if not old or before <= (self.state.fact("files_from") or 0):
            return
        floors = self.state.fact("first_sequences") or {}
        floors |= {f"{row['kind']}/{row['writer']}": row["last"] + 1 for row in old}
        self.state.remember("first_sequences", floors)
        self.state.remember("files_from", before)
        self.state.run("DELETE FROM files WHERE micros < ? AND reason IS NULL", before)


def first_day(state: State) -> date | None:
    """Returns the day from which a running monitor needs to look for new files: two days before the newest row."""
    newest = state.fact("newest")
    return None if newest is None else datetime.fromtimestamp(newest / 1e6, UTC).date() - timedelta(days=2)


def _share_of(faults: Counter[str], start: int, *, stop: int, rows: int) -> Counter[str]:
    """The faults of a table that fall to some of its rows: evenly, so that every window has its part of them."""
    return +Counter({what: n * stop // rows - n * start // rows for what, n in faults.items()})


def _groups(files: Iterable[LogFile]) -> Iterator[list[LogFile]]:
    """Files in their order, as many at once as make one transaction."""
    group: list[LogFile] = []
    size = 0
    for file in files:
        group.append(file)
        size += file.bytes
        if len(group) >= _FILES_AT_ONCE or size >= _ROWS_AT_ONCE * 500:
            yield group
            group, size = [], 0
    if group:
        yield group
