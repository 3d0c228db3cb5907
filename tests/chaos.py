"""The loop under kill -9: a drift is repaired while server, monitor and pipeline are killed at random moments.

    python -m tests.chaos --seeds 20        # prints a table; exit code 1 when a run does not end as it must

A run is a small project with a real server, monitor, pipeline and registry. A supervisor starts again what was killed.
At the end exactly one promotion must be there, by the one request; requests may have failed only while the server was
away; and rows of the prediction log may be missing only where they were answered less than a moment before the server
was killed (`mtlops.serving.log.JOURNAL_SECONDS`).
"""

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import yaml

from monitoring.attempt import processes_of
from mtlops.registry import Registry
from mtlops.serving.log import JOURNAL_SECONDS
from tests.tiny_suite import Workspace, make_workspace, run_all
from tests.tiny_window import posts

ROOT = Path(__file__).parents[1]
SLACK_SECONDS = 2.0
"""On a busy machine the log's thread gets its turn so late, at most."""

LONGEST_SECONDS = 900.0
KILLS = 4
_ENDINGS = ("this", "that", "it", "they", "we", "you")
_ROWS = 150


@dataclass
class Process:
    """A process that is started again when it ends.

    Attributes:
        command: of Python.
        log: file that gets what it says.
        away: (from, until) of each time without it, in seconds of time.time().
        starts: how often it was started.
    """

    command: Sequence[str]
    log: Path
    address: str
    away: list[tuple[float, float]] = field(default_factory=list)
    starts: int = 0
    process: subprocess.Popen[bytes] | None = None

    def keep_running(self, stopped: threading.Event) -> None:
        """Starts it, and again whenever it has ended, until told to stop."""
        since = time.time()
        while not stopped.is_set():
            with self.log.open("ab") as file:
                self.process = subprocess.Popen(
                    (sys.executable, *self.command), cwd=ROOT, stdout=file, stderr=file,
                    env=os.environ | {"PYTHONPATH": str(ROOT), "MTLOPS_WORK": str(self.log.parent / "work")},
                )  # fmt: skip
            self.starts += 1
            while self.process.poll() is None and not stopped.is_set() and not answers(self.address):
                time.sleep(0.1)
            self.away.append((since, time.time()))
            while self.process.poll() is None and not stopped.is_set():
                time.sleep(0.05)
            since = time.time()
        if self.process is not None:
            self.process.terminate()  # a server writes what it still holds
            self.process.wait(timeout=60)

    def kill(self) -> bool:
        """Kills it as kill -9 does; False when it is not running."""
        process = self.process
        if process is None or process.poll() is not None:
            return False
        process.kill()
        return True


@dataclass
class Client:
    """Asks for topic and sends the labels back, two texts a request, until it is told to stop.

    Attributes:
        answered: by (request, row) when it was asked, and when its answer was noted: on a busy machine perhaps after
            the server that gave it has been killed.
        failed: time of each request that failed.
    """

    url: str
    answered: dict[tuple[str, int], tuple[float, float]] = field(default_factory=dict)
    failed: list[float] = field(default_factory=list)

    def run(self, stopped: threading.Event) -> None:
        """Sends rows of the shift, fast until there are enough for a window, then slowly."""
        rows = [row for ending in _ENDINGS for row in posts(ending=ending)]
        random.Random(0).shuffle(rows)
        at = 0
        while not stopped.is_set():
            part = [rows[(at + i) % len(rows)] for i in range(2)]
            asked = time.time()
            try:
                answer = _post(f"{self.url}/predict", {"text": [row["body"] for row in part], "tasks": ["topic"]})
                noted = time.time()
                self.answered |= {(answer["id"], i): (asked, noted) for i in range(2)}
                labels = [{"request_id": answer["id"], "row": i, "task": "topic", "label": row["topic"]}
                          for i, row in enumerate(part)]  # fmt: skip
                _post(f"{self.url}/v2/feedback", {"labels": labels})
            except OSError:
                self.failed.append(time.time())
                stopped.wait(0.2)
                continue
            at += 2
            stopped.wait(0.02 if at < 3 * _ROWS else 0.3)


@dataclass
class Ended:
    """How a run ended.

    Attributes:
        seed: of it.
        seconds: it took.
        kills: what was killed, in order.
        promotions: by the loop.
        statuses: of the requests to train.
        answered: rows.
        failed: requests outside of the server's own restarts.
        lost: rows that are missing from the log, within and beyond the stated bound.
        wrong: what is not as it must be.
    """

    seed: int
    seconds: float
    kills: list[str]
    promotions: int
    statuses: list[str]
    answered: int
    failed: int
    lost: tuple[int, int]
    wrong: list[str]


def make_project(root: Path) -> Workspace:
    """Returns a finished small project whose monitor acts by itself."""
    work = make_workspace(root)
    run_all(work)
    content = yaml.safe_load(work.params_file.read_text(encoding="utf-8"))
    content["train"] |= {"patience": 30, "learning_rate": 0.02}
    content["gates"] |= {"max_drop": None, "seed_noise": {"topic": 0.0}}
    content["drift"] |= {"window_rows": _ROWS, "audit_rows": _ROWS, "false_alarms_per_month": 1000}
    content["retrain"] = {"blend": 1.0, "epochs": 30}
    # So small a reference has too few held-out rows to judge answers by.
    content["trigger"] = {"by": "local", "violations": 1, "of_windows": 3, "kinds": ["input"]}
    work.params_file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
    return work


def play(finished: Workspace, folder: Path, *, seed: int, kills: int = KILLS) -> Ended:
    """Plays one run in `folder`, which must not be there yet, and returns how it ended."""
    shutil.copytree(finished.root, folder)
    registry = Registry(str(folder / "registry"))
    registry.promote(registry.publish(folder / "models/candidate"), expect=None, by="chaos", reason="the first")
    rng, stopped, started = random.Random(seed), threading.Event(), time.time()
    ports = [free_port() for _ in range(5)]
    server, monitor = _server(folder, registry.url, ports[:4]), _monitor(folder, registry.url, ports[4])
    client = Client(f"http://127.0.0.1:{ports[0]}")
    threads = [threading.Thread(target=target, args=(stopped,))
               for target in (server.keep_running, monitor.keep_running)]  # fmt: skip
    with _alive(threads, stopped):
        _wait(lambda: answers(server.address) and answers(monitor.address), "server and monitor")
        asked_enough = threading.Event()
        asking = threading.Thread(target=client.run, args=(asked_enough,))
        with _alive([asking], asked_enough):
            killed = _kill_at_random(rng, folder, (server, monitor), kills=kills)
            _wait(lambda: _is_over(folder, registry, client.url), "the end", lambda: f"killed: {killed}")
        names = [name for name, _ in killed]
        deaths = [moment for name, moment in killed if name == "server"]
    return _judge(Ended(seed, round(time.time() - started, 1), names, 0, [], 0, 0, (0, 0), []), folder, registry,
                  client=client, server=server, deaths=deaths)  # fmt: skip


def _judge(
    ended: Ended, folder: Path, registry: Registry, *, client: Client, server: Process, deaths: Sequence[float]
) -> Ended:  # fmt: skip
    history = registry.history()
    ended.promotions = len(history) - 1
    ended.statuses = _statuses(folder)
    ended.answered = len(client.answered)
    outside = [t for t in client.failed if not any(a - 0.5 <= t <= b + 0.5 for a, b in server.away)]
    ended.failed = len(outside)
    kept = _logged(folder / "log")
    missing = [moments for key, moments in client.answered.items() if key not in kept]
    bound = JOURNAL_SECONDS + SLACK_SECONDS
    late = [(asked, noted) for asked, noted in missing if not any(asked <= d <= noted + bound for d in deaths)]
    ended.lost = len(missing) - len(late), len(late)
    ages = ", ".join(sorted({f"{min((d - noted for d in deaths), key=abs, default=0.0):.1f}" for _, noted in late}))
    claims = {
        f"{ended.promotions} promotions": ended.promotions == 1,
        f"requests {ended.statuses}": ended.statuses == ["PROMOTE"],
        f"{ended.failed} requests failed while the server was there": ended.failed == 0,
        f"{ended.lost[1]} rows lost beyond the bound, answered {ages} s before the nearest kill": ended.lost[1] == 0,
        "a lease is left": not list((folder / "registry").glob("retraining/*")) or not ended.promotions,
        f"files of the log set aside: {_set_aside(folder)}": not _set_aside(folder),
    }
    ended.wrong = [claim for claim, holds in claims.items() if not holds]
    return ended


def _kill_at_random(
    rng: random.Random, folder: Path, processes: tuple[Process, Process], *, kills: int
) -> list[tuple[str, float]]:  # fmt: skip
    """Kills server, monitor or a process of the pipeline, one after another; returns which and when."""
    killed: list[tuple[str, float]] = []
    stop = time.monotonic() + LONGEST_SECONDS / 2
    while len(killed) < kills and time.monotonic() < stop and not _has_ended(folder):
        time.sleep(rng.uniform(0.5, 6.0))
        name = rng.choice(["server", "monitor", "pipeline"])
        pipeline = [p for path in _requests(folder) for p in processes_of(path)]
        if name == "pipeline" and pipeline:
            try:
                os.kill(rng.choice(sorted(pipeline)), signal.SIGKILL)
            except ProcessLookupError:
                continue
            killed.append((name, time.time()))
        elif name != "pipeline" and processes[name == "monitor"].kill():
            killed.append((name, time.time()))
    return killed


def _requests(folder: Path) -> list[str]:
    return [row[0] for row in _query(folder, "SELECT id FROM requests")]


def _statuses(folder: Path) -> list[str]:
    return [row[0] for row in _query(folder, "SELECT status FROM requests ORDER BY time")]


def _has_ended(folder: Path) -> bool:
    found = _statuses(folder)
    return bool(found) and all(status not in {"requested", "started"} for status in found)


def _set_aside(folder: Path) -> list[str]:
    return [row[0] for row in _query(folder, "SELECT reason FROM files WHERE reason IS NOT NULL")]


def _query(folder: Path, query: str) -> list[tuple[Any, ...]]:
    path = folder / "registry/monitoring.sqlite"
    if not path.exists():
        return []
    db = sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10.0)
    try:
        return db.execute(query).fetchall()
    except sqlite3.OperationalError:  # the tables are not there yet
        return []
    finally:
        db.close()


def _is_over(folder: Path, registry: Registry, url: str) -> bool:
    """The request has ended, and the server answers with the champion."""
    champion = registry.champion()
    if not _has_ended(folder) or champion is None:
        return False
    try:
        return bool(_post(f"{url}/predict", {"text": ["the road"]})["bundle"] == champion.bundle_id)
    except OSError:
        return False


def _logged(log: Path) -> set[tuple[str, int]]:
    found: set[tuple[str, int]] = set()
    for path in log.rglob("*.parquet"):
        if "predictions" in path.as_posix():
            table = pq.read_table(path, columns=["request_id", "row"])
            found |= set(zip(table["request_id"].to_pylist(), table["row"].to_pylist(), strict=True))
    return found


def _server(folder: Path, registry: str, ports: Sequence[int]) -> Process:
    names = ("port", "grpc-port", "admin-port", "metrics-port")
    options = [word for name, port in zip(names, ports, strict=True) for word in (f"--{name}", str(port))]
    command = ["-m", "mtlops", "serve", "--threads", "1", *options, "--registry", registry, "--poll-seconds", "1",
               "--log", str(folder / "log"), "--log-text", "--log-flush-seconds", "1",
               "--cache", str(folder / "served")]  # fmt: skip
    return Process(command, folder / "server.log", f"http://127.0.0.1:{ports[0]}/v2/health/ready")


def _monitor(folder: Path, registry: str, port: int) -> Process:
    update = (
        f"{sys.executable} -m pipelines run --pipeline continuous --json --params {{params}} --window {{window}} "
        f"--out {{out}} --tasks {{tasks}} --reason {{reason}} --registry {{registry}} --workspace {folder / 'runs'}"
    )
    command = ["-m", "monitoring", "run", "--params", str(folder / "params.yaml"), "--registry", registry,
               "--log", str(folder / "log"), "--interval", "1", "--port", str(port),
               "--requests", str(folder / "requests"), "--retrain-command", update]  # fmt: skip
    return Process(command, folder / "monitor.log", f"http://127.0.0.1:{port}/metrics")


def free_port() -> int:
    """Returns a port that nobody listens on."""
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def answers(address: str) -> bool:
    """Returns whether an address answers."""
    try:
        with urllib.request.urlopen(address, timeout=2) as found:
            return bool(found.status == 200)
    except OSError:
        return False


def _post(address: str, content: Any) -> Any:
    request = urllib.request.Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            return json.loads(response.read() or b"null")
    except urllib.error.HTTPError as error:
        with error:
            raise OSError(f"{error.code}: {error.read()!r}") from None


@contextmanager
def _alive(threads: Sequence[threading.Thread], stopped: threading.Event) -> Iterator[None]:
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stopped.set()
        for thread in threads:
            thread.join(timeout=60)


def _wait(is_so: Callable[[], object], what: str, more: Callable[[], str] = str) -> None:
    stop = time.monotonic() + LONGEST_SECONDS
    while not is_so():
        if time.monotonic() > stop:
            raise AssertionError(f"no {what} within {LONGEST_SECONDS:.0f} s. {more()}")
        time.sleep(0.3)


def main() -> int:
    """Plays as many runs as asked for, and prints a table."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=20, help="number of runs (default: 20)")
    parser.add_argument("--first", type=int, default=0, help="the first seed (default: 0)")
    parser.add_argument("--keep", type=Path, help="folder that keeps the runs")
    options = parser.parse_args()
    bad = 0
    with tempfile.TemporaryDirectory() as place:
        root = options.keep or Path(place)
        finished = make_project(root / "finished")
        print("| seed | seconds | killed | requests | promotions | rows | failed | lost within, beyond |  |")
        print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |", flush=True)
        for seed in range(options.first, options.first + options.seeds):
            done = play(finished, root / f"run{seed}", seed=seed)
            bad += bool(done.wrong)
            print(f"| {seed} | {done.seconds:.0f} | {', '.join(done.kills)} | {', '.join(done.statuses)} | "
                  f"{done.promotions} | {done.answered} | {done.failed} | {done.lost[0]}, {done.lost[1]} | "
                  f"{'; '.join(done.wrong) or 'ok'} |", flush=True)  # fmt: skip
    print(f"{options.seeds - bad} of {options.seeds} ended as they must")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
