"""The prediction log's writer (schema: `mtlops.prediction_log`), off the request path.

A request puts a record into a bounded queue and goes on. One thread turns records into rows and writes a file when
enough rows are there or enough seconds have passed. A crash loses the rows that were not written yet; a full queue
drops records and counts them; a storage that fails is tried again while the queue fills.
"""

import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

from mtlops.errors import MtlopsError
from mtlops.serving.log_rows import Feedback, Record, feedback_table, prediction_table
from mtlops.storage import open_storage

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_RETRY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 60.0


@dataclass(frozen=True)
class Settings:
    """How much is kept back, and what.

    Attributes:
        flush_rows: a file is written when so many rows wait.
        flush_seconds: or when the oldest row waits so long: what a crash can lose at most.
        queue_rows: rows that may wait; more are dropped and counted.
        with_text: the texts themselves are kept.
    """

    flush_rows: int = 5_000
    flush_seconds: float = 5.0
    queue_rows: int = 50_000
    with_text: bool = False


class PredictionLog:
    """The writer.

    Args:
        url: where the log lies: a folder, or what fsspec reaches.
        settings: see there.
        wrote: is told table and rows of every file.
        dropped: is told how many rows were dropped.

    Raises:
        MtlopsError: the URL cannot be used.
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
        self._sequences: dict[str, int] = {}
        self._records: deque[Record] = deque()
        self._feedback: deque[Feedback] = deque()
        self._num_rows, self._oldest = 0, 0.0
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
            self._records.append(record)
            self._count(record.num_rows)
        return True

    def add_feedback(self, rows: Sequence[Feedback]) -> bool:
        """Returns whether there was room for the labels; they are written later, all or none."""
        with self._changed:
            if self._num_rows + len(rows) > self._settings.queue_rows:
                return False
            self._feedback.extend(rows)
            self._count(len(rows))
        return True

    def close(self) -> None:
        """Writes what waits, and ends."""
        with self._changed:
            self._is_open = False
            self._changed.notify()
        self._thread.join()

    def _count(self, rows: int) -> None:
        if self._num_rows == 0:
            self._oldest = time.monotonic()
            self._changed.notify()
        self._num_rows += rows
        if self._num_rows >= self._settings.flush_rows:
            self._changed.notify()

    def _work(self) -> None:
        from mtlops.prediction_log import FEEDBACK, PREDICTIONS  # pyarrow: 0.2 s

        settings = self._settings
        while self._wait():
            with self._changed:
                taken = time.monotonic()
                records, self._records = list(self._records), deque()
                labels, self._feedback = list(self._feedback), deque()
            num_rows = sum(record.num_rows for record in records)
            try:
                if records:
                    self._write(PREDICTIONS, records[0].time, prediction_table(records, with_text=settings.with_text))
                if labels:
                    self._write(FEEDBACK, labels[0].time, feedback_table(labels))
            except Exception:
                logger.exception("prediction log: %d rows could not be made and are lost", num_rows + len(labels))
                self._dropped(num_rows + len(labels))
            with self._changed:
                self._num_rows -= num_rows + len(labels)
                self._oldest = taken  # what came while this was written has waited since then, at most

    def _wait(self) -> bool:
        """Waits until there is something to write; returns False at the end."""
        with self._changed:
            while self._is_open and self._num_rows < self._settings.flush_rows:
                left = self._oldest + self._settings.flush_seconds - time.monotonic() if self._num_rows else None
                if left is not None and left <= 0:
                    break
                self._changed.wait(left)
            return self._num_rows > 0

    def _write(self, table: str, first: datetime, rows: "pa.Table") -> None:
        """Writes one file; while the storage fails it tries again, and at the end of the process once more."""
        from mtlops.prediction_log import file_name

        content, pause = _parquet(rows), _RETRY_SECONDS
        sequence = self._sequences.get(table, 0)
        while True:
            is_last = not self._is_open
            try:
                self._storage.write(file_name(table, first, writer=self._writer, sequence=sequence), content)
                break
            except MtlopsError as error:
                logger.warning("prediction log: %s", error)
            if is_last:
                logger.error("prediction log: %d rows are lost: the server stops and cannot write", rows.num_rows)
                self._dropped(rows.num_rows)
                return
            with self._changed:
                self._changed.wait_for(lambda: not self._is_open, timeout=pause)
            pause = min(2 * pause, _LONGEST_RETRY_SECONDS)
        self._sequences[table] = sequence + 1
        self._wrote(table, rows.num_rows)


def _parquet(table: "pa.Table") -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    content: bytes = sink.getvalue().to_pybytes()
    return content
