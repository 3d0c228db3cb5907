"""Alarms reach a web hook and a mailbox: once each, again where they were not taken, with all that a reader needs."""

import email
import email.policy
import http.server
import json
import os
import socketserver
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from monitoring.notices import new_notices
from monitoring.notifier import Notifier, read_targets
from mtlops.bundle import Bundle
from mtlops.errors import UsageError
from mtlops.watch.state import State
from tests.clones import ROOT
from tests.monitoring.reports import REPORT
from tests.watch.logs import MOOD, World, Writer

PARAMS = """
suite:
  name: small
  tasks:
    mood: {kind: multiclass, source: a.csv, label: mood, classes: [bad, fair, good]}
drift: {window_rows: 300}
"""
SECRET = "a-very-secret-token"


@contextmanager
def web_hook(*, failures: int = 0) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A receiver that answers 503 some times at first."""
    posts: list[dict[str, Any]] = []
    left = [failures]

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if left[0]:
                left[0] -= 1
                self.send_error(503)
                return
            posts.append(body)
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"json://user:{SECRET}@127.0.0.1:{server.server_address[1]}/alerts", posts
    server.shutdown()
    server.server_close()


@contextmanager
def mailbox() -> Iterator[tuple[str, list[Any]]]:
    """A mail server (RFC 5321, the commands that a client needs)."""
    mails: list[Any] = []

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.wfile.write(b"220 here\r\n")
            for line in self.rfile:
                word = line[:4].upper()
                if word == b"DATA":
                    self.wfile.write(b"354 go on\r\n")
                    lines = list(iter(self.rfile.readline, b".\r\n"))
                    mails.append(email.message_from_bytes(b"".join(lines), policy=email.policy.default))
                self.wfile.write(b"221 bye\r\n" if word == b"QUIT" else b"250 ok\r\n")
                if word == b"QUIT":
                    return

    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    place = f"127.0.0.1:{server.server_address[1]}"
    yield f"mailto://{place}?smtp=127.0.0.1&from=monitor@example.org&to=team@example.org&mode=insecure", mails
    server.shutdown()
    server.server_close()


def once(folder: Path, bundle: Bundle, addresses: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "monitoring", "once", "--bundle", str(bundle.folder), "--log", str(folder / "log"),
               "--state", str(folder / "state.sqlite"), "--params", str(folder / "params.yaml"),
               "--report", str(folder / "drift.json")]  # fmt: skip
    own = os.environ | {"PYTHONPATH": str(ROOT), "MTLOPS_NOTIFY": addresses}
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False, timeout=120)


def outbox(state: Path) -> list[tuple]:
    return sqlite3.connect(state).execute("SELECT status, tries FROM outbox ORDER BY id").fetchall()


@pytest.mark.e2e
def test_an_alarm_is_told_once_to_everybody_and_again_where_it_was_not_taken(bundle: Bundle, tmp_path: Path) -> None:
    def with_text(entries: list) -> None:
        for number, entry in enumerate(entries):
            entry["text"] = f"a text of the window, number {number}"

    (tmp_path / "params.yaml").write_text(PARAMS)
    Writer(tmp_path / "log", bundle.id).traffic(World(1, shift=1.5), 600, tasks=[MOOD], change=with_text)
    with web_hook(failures=1) as (hook, posts), mailbox() as (mail, mails):
        first = once(tmp_path, bundle, f"{hook} {mail}")
        assert first.returncode == 0, first.stderr
        assert (len(posts), len(mails)) == (0, 1)
        assert outbox(tmp_path / "state.sqlite") == [("waiting", 1), ("sent", 1)]
        assert "address 1 (json) did not take it (status 503)" in first.stderr
        sqlite3.connect(tmp_path / "state.sqlite", isolation_level=None).execute("UPDATE outbox SET due = 0")
        for _ in range(2):
            again = once(tmp_path, bundle, f"{hook} {mail}")
            assert again.returncode == 0, again.stderr
        assert (len(posts), len(mails)) == (1, 1)
    assert outbox(tmp_path / "state.sqlite") == [("sent", 2), ("sent", 1)]
    said = posts[0]["message"]
    for part in ("Task: mood of small", "Since: 2026-03-01T", "- input: text.characters: ", ", floor 0.025, 300 rows",
                 "covariate shift: The texts are others", "What to do: The texts are new", "number 599"):  # fmt: skip
        assert part in said, said
    assert "effect" in said and "[" in said
    assert posts[0]["title"] == "small: mood has drifted: covariate shift" == str(mails[0]["Subject"])
    assert "What to do: The texts are new" in mails[0].get_body(("plain", "html")).get_content()
    kept = (tmp_path / "state.sqlite").read_bytes() + (tmp_path / "state.sqlite-wal").read_bytes() \
        if (tmp_path / "state.sqlite-wal").exists() else (tmp_path / "state.sqlite").read_bytes()  # fmt: skip
    assert SECRET.encode() not in kept and SECRET not in first.stderr + again.stderr


def test_a_target_that_never_answers_does_not_hold_up_a_pass_and_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with web_hook(failures=1000) as (hook, posts):
        monkeypatch.setenv("MTLOPS_NOTIFY", hook)
        monkeypatch.setattr("monitoring.notifier.MOST_TRIES", 3)
        state = State(tmp_path / "state.sqlite")
        notifier = Notifier(read_targets())
        for _ in range(3):
            notifier.step(state, REPORT)
            notifier.finish(state)
            state.run("UPDATE outbox SET due = 0")
        notifier.step(state, REPORT)
        assert notifier._thread is None
        assert [tuple(row) for row in state.rows("SELECT status, tries FROM outbox")] == [("failed", 3)]
        assert state.counts() == {"notices.failed": 1} and not posts
        assert "nobody was told: address 1 (json) did not take it (status 503), 3 tries" in state.events()[0]["text"]
        state.close()


def test_what_was_told_is_not_told_again_and_a_new_alarm_is(tmp_path: Path) -> None:
    state = State(":memory:")
    (notice,) = new_notices(REPORT, state)
    assert notice.keys == ("mood/prediction/2026-03-02T00:00:00Z",)
    assert notice.title == "small: mood has drifted: prior shift"
    assert "- prediction: prediction.label: bad from 0.3 to 0.6" in notice.body
    assert "the log holds no texts of it" in notice.body
    state.run("INSERT INTO told (key) VALUES (?)", notice.keys[0])
    assert list(new_notices(REPORT, state)) == []
    task = REPORT["tasks"]["mood"]
    cells = {**task["cells"], "quality": {**task["cells"]["prediction"], "since": "2026-03-03T00:00:00Z"}}
    (other,) = new_notices({**REPORT, "tasks": {"mood": {**task, "cells": cells}}}, state)
    assert other.keys == ("mood/quality/2026-03-03T00:00:00Z",)


def test_addresses_come_from_a_file_and_bad_ones_are_refused_without_being_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "addresses"
    file.write_text(f"# the team\njson://user:{SECRET}@localhost/a\n\njson://localhost/b\n")
    monkeypatch.setenv("MTLOPS_NOTIFY_FILE", str(file))
    found = read_targets()
    assert [target.name for target in found] == ["address 1 (json)", "address 2 (json)"]
    assert SECRET not in repr([(target.id, target.name) for target in found])
    file.write_text(f"nonsense://{SECRET}")
    with pytest.raises(UsageError, match="address 1 is none that Apprise knows") as caught:
        read_targets()
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("MTLOPS_NOTIFY_FILE", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="cannot be read"):
        read_targets()
