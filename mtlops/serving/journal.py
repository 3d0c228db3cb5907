"""What waits for the prediction log, on this machine's disk: after `kill -9` the next server hands it over.

    <journal>/<hash of the log's URL>/<writer>/count                      rows taken, and rows kept below
                                              <table>-<sequence>.arrows   an Arrow stream: rows of one file to come

A writer holds a lock on its `count` for as long as it lives. Whoever opens the journal looks for folders whose lock
nobody holds: their rows become the very files of the log that the dead writer would have written. The kernel keeps
what was appended when a process is killed; when the machine loses its power, the last rows may be torn, and are lost.
"""

import fcntl
import hashlib
import io
import logging
import mmap
import os
import re
import shutil
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mtlops.files import storage_errors

if TYPE_CHECKING:
    import pyarrow as pa

logger = logging.getLogger(__name__)

_COUNT = struct.Struct("<q")
_COUNTS = struct.Struct("<qq")
_NAME = re.compile(r"(?P<table>[a-z]+)-(?P<sequence>\d{8})\.arrows")


@dataclass(frozen=True)
class Kept:
    """Rows of a file that a dead writer did not finish.

    Attributes:
        writer: who took them.
        table: of the log.
        sequence: of the file among that writer's of this table.
        rows: as they were kept, whole.
        path: where they lie until the log has them.
    """

    writer: str
    table: str
    sequence: int
    rows: "pa.Table"
    path: Path


class Journal:
    """The journal of one writer.

    Args:
        folder: of all journals of this machine; made if it is not there.
        url: of the log.
        writer: names this process.

    Raises:
        PlatformError: the folder cannot be written.
    """

    def __init__(self, folder: Path, *, url: str, writer: str) -> None:
        self._home = folder / hashlib.sha256(url.encode()).hexdigest()[:16]
        self._own = self._home / writer
        self._streams: dict[Path, tuple[io.RawIOBase, pa.ipc.RecordBatchStreamWriter]] = {}
        self._adopted: list[int] = []
        self._taken = self._kept = 0
        with storage_errors(self._home):
            self._own.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._beginning():
                self._own.mkdir(mode=0o700)
                self._lock = os.open(self._own / "count", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
                os.truncate(self._lock, _COUNTS.size)
                fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._counts = mmap.mmap(self._lock, _COUNTS.size)

    def take(self, rows: int) -> None:
        """Counts rows that were taken and will be kept soon; costs a microsecond."""
        self._taken += rows
        if not self._counts.closed:
            _COUNT.pack_into(self._counts, 0, self._taken)

    def keep(self, table: str, sequence: int, rows: "pa.Table") -> None:
        """Appends rows to those of a file that is still to be written.

        Raises:
            PlatformError: the disk is full or not writable; the rows count as lost if this process is killed now.
        """
        import pyarrow as pa

        path = self.path(table, sequence)
        with storage_errors(path):
            if path not in self._streams:
                # O_APPEND without a buffer: each batch is handed to the kernel before `keep` returns.
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
                file = os.fdopen(handle, "wb", buffering=0)
                self._streams[path] = file, pa.ipc.new_stream(pa.PythonFile(file, mode="w"), rows.schema)
            self._streams[path][1].write_table(rows)
        self._kept += rows.num_rows
        _COUNT.pack_into(self._counts, _COUNT.size, self._kept)  # another thread writes the other count

    def path(self, table: str, sequence: int) -> Path:
        """Returns where the rows of a file to come lie."""
        return self._own / f"{table}-{sequence:08d}.arrows"

    def release(self, path: Path) -> None:
        """Forgets rows that the log has now, of this writer or of a dead one; the last ones take their folder along."""
        self._close(path)
        path.unlink(missing_ok=True)
        if path.parent != self._own and not any(path.parent.glob("*.arrows")):
            shutil.rmtree(path.parent, ignore_errors=True)

    def left_by_the_dead(self) -> tuple[list[Kept], int]:
        """Returns what writers that live no longer kept, oldest first, and how many rows they had not kept yet.

        Their folders are this writer's now, who says with `release` when the log has the rows.
        """
        found: list[Kept] = []
        lost = 0
        with self._beginning():
            for folder in sorted(path for path in self._home.iterdir() if path.is_dir() and path != self._own):
                if (handle := _lock(folder)) is None:
                    continue
                self._adopted.append(handle)
                lost += _missing(handle)
                rows = [_read(path) for path in sorted(folder.glob("*.arrows"))]
                found += [kept for kept in rows if kept is not None]
                if not any(kept is not None for kept in rows):
                    shutil.rmtree(folder, ignore_errors=True)
        return found, lost

    def close(self) -> None:
        """Ends the journal; what the log did not get stays for the next writer."""
        for path in list(self._streams):
            self._close(path)
        if not any(self._own.glob("*.arrows")):
            shutil.rmtree(self._own, ignore_errors=True)
        self._counts.close()  # it holds the lock as well
        for handle in (*self._adopted, self._lock):
            os.close(handle)

    def _close(self, path: Path) -> None:
        if path in self._streams:
            file, _ = self._streams.pop(path)
            file.close()  # a reader needs no mark of the end

    @contextmanager
    def _beginning(self) -> Iterator[None]:
        """Only one process at a time makes a folder or looks for dead ones, so that none is taken before its lock."""
        handle = os.open(self._home / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def _lock(folder: Path) -> int | None:
    """Returns a handle that holds the lock of a dead writer's folder; None when the writer lives."""
    try:
        handle = os.open(folder / "count", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:  # killed before it had counted anything
        shutil.rmtree(folder, ignore_errors=True)
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _missing(handle: int) -> int:
    """Returns how many rows were taken and not kept, and marks them as told."""
    content = os.pread(handle, _COUNTS.size, 0)
    if len(content) < _COUNTS.size:
        return 0
    taken, kept = map(int, _COUNTS.unpack(content))
    os.pwrite(handle, _COUNTS.pack(kept, kept), 0)
    return max(taken - kept, 0)


def _read(path: Path) -> Kept | None:
    """The whole batches of a stream that may end anywhere; None when there is none."""
    import pyarrow as pa

    match = _NAME.fullmatch(path.name)
    batches = []
    with path.open("rb") as file:
        try:
            stream = pa.ipc.open_stream(file)
            while True:
                batches.append(stream.read_next_batch())
        except StopIteration:
            pass
        except (pa.ArrowInvalid, OSError) as error:
            logger.info("%s: ends in the middle of a batch (%s)", path, str(error).splitlines()[0])
    if match is None or not batches:
        path.unlink()
        return None
    return Kept(path.parent.name, match["table"], int(match["sequence"]), pa.Table.from_batches(batches), path)
