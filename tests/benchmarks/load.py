"""A server under load for a long time: `python -m tests.benchmarks.load --suite . [--minutes 30]`.

Clients send the suite's own texts, one to eight a request, for one, some or all tasks, at 80 % of what the server
answered when it was asked without a pause. Each minute's times and the server's memory are noted. Then it is stopped
while the clients go on, and every answer is looked for in the prediction log.
"""

import argparse
import contextlib
import http.client
import json
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtlops.bundle import Bundle
from mtlops.data.prepared import read_split
from tests.benchmarks.page import machine, table, write_part
from tests.serving.processes import Server, serving

_CLIENTS = 4
_SHARE = 0.8
_MOST_ROWS = 8
_UNPACED_SECONDS = 20.0
_DRAIN_SECONDS = 5.0
_LINES = 10


@dataclass
class _Tally:
    """What clients saw: per answer its second since the start and its milliseconds; rows of the log due, by id."""

    answers: list[tuple[float, float]] = field(default_factory=list)
    due: Counter[str] = field(default_factory=Counter)
    failed: Counter[str] = field(default_factory=Counter)


def main() -> None:
    """Measures, and writes the part `load` of docs/benchmarks.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--suite", type=Path, default=Path(), help="a project in which every step has run")
    parser.add_argument("--minutes", type=float, default=30.0)
    options = parser.parse_args()
    bundle = Bundle.open(options.suite / "models/candidate")
    prepared = options.suite / "data/prepared"
    texts = [text for task in bundle.tasks for text in read_split(prepared, task.name, "test")["text"].to_pylist()]
    with tempfile.TemporaryDirectory() as folder:
        lines = measure(Path(folder), bundle, texts, minutes=options.minutes)
    write_part("load", lines)
    print("\n".join(lines))


def measure(folder: Path, bundle: Bundle, texts: Sequence[str], *, minutes: float) -> list[str]:
    """Loads a server for so many minutes, stops it, counts; returns the lines of the page.

    Raises:
        AssertionError: a request failed, or the server did not stop by itself.
    """
    log, memory = folder / "log", list[tuple[float, float]]()
    options = ("--log", str(log), "--log-text", "--drain-seconds", str(_DRAIN_SECONDS))
    with serving(folder, "--bundle", str(bundle.folder), *options) as server:
        unpaced = _ask(server, bundle, texts, until=_after(_UNPACED_SECONDS), a_second=None)
        rate = len(unpaced.answers) / _UNPACED_SECONDS
        stopper = threading.Thread(target=_stop_later, args=(server, 60 * minutes, memory))
        stopper.start()
        paced = _ask(server, bundle, texts, until=lambda: False, a_second=_SHARE * rate)
        stopper.join()
        code = server.process.wait(timeout=120)
    logged = pa.concat_tables(
        pq.ParquetFile(path).read(["request_id", "row", "task"])
        for path in sorted((log / "predictions").rglob("*.parquet"))
    )
    assert code == 0 and not unpaced.failed and not paced.failed, (code, unpaced.failed, paced.failed)
    due, found = unpaced.due + paced.due, Counter(logged["request_id"].to_pylist())
    unique = logged.group_by(["request_id", "row", "task"]).aggregate([]).num_rows
    facts = {
        "requests a second without a pause": rate,
        "requests a second then": len(paced.answers) / (60 * minutes),
        "requests answered / failed": f"{len(paced.answers):,} / 0",
        "rows of the log that are missing": (due - found).total(),
        "rows of the log of requests that nobody saw answered": (found - due).total(),
        "rows of the log that are there twice": logged.num_rows - unique,
        "rows of the log": f"{logged.num_rows:,}",
    }
    return [
        "## A long load", "", f"`python -m tests.benchmarks.load --suite . --minutes {minutes:g}` on {machine()}; the",
        f"{_CLIENTS} clients on the same cores. 1 to {_MOST_ROWS} texts a request, 1 to {len(bundle.tasks)} tasks.", "",
        *table(["what", "measured"], list(facts.items())), "",
        *table(["minute", "requests", "p50 ms", "p99 ms", "memory MB"], _by_minute(paced, memory, minutes)),
    ]  # fmt: skip


def _by_minute(tally: _Tally, memory: Sequence[tuple[float, float]], minutes: float) -> list[list[object]]:
    step = max(1, round(minutes / _LINES))
    rows: list[list[object]] = []
    for minute in range(0, int(minutes), step):
        first, last = 60 * minute, 60 * (minute + step)
        times = [ms for second, ms in tally.answers if first <= second < last]
        p50, p99 = np.percentile(times, [50, 99])
        most = max(mb for second, mb in memory if first <= second < last)
        rows.append([f"{minute + 1} to {minute + step}", len(times), float(p50), float(p99), round(most)])
    return rows


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


def _stop_later(server: Server, seconds: float, memory: list[tuple[float, float]]) -> None:
    started, is_over = time.monotonic(), _after(seconds)
    status = Path(f"/proc/{server.process.pid}/status")
    while not is_over():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
        memory.append((time.monotonic() - started, int(line.split()[1]) / 1024))
        time.sleep(1)
    server.process.send_signal(signal.SIGTERM)


def _ask(
    server: Server, bundle: Bundle, texts: Sequence[str], *, until: Callable[[], bool], a_second: float | None
) -> _Tally:
    """Asks from several clients until it is time, or the server takes no connection any more."""
    tally, started = _Tally(), time.monotonic()
    names = [task.name for task in bundle.tasks]

    def client(seed: int) -> None:
        chance, due = random.Random(seed), started
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.ports["rest"])) as connection:
            while not until():
                if a_second is not None:
                    due += chance.expovariate(a_second / _CLIENTS)
                    time.sleep(max(0.0, due - time.monotonic()))
                tasks = chance.sample(names, chance.randint(1, len(names)))
                body = {"text": chance.choices(texts, k=chance.randint(1, _MOST_ROWS)), "tasks": tasks}
                sent = time.monotonic()
                try:
                    connection.request("POST", "/predict", json.dumps(body))
                except ConnectionError:
                    return
                try:
                    response = connection.getresponse()
                    answer = json.loads(response.read())
                except (OSError, http.client.HTTPException) as error:
                    tally.failed[repr(error)] += 1
                    return
                if response.status != 200:
                    tally.failed[str(answer)] += 1
                    continue
                tally.answers.append((sent - started, 1000 * (time.monotonic() - sent)))
                tally.due[answer["id"]] = len(body["text"]) * len(tasks)

    threads = [threading.Thread(target=client, args=(seed,)) for seed in range(_CLIENTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return tally


if __name__ == "__main__":
    main()
