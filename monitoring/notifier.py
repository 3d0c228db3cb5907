"""Alarms as e-mail, chat messages or web hooks, by way of Apprise: one outbox in the state, one thread that sends.

Addresses hold passwords and tokens, so they come from the environment or a file alone, and neither the state nor any
log has them: a target is known by its number and kind. A message is written to the outbox in the transaction that notes
what it tells of, and is sent until its target takes it or `MOST_TRIES` are over. So nothing is told twice, but where
the monitor is killed between sending and noting it; and passes never wait for a mail server.
"""

import logging
import os
import re
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from monitoring.notices import new_notices
from mtlops.errors import UsageError
from mtlops.watch.state import State

ADDRESSES = "MTLOPS_NOTIFY"
"""Environment variable with addresses, apart by white space; `MTLOPS_NOTIFY_FILE` names a file with one a line."""

MOST_TRIES = 12
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 3600.0
_KEPT = 1000

WAITING, SENT, FAILED = "waiting", "sent", "failed"

logger = logging.getLogger("mtlops.monitoring")


@dataclass(frozen=True)
class Target:
    """Somebody to tell.

    Attributes:
        id: a digest of the address: says whether it is the same as before, and nothing else.
        name: its number and kind, for people.
        sender: Apprise's object of it.
    """

    id: str
    name: str
    sender: Any

    def send(self, title: str, body: str) -> str:
        """Returns why the message was not taken; empty where it was."""
        import apprise

        with apprise.LogCapture(level=logging.WARNING) as said:  # type: ignore[no-untyped-call]
            if self.sender.notify(title=title, body=body):
                return ""
            code = re.search(r"error=(\d+)", said.getvalue())
        return f"{self.name} did not take it{f' (status {code[1]})' if code else ''}"


@dataclass
class _Errand:
    """A message on its way to one target; `trouble` is None until it is known."""

    number: int
    target: Target
    title: str
    body: str
    trouble: str | None = None


def read_targets() -> list[Target]:
    """Returns the targets that the environment names; none where it names none.

    Raises:
        UsageError: the file cannot be read, or an address is none that Apprise knows.
    """
    file = os.environ.get(f"{ADDRESSES}_FILE")
    try:
        text = Path(file).read_text(encoding="utf-8") if file else os.environ.get(ADDRESSES, "")
    except OSError as error:
        raise UsageError(f"{ADDRESSES}_FILE: {file}: cannot be read ({error.strerror}).") from None
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    return [_target(number, address) for number, address in enumerate(" ".join(lines).split(), start=1)]


def _target(number: int, address: str) -> Target:
    try:
        import apprise
    except ImportError:
        raise UsageError(f"{ADDRESSES}: needs Apprise. Run `pip install 'mtlops[monitor]'`.") from None
    logging.getLogger("apprise").propagate = False  # its messages may hold parts of the address
    sender = apprise.Apprise.instantiate(address, suppress_exceptions=True)
    if sender is None:
        raise UsageError(f"{ADDRESSES}: address {number} is none that Apprise knows. Its documentation lists them.")
    kind = address.partition("://")[0]
    return Target(sha256(address.encode()).hexdigest()[:16], f"address {number} ({kind})", sender)


class Notifier:
    """Tells the targets of alarms, beside the passes of the monitor. Only the caller's thread touches the state.

    Args:
        targets: whom to tell.
    """

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = {target.id: target for target in targets}
        self._errands: list[_Errand] = []
        self._thread: threading.Thread | None = None

    def step(self, state: State, report: dict[str, Any]) -> None:
        """Writes new messages to the outbox, records what was sent, and starts what is due."""
        if not self._targets:
            return
        self._record(state)
        self._write(state, report)
        if self._thread is None:
            self._start(state)

    def finish(self, state: State, *, seconds: float = 30.0) -> None:
        """Waits, but not long, for what is on its way; the rest stays in the outbox."""
        if self._thread is not None:
            self._thread.join(seconds)
            self._record(state)

    def _write(self, state: State, report: dict[str, Any]) -> None:
        found = list(new_notices(report, state))
        if not found:
            return
        now = time.time()
        with state.transaction():
            for notice in found:
                state.run_many("INSERT INTO told (key) VALUES (?)", [(key,) for key in notice.keys])
                rows = [(target, notice.name, notice.title, notice.body, WAITING, now) for target in self._targets]
                state.run_many(
                    "INSERT INTO outbox (target, name, title, body, status, due, tries) VALUES (?, ?, ?, ?, ?, ?, 0)",
                    rows,
                )
                logger.info("task=%s notice=%s targets=%d", notice.name, notice.title, len(rows))
            for table in ("told", "outbox"):
                state.run(f"DELETE FROM {table} WHERE id <= (SELECT max(id) FROM {table}) - ?", _KEPT)  # noqa: S608

    def _start(self, state: State) -> None:
        due = state.rows("SELECT * FROM outbox WHERE status = ? AND due <= ? ORDER BY id", WAITING, time.time())
        self._errands = [
            _Errand(row["id"], self._targets[row["target"]], row["title"], row["body"])
            for row in due
            if row["target"] in self._targets
        ]
        if self._errands:
            self._thread = threading.Thread(target=self._work, daemon=True, name="notifier")
            self._thread.start()

    def _work(self) -> None:
        for errand in self._errands:
            try:
                errand.trouble = errand.target.send(errand.title, errand.body)
            except Exception as error:  # noqa: BLE001 - a service's own code; it is tried again, and said
                errand.trouble = f"{errand.target.name}: {type(error).__name__}"

    def _record(self, state: State) -> None:
        """Notes what has become of the errands; those whose turn has not come stay as they are."""
        if self._thread is None or self._thread.is_alive():
            return
        self._thread = None
        with state.transaction():
            for errand in self._errands:
                row = state.rows("SELECT name, tries FROM outbox WHERE id = ?", errand.number)[0]
                tries = row["tries"] + 1
                status = WAITING if errand.trouble and tries < MOST_TRIES else FAILED if errand.trouble else SENT
                pause = min(_FIRST_PAUSE_SECONDS * 2.0 ** (tries - 1), _LONGEST_PAUSE_SECONDS)
                state.run("UPDATE outbox SET status = ?, tries = ?, due = ? WHERE id = ?", status, tries,
                          time.time() + pause, errand.number)  # fmt: skip
                if errand.trouble:
                    logger.warning("notice=%d try=%d %s", errand.number, tries, errand.trouble)
                if status != WAITING:
                    state.count(f"notices.{status}", 1)
                if status == FAILED:
                    said = f"nobody was told: {errand.trouble}, {tries} tries"
                    state.tell(row["name"], said, time=state.fact("newest") or 0)
        self._errands = []
