"""`python -m monitoring` as a user types it: exit codes, one clear line for what is wrong, replay of a real bundle."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from monitoring.__main__ import main
from mtlops.bundle import Bundle
from tests.clones import ROOT
from tests.tiny_suite import Workspace
from tests.watch.logs import MOOD, World, Writer
from tests.watch.test_kills import PARAMS


@pytest.fixture
def place(bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with params.yaml and a log of which half has drifted."""
    (tmp_path / "params.yaml").write_text(PARAMS)
    writer = Writer(tmp_path / "log", bundle.id)
    writer.traffic(World(1), 200, tasks=[MOOD])
    writer.traffic(World(2, shift=1.5), 400, tasks=[MOOD])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_once_says_what_moved_writes_the_report_and_ends(
    place: Path, bundle: Bundle, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["once", "--bundle", str(bundle.folder), "--log", "log", "--state", "state.sqlite"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "mood           drifted" in said and "covariate shift" in said
    report = json.loads((place / "reports/drift.json").read_text())
    assert report["level"] == "drifted" and report["tasks"]["mood"]["cells"]["input"]["level"] == "drifted"
    page = (place / "reports/drift.html").read_text()
    assert "covariate shift" in page and "drift.html" in (place / "reports/index.html").read_text()
    assert main([*arguments, "--json", "--exit-code"]) == 6
    done = json.loads(capsys.readouterr().out)
    assert (done["files"], done["level"], done["levels"]["mood"]) == (0, "drifted", "drifted")


def test_a_pass_does_without_pandas_though_arrow_would_import_it(place: Path, bundle: Bundle) -> None:
    program = """
import runpy, sys
sys.argv[0] = "monitoring"
try:
    runpy.run_module("monitoring", run_name="__main__")
finally:
    import pyarrow
    print("pandas" in sys.modules, pyarrow.default_memory_pool().backend_name, file=sys.stderr)
    import pandas
"""
    command = [sys.executable, "-c", program, "once", "--bundle", str(bundle.folder), "--log", "log", "--state", "s"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True,
                          check=True)  # fmt: skip
    assert "mood           drifted" in done.stdout
    assert done.stderr.splitlines()[-1] == "False system"


def test_reset_forgets_a_task_with_a_record(place: Path, bundle: Bundle, capsys: pytest.CaptureFixture) -> None:
    where = ["--bundle", str(bundle.folder), "--state", "state.sqlite"]
    assert main(["once", *where, "--log", "log"]) == 0
    assert main(["reset", *where, "--task", "moot", "--reason", "x"]) == 2
    assert "no alarm is kept of it; there are: mood" in capsys.readouterr().err
    assert main(["reset", *where, "--task", "mood", "--reason", "the feed was repaired"]) == 0
    assert main(["once", *where, "--log", "log", "--exit-code"]) == 0
    report = json.loads((place / "reports/drift.json").read_text())
    assert report["level"] == "ok" and "alarms reset: the feed was repaired" in report["events"][0]["text"]


@pytest.mark.parametrize(
    "arguments, code, said",
    [
        (["once", "--log", "log"], 4, "registry: has no champion yet. Run `mtlops promote`, or give --bundle."),
        (["once", "--bundle", "nothing", "--log", "log"], 2, "the registry is not a folder of this machine"),
        (["once", "--bundle", "nothing", "--log", "log", "--state", "s"], 4, "nothing/manifest.json: not found"),
        (["once", "--log", ""], 2, "no prediction log. Give --log URL"),
        (["run", "--log", ""], 2, "no prediction log. Give --log URL"),
        (["once", "--log", "nosuch://x"], 2, "nosuch"),
        (["once", "--log", "log", "--set", "drift.window_row=3"], 2, "drift.window_row: unknown key. Did you mean"),
        (["replay", "nothing.csv", "--bundle", "nothing"], 4, "nothing/manifest.json: not found"),
    ],
)
@pytest.mark.usefixtures("place")
def test_what_is_wrong_is_one_line(
    arguments: list[str], code: int, said: str, capsys: pytest.CaptureFixture
) -> None:  # fmt: skip
    assert main(arguments) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("monitoring: error: ") and said in lines[0]


@pytest.mark.parametrize("command", ["once", "run", "replay", "reset"])
def test_help(command: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="0"):
        main([command, "--help"])
    assert "--registry" in capsys.readouterr().out


def test_replay_of_a_users_table_through_a_real_bundle(
    finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(finished.params_file, "params.yaml")
    rows = list(csv.DictReader((finished.root / "data/sources/reviews.csv").read_text().splitlines()))
    with Path("traffic.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["body"])
        writer.writerows([[row[next(iter(row))] or "x"] for row in rows for _ in range(4)])
    bundle = ["--bundle", str(finished.bundle)]
    small = ["--set", "drift.window_rows=20", "--set", "drift.min_rows=20"]
    assert main(["replay", "traffic.csv", *bundle, *small, "--text", "body", "--json", "--report", "drift.json"]) == 0
    done = json.loads(capsys.readouterr().out)
    report = json.loads(Path("drift.json").read_text())
    names = [task.name for task in Bundle.open(finished.bundle).tasks]
    assert set(done["levels"]) == {"encoder", *names} and done["rows"] == 4 * len(rows)
    assert all(report["tasks"][name]["windows"]["traffic"] >= 1 for name in names)
    assert main(["replay", "traffic.csv", *bundle]) == 3
    assert "has no column 'text'; it has body. Give --text COLUMN." in capsys.readouterr().err


def test_replay_of_a_prepared_window(
    finished: Workspace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "window"
    folder.mkdir()
    name = Bundle.open(finished.bundle).tasks[0].name
    shutil.copy(finished.root / f"data/prepared/{name}/train.parquet", folder / f"{name}.parquet")
    arguments = ["replay", str(folder), "--bundle", str(finished.bundle), "--params", str(finished.params_file)]
    small = ["--set", "drift.window_rows=20", "--set", "drift.audit_rows=20", "--set", "drift.min_rows=20"]
    assert main([*arguments, *small, "--report", "drift.json"]) == 0
    report = json.loads(Path("drift.json").read_text())
    counts = report["log"]["counts"]
    assert counts["rows"] == counts["labels"] == counts["labels_joined"] > 0
    assert report["tasks"][name]["windows"]["labels"] >= 1
    assert name in capsys.readouterr().out
