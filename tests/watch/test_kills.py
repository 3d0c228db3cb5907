"""A monitor killed at any moment goes on as if nothing had been: kill -9 of the real command at random moments."""

import os
import random
import shutil
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


@pytest.mark.e2e
def test_killed_anywhere_no_window_is_lost_and_none_counted_twice(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS)
    writer, world = Writer(tmp_path / "log", bundle.id), World(5, shift=0.2)
    for _ in range(150):
        writer.traffic(world, 12, tasks=TASKS)
        writer.feedback()
    (tmp_path / "whole").mkdir()
    began = time.monotonic()
    assert start(tmp_path, bundle, tmp_path / "whole/state.sqlite").wait() == 0
    seconds = time.monotonic() - began
    expected = content(tmp_path / "whole/state.sqlite")
    assert len(expected["windows"]) > 20
    rng, killed, interrupted = random.Random(1), 0, 0
    for attempt in range(3):
        folder = tmp_path / f"killed{attempt}"
        folder.mkdir()
        for _ in range(3):
            process = start(tmp_path, bundle, folder / "state.sqlite")
            try:
                process.wait(timeout=seconds * rng.uniform(0.4, 1.0))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
        if (folder / "state.sqlite").exists():
            copy = shutil.copytree(folder, tmp_path / f"copy{attempt}")
            db = sqlite3.connect(copy / "state.sqlite")
            has_files = db.execute("SELECT count(*) FROM sqlite_master WHERE name = 'files'").fetchone()[0]
            some = db.execute("SELECT count(*) FROM files").fetchone()[0] if has_files else 0
            interrupted += 0 < some < 300
        assert start(tmp_path, bundle, folder / "state.sqlite").wait() == 0
        assert content(folder / "state.sqlite") == expected
    assert killed >= 3 and interrupted >= 1


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
