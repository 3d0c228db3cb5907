"""What the monitor remembers, in one SQLite file: files read, open windows, verdicts, alarms, requests.

Everything that follows from a group of log files is written in one transaction with the note that they were read. So a
monitor killed anywhere goes on as if it had never been started on that group. One process at a time may hold the file.
"""

import fcntl
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtlops.errors import ArtefactError, PlatformError

SCHEMA_VERSION = 2

_TABLES = """
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE files (name TEXT PRIMARY KEY, kind TEXT NOT NULL, writer TEXT NOT NULL, sequence INTEGER NOT NULL,
  micros INTEGER NOT NULL, rows INTEGER NOT NULL, reason TEXT) WITHOUT ROWID;
CREATE TABLE streams (name TEXT, source TEXT, version TEXT, facts TEXT NOT NULL, arrays BLOB NOT NULL,
  PRIMARY KEY (name, source)) WITHOUT ROWID;
CREATE TABLE detectors (name TEXT, kind TEXT, version TEXT NOT NULL, value REAL NOT NULL, level TEXT NOT NULL,
  since INTEGER, cell TEXT NOT NULL, PRIMARY KEY (name, kind)) WITHOUT ROWID;
CREATE TABLE windows (id INTEGER PRIMARY KEY, name TEXT NOT NULL, source TEXT NOT NULL, version TEXT NOT NULL,
  bundle TEXT NOT NULL, start INTEGER NOT NULL, stop INTEGER NOT NULL, rows INTEGER NOT NULL, content TEXT NOT NULL);
CREATE INDEX windows_by_name ON windows (name, source, id);
CREATE TABLE answers (request TEXT, row INTEGER, task TEXT, time INTEGER NOT NULL, bundle TEXT NOT NULL, label TEXT,
  probabilities BLOB, value REAL, text TEXT, PRIMARY KEY (request, row, task)) WITHOUT ROWID;
CREATE INDEX answers_by_time ON answers (time);
CREATE TABLE waiting (request TEXT, row INTEGER, task TEXT, time INTEGER NOT NULL, label TEXT, value REAL,
  PRIMARY KEY (request, row, task)) WITHOUT ROWID;
CREATE TABLE labelled (request TEXT, row INTEGER, task TEXT, time INTEGER NOT NULL, text TEXT NOT NULL,
  label TEXT NOT NULL, PRIMARY KEY (request, row, task)) WITHOUT ROWID;
CREATE TABLE counts (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE events (id INTEGER PRIMARY KEY, time INTEGER NOT NULL, name TEXT NOT NULL, text TEXT NOT NULL);
CREATE TABLE requests (id TEXT PRIMARY KEY, time INTEGER NOT NULL, status TEXT NOT NULL, updated INTEGER NOT NULL,
  content TEXT NOT NULL) WITHOUT ROWID;
"""

_SECOND = """
CREATE TABLE volumes (name TEXT PRIMARY KEY, content TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE phases (name TEXT, is_learnt INTEGER, phase INTEGER, version TEXT NOT NULL, cycles TEXT NOT NULL,
  facts TEXT NOT NULL, arrays BLOB NOT NULL, PRIMARY KEY (name, is_learnt, phase)) WITHOUT ROWID;
CREATE TABLE told (id INTEGER PRIMARY KEY, key TEXT NOT NULL UNIQUE);
CREATE TABLE outbox (id INTEGER PRIMARY KEY, target TEXT NOT NULL, name TEXT NOT NULL, title TEXT NOT NULL,
  body TEXT NOT NULL, status TEXT NOT NULL, due REAL NOT NULL, tries INTEGER NOT NULL);
"""

_UPGRADES = {1: _SECOND}
"""What makes the next version out of one."""

_KEPT_WINDOWS = 500
_KEPT_EVENTS = 1000


class State:
    """The monitor's memory.

    Args:
        path: the SQLite file, made when it is not there; `:memory:` for a memory that ends with the process.

    Raises:
        PlatformError: the file cannot be opened, or another monitor holds it.
        ArtefactError: it is damaged, or of another version.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = str(path)
        self._lock = _lock(Path(path)) if self.path != ":memory:" else None
        try:
            self._db = sqlite3.connect(self.path, isolation_level=None, timeout=30.0, check_same_thread=False)
            self._db.row_factory = sqlite3.Row
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute("PRAGMA synchronous = FULL")
            self._create()
        except sqlite3.OperationalError as error:
            raise PlatformError(
                f"{self.path}: cannot be opened ({error}). Choose another place with --state."
            ) from None
        except sqlite3.DatabaseError as error:
            raise ArtefactError(
                f"{self.path}: is no state of a monitor ({error}). Move it away: the log will be read anew."
            ) from None

    def close(self) -> None:
        """Closes the file and lets another monitor have it."""
        self._db.close()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """A context whose changes are all kept, or none.

        Raises:
            PlatformError: the disk is full or not writable.
        """
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException:
                self._db.execute("ROLLBACK")
                raise
            self._db.execute("COMMIT")
        except sqlite3.OperationalError as error:
            raise PlatformError(f"{self.path}: cannot be written ({error}). Nothing of this step was kept.") from error

    def rows(self, query: str, *values: Any) -> list[sqlite3.Row]:
        """Returns the rows of a query."""
        return self._db.execute(query, values).fetchall()

    def run(self, query: str, *values: Any) -> None:
        """Runs one statement."""
        self._db.execute(query, values)

    def run_many(self, query: str, values: Iterable[Sequence[Any]]) -> None:
        """Runs a statement for each of many values."""
        self._db.executemany(query, values)

    def fact(self, name: str) -> Any:
        """Returns a remembered JSON value; None when there is none."""
        found = self.rows("SELECT value FROM facts WHERE name = ?", name)
        return json.loads(found[0][0]) if found else None

    def remember(self, name: str, value: Any) -> None:
        """Keeps a JSON value."""
        self.run("INSERT OR REPLACE INTO facts VALUES (?, ?)", name, json.dumps(value))

    def count(self, name: str, number: int) -> None:
        """Adds to a counter; it never goes back."""
        if number:
            self.run("INSERT INTO counts VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
                     name, number)  # fmt: skip

    def counts(self) -> dict[str, int]:
        """Returns all counters."""
        return {row["name"]: row["value"] for row in self.rows("SELECT name, value FROM counts ORDER BY name")}

    def tell(self, name: str, text: str, *, time: int) -> None:
        """Records something that happened to a task, for people; `time` in microseconds."""
        self.run("INSERT INTO events (time, name, text) VALUES (?, ?, ?)", time, name, text)

    def events(self, limit: int = 50) -> list[dict[str, Any]]:
        """Returns the newest events, the newest first."""
        return [dict(row) for row in self.rows("SELECT time, name, text FROM events ORDER BY id DESC LIMIT ?", limit)]

    def add_window(self, name: str, *, source: str, version: str, bundle: str, content: Mapping[str, Any]) -> None:
        """Adds a closed window of a task; `content` has at least `start`, `stop` and `rows`."""
        self.run(
            "INSERT INTO windows (name, source, version, bundle, start, stop, rows, content) VALUES (?,?,?,?,?,?,?,?)",
            name, source, version, bundle, content["start"], content["stop"], content["rows"], json.dumps(content),
        )  # fmt: skip

    def windows(self, name: str, *, source: str, limit: int) -> list[dict[str, Any]]:
        """Returns the newest windows of a task, the newest first."""
        found = self.rows(
            "SELECT id, version, bundle, content FROM windows WHERE name = ? AND source = ? ORDER BY id DESC LIMIT ?",
            name, source, limit,
        )  # fmt: skip
        return [
            {**json.loads(r["content"]), "id": r["id"], "version": r["version"], "bundle": r["bundle"]} for r in found
        ]

    def tidy(self, *, before: int) -> None:
        """Forgets answers and labelled rows from before a time, and the oldest windows and events."""
        self.run("DELETE FROM answers WHERE time < ?", before)
        self.run("DELETE FROM labelled WHERE time < ?", before)
        self.run("DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", _KEPT_EVENTS)
        for row in self.rows("SELECT DISTINCT name, source FROM windows"):
            self.run(
                "DELETE FROM windows WHERE name = ? AND source = ? AND id NOT IN (SELECT id FROM windows WHERE name = ?"
                " AND source = ? ORDER BY id DESC LIMIT ?)",
                row["name"], row["source"], row["name"], row["source"], _KEPT_WINDOWS,
            )  # fmt: skip

    def _create(self) -> None:
        version = self.rows("PRAGMA user_version")[0][0]
        if version < SCHEMA_VERSION:
            steps = [*([] if version else [_TABLES]), *(_UPGRADES[k] for k in range(max(1, version), SCHEMA_VERSION))]
            with self.transaction():
                for statement in "".join(steps).split(";\n"):
                    if statement.strip():
                        self.run(statement)
                self.run(f"PRAGMA user_version = {SCHEMA_VERSION}")
        elif version > SCHEMA_VERSION:
            raise ArtefactError(
                f"{self.path}: schema_version {version}, this mtlops reads {SCHEMA_VERSION}. Use the mtlops that made "
                f"it, or move it away."
            )


def _lock(path: Path) -> int:
    """A lock that ends with the process, however it ends."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise PlatformError(
            f"{path}: cannot be written ({error.strerror}). Choose another place with --state."
        ) from None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise PlatformError(
            f"{path}: another monitor is at work on it. Stop that one, or give this one its own --state."
        ) from None
    return handle
