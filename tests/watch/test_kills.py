"""A monitor killed at any moment goes on as if nothing had been: kill -9 of the real command at random moments."""

import os
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtlops.bundle import Bundle
from tests.clones import ROOT
from tests.watch.logs import TASKS, World, Writer

PARAMS = """
suite:
  name: small
  tasks:
    mood: {kind: multiclass, source: a.csv, label: mood, classes: [bad, fair, good]}
drift: {window_rows: 200, audit_rows: 100}
"""


def start(folder: Path, bundle: Bundle, state: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "monitoring", "once", "--bundle", str(bundle.folder), "--log", str(folder / "log"),
               "--state", str(state), "--params", str(folder / "params.yaml"),
               "--report", str(state.parent / "drift.json"), "--quiet"]  # fmt: skip
    return subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL)


def content(state: Path) -> dict[str, list]:
    db = sqlite3.connect(state)
    queries = {
        "windows": "SELECT name, source, start, stop, rows, content FROM windows ORDER BY id",
        "detectors": "SELECT * FROM detectors", "counts": "SELECT * FROM counts",
        "files": "SELECT name, rows FROM files",
        "streams": "SELECT name, source, facts, arrays FROM streams", "answers": "SELECT * FROM answers",
        "events": "SELECT time, name, text FROM events ORDER BY id",
    }  # fmt: skip
    return {name: db.execute(query).fetchall() for name, query in queries.items()}


def num_files(state: Path) -> int:
    """Files of the log that a monitor has noted as read so far."""
    if not state.exists():
        return 0
    db = sqlite3.connect(f"file:{state}?mode=ro", uri=True, timeout=10.0)
    try:
        return int(db.execute("SELECT count(*) FROM files").fetchone()[0])
    except sqlite3.OperationalError:  # the tables are not there yet
        return 0
    finally:
        db.close()


def kill_when(process: subprocess.Popen, state: Path, *, files: int) -> bool:
    """Kills a monitor as soon as it has read so many files; False when it ended before."""
    while process.poll() is None:
        if num_files(state) >= files:
            process.kill()
            return process.wait() != 0
        time.sleep(0.002)
    return False


@pytest.mark.e2e
def test_killed_anywhere_no_window_is_lost_and_none_counted_twice(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS)
    writer, world, total = Writer(tmp_path / "log", bundle.id), World(5, shift=0.2), 500
    for _ in range(total // 2):
        writer.traffic(world, 6, tasks=TASKS)
        writer.feedback()
    (tmp_path / "whole").mkdir()
    assert start(tmp_path, bundle, tmp_path / "whole/state.sqlite").wait() == 0
    expected = content(tmp_path / "whole/state.sqlite")
    assert len(expected["windows"]) > 20 and len(expected["files"]) == total
    rng, interrupted = random.Random(1), 0
    for attempt in range(2):
        folder = tmp_path / f"killed{attempt}"
        folder.mkdir()
        state = folder / "state.sqlite"
        for files in (1, 150, 300):
            killed = kill_when(start(tmp_path, bundle, state), state, files=files)
            interrupted += killed and 0 < num_files(state) < total
        process = start(tmp_path, bundle, state)
        time.sleep(rng.uniform(0.2, 1.5))
        process.kill()
        process.wait()
        assert start(tmp_path, bundle, state).wait() == 0
        assert content(state) == expected
    assert interrupted >= 2


@pytest.mark.e2e
def test_two_monitors_do_not_share_a_state(bundle: Bundle, tmp_path: Path) -> None:
    from mtlops.watch.state import State

    (tmp_path / "params.yaml").write_text(PARAMS)
    Writer(tmp_path / "log", bundle.id).traffic(World(5), 20)
    state = State(tmp_path / "state.sqlite")
    process = start(tmp_path, bundle, tmp_path / "state.sqlite")
    assert process.wait() == 5
    state.close()
    assert start(tmp_path, bundle, tmp_path / "state.sqlite").wait() == 0
