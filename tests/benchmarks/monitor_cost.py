"""What the monitor's commands need: CPU seconds and memory of `once`, `run` and `profile` over a synthetic log."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tests.benchmarks.page import table
from tests.chaos import free_port
from tests.clones import ROOT
from tests.watch.logs import MOOD, STARS, TAGS, World, Writer, write_bundle

_TEXTS = 1250
_TASKS = [MOOD, STARS, TAGS, replace(MOOD, name="tone")]
_ROWS = _TEXTS * len(_TASKS)
_PARAMS = """
suite:
  name: small
  tasks:
    mood: {kind: multiclass, source: a.csv, label: mood, classes: [bad, fair, good]}
"""


@dataclass(frozen=True)
class Need:
    """What a process needed: CPU seconds, and the most memory at once in MB."""

    cpu: float
    megabytes: float


def cost(share: float) -> list[str]:
    """Returns the table; `share` of a million rows: texts that were asked for four tasks, embeddings of 384 numbers."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "params.yaml").write_text(_PARAMS)
        bundle = write_bundle(folder / "bundle", tasks=_TASKS, world=World(0, width=384))
        writer, world = Writer(folder / "log", bundle.id, per_day=2_500_000.0), World(1, width=384)
        rows: list[list[object]] = []
        for files in (max(2, int(20 * share)), max(4, int(200 * share))):
            while writer.row < files * _TEXTS:
                writer.traffic(world, _TEXTS, tasks=_TASKS)
            rows += _commands(folder, files * _ROWS)
    said = (
        f"Whole processes, started without settings of threads. Texts that were asked for {len(_TASKS)} tasks, with "
        f"embeddings of 384 numbers; files of {_ROWS:,} rows of (request, task), as `mtlops serve` writes them; "
        "windows of 1,000. `profile` counts a part of a log that is merged with others."
    )
    program = "from mtlops.small import keep_small; keep_small(); import mtlops.watch.engine, mtlops.watch.summary"
    imports = min(_run(["-c", program]).cpu for _ in range(3))
    head = ["command", "rows", "CPU s", "rows in a CPU second", "CPU minutes for 10 million rows", "peak memory, MB"]
    return ["### Cost", "", said, "", *table(head, rows), "",
            f"Import of the watch, interpreter included: {imports:.2f} CPU s."]  # fmt: skip


def _commands(folder: Path, num_rows: int) -> list[list[object]]:
    common = ["--bundle", f"{folder}/bundle", "--params", f"{folder}/params.yaml", "--log", f"{folder}/log", "--quiet"]
    for state in folder.glob("*.sqlite*"):
        state.unlink()
    days = ["--since", "2026-03-01", "--until", "2026-03-31", "--part", "1/1", "--out", str(folder / "part")]
    needs = {
        "once": _run(["-m", "monitoring", "once", *common, "--state", f"{folder}/once.sqlite",
                      "--report", f"{folder}/drift.json"]),
        "run": _resident(["-m", "monitoring", "run", *common, "--state", f"{folder}/run.sqlite"], num_rows),
        "profile": _run(["-m", "monitoring", "profile", *common, *days]),
    }  # fmt: skip
    return [
        [f"`{name}`", f"{num_rows:,}", need.cpu, f"{num_rows / need.cpu:,.0f}", f"{1e7 * need.cpu / num_rows / 60:.1f}",
         f"{need.megabytes:.0f}"]
        for name, need in needs.items()
    ]  # fmt: skip


def _run(arguments: Sequence[str]) -> Need:
    process = _start(arguments)
    peak = 0.0
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
        peak = _peak(process, peak)
        time.sleep(0.01)
    return Need(_ended(process), peak)


def _resident(arguments: Sequence[str], num_rows: int) -> Need:
    """`run` until its report counts all rows, then stopped."""
    port = free_port()
    process = _start([*arguments, "--port", str(port)])
    while _rows_seen(port) < num_rows:
        if process.poll() is not None:
            raise SystemExit(f"{' '.join(arguments)}: exit code {process.returncode}")
        time.sleep(0.5)
    peak = _peak(process, 0.0)
    process.send_signal(signal.SIGTERM)
    return Need(_ended(process), peak)


def _peak(process: subprocess.Popen[bytes], before: float) -> float:
    """MB by the process's own account: `getrusage` would give what this process had when it started it, if more."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    lines = [line for line in status.splitlines() if line.startswith("VmHWM")]
    return int(lines[0].split()[1]) / 1024 if lines else before


def _ended(process: subprocess.Popen[bytes]) -> float:
    """Waits for the end; returns the CPU seconds."""
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{process.args}: exit code {process.returncode}")
    return used.ru_utime + used.ru_stime


def _rows_seen(port: int) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/drift.json", timeout=60) as answer:
            report = json.load(answer)
    except OSError:
        return 0
    return int(report["log"]["counts"].get("rows", 0)) if report else 0


def _start(arguments: Sequence[str]) -> subprocess.Popen[bytes]:
    free = {name: value for name, value in os.environ.items() if not name.endswith("_NUM_THREADS")}
    return subprocess.Popen([sys.executable, *arguments], cwd=ROOT, stdout=subprocess.DEVNULL, env=free)
