"""Who is at work in a registry: publications, promotions (uploads/), updates (retraining/), a collection (gc.json).

Each side first says what it does and then looks for the other (Dekker's rule), so at least one sees the other: a
collection that begins later reads the note of the publication; one that began earlier is waited for. Killed processes
leave notes; those of this machine are recognised by their process, others by their age.
"""

import getpass
import json
import logging
import os
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar

from mtlops.errors import ArtefactError, PlatformError
from mtlops.files import is_running, to_json
from mtlops.storage import Storage

UPLOAD_LIMIT_SECONDS = 24 * 3600
"""A publication that has not ended after this time is taken for dead."""

GC_LIMIT_SECONDS = 60
"""A collection without a sign of life for this time is taken for dead; clocks of machines may differ by half of it."""

_POLL_SECONDS = 0.2
_GC = "gc.json"

logger = logging.getLogger(__name__)

T = TypeVar("T")


def whoami() -> str:
    """Returns `user@host` of this process."""
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's user need not have a name
        user = str(os.getuid())
    return f"{user}@{socket.gethostname()}"


class Leases:
    """Notes of what is under way in a storage."""

    def __init__(self, storage: Storage) -> None:
        self._storage = storage

    @contextmanager
    def holding(self, bundle_id: str, files: Iterable[str]) -> Iterator[None]:
        """Keeps collections off a bundle, and off files by their sha256, while something is done with them."""
        name = f"uploads/{bundle_id}-{uuid.uuid4().hex}.json"
        note = {"bundle": bundle_id, "files": sorted(set(files)), **_sign()}
        self._storage.write(name, _to_bytes(note))
        try:
            self._wait_for_collection()
            yield
        finally:
            try:
                self._storage.remove(name)
            except PlatformError as error:
                logger.warning("%s It will be ignored after %d hours.", error, UPLOAD_LIMIT_SECONDS // 3600)

    @contextmanager
    def retraining(self, tasks: Iterable[str]) -> Iterator[None]:
        """Marks that tasks are being retrained, so that a schedule and an alert at once give one run.

        Raises:
            PlatformError: one of them is being retrained already.
        """
        held: list[str] = []
        try:
            for task in sorted(set(tasks)):
                name = f"retraining/{task}.json"
                if (note := self._note(name)) and _is_dead(note, limit_seconds=UPLOAD_LIMIT_SECONDS):
                    self._storage.remove(name)
                if not self._storage.create(name, _to_bytes(_sign())):
                    by = (self._note(name) or {"by": "another process"})["by"]
                    raise PlatformError(
                        f"{self._storage.url}: task {task} is being retrained already, by {by}. Nothing was started: "
                        f"wait for that run."
                    )
                held.append(name)
            yield
        finally:
            for name in held:
                self._storage.remove(name)

    def retrainers(self, tasks: Iterable[str]) -> str:
        """Returns who retrains one of these tasks now, in words; empty when nobody does."""
        for task in sorted(set(tasks)):
            note = self._note(f"retraining/{task}.json")
            if note and not _is_dead(note, limit_seconds=UPLOAD_LIMIT_SECONDS):
                return f"{note['by']}, process {note['process']}, which retrains {task}"
        return ""

    @contextmanager
    def collecting(self) -> Iterator["Alive"]:
        """Marks a collection.

        Raises:
            PlatformError: another one is under way.
        """
        note = self._note(_GC)
        if note and _is_dead(note, limit_seconds=GC_LIMIT_SECONDS):
            self._storage.remove(_GC)
        alive = Alive(self._storage)
        if not self._storage.create(_GC, alive.note()):
            raise PlatformError(f"{self._storage.url}: another collection is under way. Try again when it has ended.")
        try:
            yield alive
        finally:
            if (self._note(_GC) or {}).get("token") == alive.token:
                self._storage.remove(_GC)

    def uploads(self, alive: "Alive") -> list[dict[str, Any]]:
        """Returns the notes of `holding` whose writers may be alive; those of dead ones are removed."""
        notes = []
        for name in alive.each(self._storage.sizes("uploads")):
            note = self._note(name)
            if note and _is_dead(note, limit_seconds=UPLOAD_LIMIT_SECONDS):
                self._storage.remove(name)
            elif note:
                notes.append(note)
        return notes

    def _wait_for_collection(self) -> None:
        said = False
        while (note := self._note(_GC)) and not _is_dead(note, limit_seconds=GC_LIMIT_SECONDS):
            if not said:
                logger.info("waiting for a collection by %s", note["by"])
                said = True
            time.sleep(_POLL_SECONDS)

    def _note(self, name: str) -> dict[str, Any] | None:
        content = self._storage.read(name)
        if content is None:
            return None
        try:
            note: dict[str, Any] = json.loads(content)
            note["time"], note["process"], note["host"], note["by"]
        except (ValueError, KeyError, TypeError):
            raise ArtefactError(f"{self._storage.url}/{name}: is damaged. Remove it if nothing is under way.") from None
        return note


class Alive:
    """A collection's sign of life, renewed while it works; without it nothing may be removed."""

    def __init__(self, storage: Storage) -> None:
        self.token = uuid.uuid4().hex
        self._storage = storage
        self._signed = time.time()

    def note(self) -> bytes:
        """Returns the content of gc.json as of now."""
        self._signed = time.time()
        return _to_bytes({"token": self.token, **_sign()})

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items, renewing the sign between them.

        Raises:
            PlatformError: this process stood still for so long that others may soon take it for dead.
        """
        for item in items:
            seconds = time.time() - self._signed
            if seconds > GC_LIMIT_SECONDS / 2:
                raise PlatformError(
                    f"{self._storage.url}: the collection stood still for {seconds:.0f} s. Run it again."
                )
            if seconds > GC_LIMIT_SECONDS / 6:
                self._storage.write(_GC, self.note())
            yield item


def _is_dead(note: Mapping[str, Any], *, limit_seconds: float) -> bool:
    if note["host"] == socket.gethostname() and not is_running(note["process"]):
        return True
    return bool(time.time() - note["time"] > limit_seconds)


def _sign() -> dict[str, Any]:
    return {"by": whoami(), "host": socket.gethostname(), "process": os.getpid(), "time": time.time()}


def _to_bytes(value: Mapping[str, Any]) -> bytes:
    return (to_json(value) + "\n").encode()
