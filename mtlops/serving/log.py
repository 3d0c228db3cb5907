"""The prediction log's writer (schema: `mtlops.prediction_log`), off the request path.

A request puts a record into a bounded queue and goes on. One thread turns records into rows, appends them within a
moment to a journal on this machine's disk, and writes a file of the log when enough rows are there or enough seconds
have passed. What a process that was killed had kept is handed over by the next one; a full queue drops records and
counts them; a storage that fails is tried again while the queue fills.
"""

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mtlops.errors import MtlopsError
from mtlops.serving.journal import Journal
from mtlops.serving.log_rows import Feedback, Record, feedback_table, prediction_table
from mtlops.storage import open_storage

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

JOURNAL_SECONDS = 0.25
"""Rows are in the journal at most this long after they were answered: what `kill -9` loses."""

_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 60.0


@dataclass(frozen=True)
class Settings:
    """How much is kept back, and what.

    Attributes:
        flush_rows: a file is written when so many rows wait.
        flush_seconds: or when the oldest row waits so long.
        queue_rows: rows that may wait; more are dropped and counted.
        with_text: the texts themselves are kept.
        journal: folder on this machine's disk for rows that wait; None: a crash loses them.
    """

    flush_rows: int = 5_000
    flush_seconds: float = 5.0
    queue_rows: int = 50_000
    with_text: bool = False
    journal: Path | None = None


@dataclass
class _File:
    """A file of the log that is being filled, or waits to be written.

    Attributes:
        table: of the log.
        sequence: among the writer's files of this table.
        writer: whose it is: this process, or one that was killed.
        first: time of its first row.
        parts: its rows, as they were added.
        taken: rows that requests handed over for it.
        since: when its first row came, by the monotonic clock.
        journal: where its rows lie as well.
    """

    table: str
    sequence: int
    writer: str
    first: datetime
    parts: "list[pa.Table]"
    taken: int = 0
    since: float = 0.0
    journal: Path | None = None

    @property
    def num_rows(self) -> int:
        return sum(part.num_rows for part in self.parts)

    def name(self) -> str:
        from mtlops.prediction_log import file_name

        return file_name(self.table, self.first, writer=self.writer, sequence=self.sequence)


@dataclass
class _Queue:
    """What requests handed over and the thread has not taken yet."""

    records: list[Record] = field(default_factory=list)
    labels: list[Feedback] = field(default_factory=list)
    since: float | None = None


class PredictionLog:
    """The writer.

    Args:
        url: where the log lies: a folder, or what fsspec reaches.
        settings: see there.
        wrote: is told table and rows of every file.
        dropped: is told how many rows were dropped.

    Raises:
        MtlopsError: the URL or the folder of the journal cannot be used.
    """

    def __init__(
        self,
        url: str,
        settings: Settings,
        *,
        wrote: Callable[[str, int], None] = lambda table, rows: None,
        dropped: Callable[[int], None] = lambda rows: None,
    ) -> None:
        self._storage, self._settings = open_storage(url), settings
        self._wrote, self._dropped = wrote, dropped
        self._writer = uuid.uuid4().hex[:12]
        self._journal = None
        if settings.journal is not None:
            self._journal = Journal(settings.journal, url=self._storage.url, writer=self._writer)
        self._sequences: dict[str, int] = {}
        self._queue = _Queue()
        self._filling: dict[str, _File] = {}
        self._full: deque[_File] = deque()
        self._num_rows = 0  # that were taken, and are in no file of the log yet
        self._retry_at, self._pause = 0.0, _RETRY_SECONDS
        self._is_open = True
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="prediction-log", daemon=True)
        self._thread.start()

    def add(self, record: Record) -> bool:
        """Returns whether there was room for the record; it is written later."""
        with self._changed:
            if self._num_rows + record.num_rows > self._settings.queue_rows:
                self._dropped(record.num_rows)
                return False
            self._queue.records.append(record)
            self._count(record.num_rows)
        return True

    def add_feedback(self, rows: Sequence[Feedback]) -> bool:
        """Returns whether there was room for the labels; they are written later, all or none."""
        with self._changed:
            if self._num_rows + len(rows) > self._settings.queue_rows:
                return False
            self._queue.labels.extend(rows)
            self._count(len(rows))
        return True

    def close(self) -> None:
        """Writes what waits, and ends."""
        with self._changed:
            self._is_open = False
            self._changed.notify()
        self._thread.join()

    def _count(self, rows: int) -> None:
        self._num_rows += rows
        if self._journal is not None:
            self._journal.take(rows)
        if self._queue.since is None:
            self._queue.since = time.monotonic()
            self._changed.notify()
        elif self._num_rows >= self._settings.flush_rows:
            self._changed.notify()

    def _work(self) -> None:
        if self._journal is not None:
            with _journal_errors("what an earlier server left is not looked at now"):
                self._take_over(self._journal)
        is_open = True
        while is_open:
            is_open, queue = self._wait()
            self._add_rows(queue)
            if self._is_due() or not is_open:
                self._full += self._filling.values()
                self._filling.clear()
            if time.monotonic() >= self._retry_at or not is_open:
                self._send()
        self._end()

    def _wait(self) -> tuple[bool, _Queue]:
        """Waits until there is something to do; returns whether more may come, and what has come."""
        with self._changed:
            while self._is_open and (seconds := self._seconds_left()) != 0:
                self._changed.wait(seconds)
            queue, self._queue = self._queue, _Queue()
            return self._is_open, queue

    def _seconds_left(self) -> float | None:
        """Seconds until rows must be kept or written, or written again; None while there is nothing."""
        waits_until = [self._retry_at] if self._full else []
        waits_until += [file.since + self._settings.flush_seconds for file in self._filling.values()]
        if self._queue.since is not None:
            if self._num_rows >= self._settings.flush_rows and not self._full:
                return 0
            delay = self._settings.flush_seconds if self._journal is None else JOURNAL_SECONDS
            waits_until.append(self._queue.since + min(delay, self._settings.flush_seconds))
        return max(min(waits_until) - time.monotonic(), 0) if waits_until else None

    def _is_due(self) -> bool:
        rows = sum(file.num_rows for file in self._filling.values())
        oldest = min((file.since for file in self._filling.values()), default=float("inf"))
        return rows >= self._settings.flush_rows or time.monotonic() >= oldest + self._settings.flush_seconds

    def _add_rows(self, queue: _Queue) -> None:
        """Makes rows of what has come, and keeps them in the journal."""
        from mtlops.prediction_log import FEEDBACK, PREDICTIONS  # pyarrow: 0.2 s

        with_text = self._settings.with_text
        if records := queue.records:
            taken = sum(record.num_rows for record in records)
            self._append(PREDICTIONS, records[0].time, lambda: prediction_table(records, with_text=with_text),
                         taken=taken, since=queue.since)  # fmt: skip
        if labels := queue.labels:
            self._append(FEEDBACK, labels[0].time, lambda: feedback_table(labels), taken=len(labels), since=queue.since)

    def _append(
        self, table: str, first: datetime, make: "Callable[[], pa.Table]", *, taken: int, since: float | None
    ) -> None:
        try:
            rows = make()
        except Exception:
            logger.exception("prediction log: %d rows could not be made and are lost", taken)
            self._drop(taken)
            return
        if table not in self._filling:
            sequence = self._sequences.get(table, 0)
            self._sequences[table] = sequence + 1
            journal = self._journal.path(table, sequence) if self._journal is not None else None
            self._filling[table] = _File(table, sequence, self._writer, first, [], since=since or 0.0, journal=journal)
        file = self._filling[table]
        file.parts.append(rows)
        file.taken += taken
        if self._journal is not None:
            with _journal_errors(f"{rows.num_rows} rows are not in the journal, a crash would lose them"):
                self._journal.keep(table, file.sequence, rows)

    def _send(self) -> None:
        """Writes what is full; a storage that fails is tried again later, after longer and longer pauses."""
        import pyarrow as pa

        while self._full:
            file = self._full[0]
            try:
                self._storage.write(file.name(), _parquet(pa.concat_tables(file.parts)))
            except MtlopsError as error:
                logger.warning("prediction log: %s", error)
                self._retry_at = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, _LONGEST_RETRY_SECONDS)
                return
            self._full.popleft()
            self._retry_at, self._pause = 0.0, _RETRY_SECONDS
            if self._journal is not None and file.journal is not None:
                with _journal_errors(f"{file.journal} stays, and would be written again to the same file"):
                    self._journal.release(file.journal)
            with self._changed:
                self._num_rows -= file.taken
            self._wrote(file.table, file.num_rows)

    def _take_over(self, journal: Journal) -> None:
        """What writers that were killed left behind is written before anything else."""
        left, lost = journal.left_by_the_dead()
        for kept in left:
            first = kept.rows["time"][0].as_py()
            self._full.append(_File(kept.table, kept.sequence, kept.writer, first, [kept.rows], journal=kept.path))
        if left or lost:
            rows = sum(kept.rows.num_rows for kept in left)
            logger.warning(
                "prediction log: a server that was killed had %d rows waiting: %d are written now, %d are lost",
                rows + lost, rows, lost,
            )  # fmt: skip
            self._dropped(lost)

    def _end(self) -> None:
        """Says what the storage did not take until the end."""
        rows = sum(file.num_rows for file in self._full)
        if rows and self._journal is not None:
            logger.error("prediction log: cannot write %d rows; the next server writes them", rows)
        elif rows:
            logger.error("prediction log: %d rows are lost: the server stops and cannot write", rows)
            self._drop(rows)
        if self._journal is not None:
            with _journal_errors("it could not be closed"):
                self._journal.close()

    def _drop(self, rows: int) -> None:
        with self._changed:
            self._num_rows -= rows
        self._dropped(rows)


@contextmanager
def _journal_errors(meaning: str) -> Iterator[None]:
    """The journal is for the worst case; whatever is wrong with it is said, and the log goes on without it."""
    try:
        yield
    except Exception as error:  # noqa: BLE001 - Arrow's and the system's errors share no base class
        logger.warning("prediction log: journal: %s: %s", meaning, error)


def _parquet(table: "pa.Table") -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table.combine_chunks(), sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content
