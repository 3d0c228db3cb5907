"""What serving costs, beside what it replaces: `python -m tests.benchmarks.serving --suite . [--bundle DIR]`.

Interleaved: every repetition runs each contestant once on the same batches; a ratio is the median over repetitions of
the ratio within one, with its lowest and highest in brackets. CPU seconds of the process, one thread.
"""

import argparse
import http.client
import itertools
import json
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Generator

from mtlops.bundle import Bundle
from mtlops.data.prepared import read_split
from mtlops.data.tokenisation import pad
from mtlops.registry import Registry
from mtlops.serving.passes import embed, open_session, run
from mtlops.serving.runtime import Runtime
from tests.benchmarks.page import machine, table, write_part
from tests.serving.processes import Server, serving
from tests.serving.variants import retrained, with_many_tasks
from tests.tiny_suite import make_workspace, run_all

_TEXTS = 64
_REPETITIONS = 5
_REQUESTS = 2_000
_CLIENTS = (1, 8)
_TASKS = 4
_MANY = 100
_SWAPS = 12
_SWAPS_UNDER_LOAD = 100


def main() -> None:
    """Measures, and writes the part `serving` of docs/benchmarks.md."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--suite", type=Path, default=Path(), help="a project in which every step has run")
    parser.add_argument("--only", choices=[*PARTS], help="measure this alone, and write nothing")
    parser.add_argument("--bundle", type=Path, help="default: models/candidate of the suite")
    options = parser.parse_args()
    bundle = Bundle.open(options.bundle or options.suite / "models/candidate")
    texts = _texts(options.suite / "data/prepared", bundle)
    if options.only:
        print("\n".join(PARTS[options.only](options.suite, bundle, texts)))
        return
    lines = [
        "## Serving",
        "",
        "`OMP_NUM_THREADS=1 python -m tests.benchmarks.serving --suite .`",
        f"on {machine()}, one thread. {len(texts)} test texts of all tasks, median",
        f"{_median_tokens(bundle, texts):.0f} tokens; the encoder has {_layers(bundle)} layers.",
        f"Brackets: lowest and highest of {_REPETITIONS} repetitions. The time around the model was measured with the",
        "tests' tiny model, and without its passes: CPU of all threads of the server, less that of the graph alone on",
        "batches of the size that the server made.",
        *(line for part in PARTS.values() for line in ["", *part(options.suite, bundle, texts)]),
    ]
    write_part("serving", lines)
    print("\n".join(lines))


def model(suite: Path, bundle: Bundle, texts: Sequence[str]) -> list[str]:
    """All tasks in one graph against a session a task and against the bare encoder, in float and in integers."""
    runtime, rows = Runtime(bundle, threads=1), []
    for drop in dict.fromkeys((_layers(bundle) - 2, _depth(bundle), 0)):
        with tempfile.TemporaryDirectory() as folder:
            graphs = _write_graphs(suite, Path(folder), drop=drop, calibration=_batches(runtime, texts, 1)[::2])
            for size in (1, 8):
                contestants = _contestants(graphs, _batches(runtime, texts, size), num_tasks=len(bundle.tasks))
                rows += [[drop, *row] for row in _compare(contestants, size=size, num_texts=len(texts))]
    return [
        "### The model",
        "",
        "The same graph as the bundle's, with fresh adapters, none in the lowest layers. Plain exports are what a team",
        "has that exports each task's model as it is: one task's adapters, every layer computed for every token. “One",
        "a task” is the harder reference: our own graph with one task, whose last layer computes only the token that",
        "is pooled, as in the graph of all tasks.",
        "",
        *table(
            ["layers without", "rows", "what", "CPU ms a text", "CPU of the plain fp32 sessions over its own"], rows
        ),
    ]


def _contestants(
    graphs: Mapping[str, Path], batches: Sequence[Any], *, num_tasks: int
) -> dict[str, Callable[[], None]]:
    """Work on all batches, by what does it."""

    def opened(name: str) -> Any:
        return open_session(graphs[name], "CPUExecutionProvider", threads=1)

    def alone(sessions: Sequence[Any]) -> None:
        for batch in batches:
            for session in sessions:
                run(session, *batch, [0])

    def together(session: Any, positions: Sequence[int]) -> None:
        for batch in batches:
            run(session, *batch, positions)

    def encoder(session: Any) -> None:
        for batch in batches:
            embed(session, *batch)

    found: dict[str, Callable[[], None]] = {}
    for number in ("fp32", "int8"):
        sessions, session = [opened(f"one.{number}") for _ in range(num_tasks)], opened(f"all.{number}")
        plain = [opened(f"plain.{number}") for _ in range(num_tasks)]
        found[f"{number}: {num_tasks} sessions, plain exports"] = partial(alone, plain)
        found[f"{number}: {num_tasks} sessions, one a task"] = partial(alone, sessions)
        found[f"{number}: one graph, {num_tasks} tasks"] = partial(together, session, range(num_tasks))
        found[f"{number}: one graph, one task"] = partial(together, session, [0])
        found[f"{number}: the bare encoder"] = partial(encoder, session)
    return found


def server(bundle: Bundle, texts: Sequence[str]) -> list[str]:
    """What the server adds to the model, and how long a swap takes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        registry = Registry(folder / "registry")
        other = retrained(bundle, folder / "other", task=bundle.tasks[-1].name)
        ids = [registry.publish(bundle.folder), registry.publish(other.folder)]
        registry.promote(ids[0], expect=None, by="benchmark", reason="benchmark")
        options = ("--workers", "1", "--poll-seconds", "0.01", "--drain-seconds", "0", "--batch-rows", "1")
        started = time.perf_counter()
        with serving(folder / "server", "--registry", registry.url, *options) as running:
            seconds = time.perf_counter() - started
            swap_ms = _swaps(running, registry, ids, number=_SWAPS)
            with _asking(running, list(texts)) as answers:
                loaded_ms = _swaps(running, registry, ids, number=_SWAPS_UNDER_LOAD)
            memory = _memory_mb(running, "VmHWM")
        around = _around_tiny(folder)
    rows = [
        *(
            [f"CPU ms of a request around the model (HTTP, queue, tokens, decoding, JSON, log), clients: {n}", found]
            for n, found in around.items()
        ),
        [f"swap of one task, pointer seen to new answers, mean of {_SWAPS}, ms", round(swap_ms, 1)],
        [f"the same while {_CLIENTS[-1]} clients ask, mean of {_SWAPS_UNDER_LOAD}, ms", round(loaded_ms, 1)],
        ["requests answered meanwhile; none failed", sum(answers)],
        ["start until ready, hashing and golden rows included, s", round(seconds, 2)],
        ["peak memory, MB", round(memory)],
    ]
    return ["### The server", "", *table(["what", "measured"], rows)]


def many(bundle: Bundle, texts: Sequence[str]) -> list[str]:
    """What a hundred tasks cost one process: memory, and the time of a request that asks for one of them."""
    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        folder, running, asked = Path(name), {}, {}
        for number in (len(bundle.tasks), _MANY):
            made = with_many_tasks(bundle, folder / f"bundle-{number}", number=number)
            options = ("--bundle", str(made.folder), "--workers", "1")
            running[number] = stack.enter_context(serving(folder / f"server-{number}", *options))
            asked[number] = made.tasks[-1].name
        ms: dict[int, list[float]] = {number: [] for number in running}
        for text in texts * _REPETITIONS:
            for number, server in running.items():
                started = time.perf_counter()
                server.predict(text, tasks=[asked[number]])
                ms[number].append(1000 * (time.perf_counter() - started))
        memory = {number: _memory_mb(server, "VmRSS") for number, server in running.items()}
        peak = {number: _memory_mb(server, "VmHWM") for number, server in running.items()}
    few = len(bundle.tasks)
    rows = [
        [n, round(memory[n]), round(peak[n]), f"{(memory[n] - memory[few]) / (n - few):.2f}" if n > few else "",
         *(round(float(np.percentile(ms[n], p)), 1) for p in (50, 99))]
        for n in running
    ]  # fmt: skip
    head = ["tasks", "memory, MB", "its peak, MB", "MB for each further task", "p50 ms, one task asked", "p99 ms"]
    return ["### A hundred tasks", "", "Asked in turns, one request at a time.", "", *table(head, rows)]


def _compare(contestants: Mapping[str, Callable[[], None]], *, size: int, num_texts: int) -> list[list[object]]:
    seconds: dict[str, list[float]] = {name: [] for name in contestants}
    for repetition in range(_REPETITIONS + 1):
        for name, work in contestants.items():
            started = time.process_time()
            work()
            if repetition:
                seconds[name].append(time.process_time() - started)
    first = next(iter(seconds.values()))
    rows: list[list[object]] = []
    for name, found in seconds.items():
        ratios = [a / b for a, b in zip(first, found, strict=True)]
        ratio = f"{statistics.median(ratios):.2f} [{min(ratios):.2f}, {max(ratios):.2f}]"
        rows.append([size, name, round(1000 * statistics.median(found) / num_texts, 2), ratio])
    return rows


def _around_tiny(folder: Path) -> dict[int, str]:
    """CPU ms of a request around the model, by the number of clients that ask at the same time."""
    (folder / "tiny").mkdir()
    work = make_workspace(folder / "tiny")
    run_all(work)
    runtime, found = Runtime(Bundle.open(work.bundle), threads=1), {}
    options = ("--workers", "1", "--threads", "1", "--log", str(folder / "log"))
    with serving(folder / "tiny-server", "--bundle", str(work.bundle), *options) as running:
        for clients in _CLIENTS:
            _around(running, runtime, clients)
            each = [_around(running, runtime, clients) for _ in range(_REPETITIONS)]
            found[clients] = f"{statistics.median(each):.2f} [{min(each):.2f}, {max(each):.2f}]"
    return found


def _around(running: Server, runtime: Runtime, clients: int) -> float:
    """CPU ms of all threads of the server a request, less that of the graph alone on batches of the same size."""
    tasks = [task.name for task in runtime.tasks][:_TASKS]
    texts = ["a fine film", "the law"]
    path = f"/v2/models/{runtime.bundle.manifest['suite']}/infer"
    bodies = [
        json.dumps({
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": [text]}],
            "parameters": {"tasks": ",".join(tasks)},
        })
        for text in texts
    ]  # fmt: skip

    def ask() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", running.ports["rest"])
        for number in range(_REQUESTS // clients):
            connection.request("POST", path, bodies[number % len(bodies)])
            response = connection.getresponse()
            content = response.read()
            assert response.status == 200, content
        connection.close()

    passes, before = running.metric("mtlops_batch_rows_count"), _cpu_seconds(running)
    with ThreadPoolExecutor(clients) as pool:
        for done in [pool.submit(ask) for _ in range(clients)]:
            done.result()
    with_server = _cpu_seconds(running) - before
    asked = _REQUESTS // clients * clients
    passes = int(running.metric("mtlops_batch_rows_count") - passes)
    size = max(1, round(asked / passes))
    batch = pad(runtime.tokenizer.ids([texts[i % len(texts)] for i in range(size)]))
    before = time.process_time()
    for _ in range(passes):
        run(runtime, *batch, range(len(tasks)))
    return 1000 * (with_server - (time.process_time() - before)) / asked


def _swaps(running: Server, registry: Registry, ids: Sequence[str], *, number: int) -> float:
    """Mean milliseconds of so many swaps, to the one bundle and back."""

    def total() -> tuple[float, float]:
        name = "mtlops_swap_duration_seconds"
        return running.metric(f"{name}_sum"), running.metric(f"{name}_count")

    seconds, swaps = total()
    for turn in range(number):
        new, old = ids[(turn + 1) % 2], ids[turn % 2]
        registry.promote(new, expect=old, by="benchmark", reason="benchmark")
        while running.get("/status", "admin")[1]["last_swap"].get("bundle") != new:
            time.sleep(0.02)
    assert running.metric('mtlops_swap_total{outcome="swapped"}') == swaps + number
    return 1000 * (total()[0] - seconds) / number


@contextmanager
def _asking(running: Server, texts: Sequence[str]) -> Iterator[list[int]]:
    """Clients that ask without a pause; yields the number of answers of each, and fails if one was refused."""
    stop, answers = threading.Event(), [0] * _CLIENTS[-1]

    def ask(client: int) -> None:
        for text in itertools.cycle(texts[client:] + texts[:client]):
            if stop.is_set():
                return
            running.predict(text)
            answers[client] += 1

    with ThreadPoolExecutor(len(answers)) as pool:
        clients = [pool.submit(ask, client) for client in range(len(answers))]
        try:
            yield answers
        finally:
            stop.set()
        for client in clients:
            client.result()


def _write_graphs(suite: Path, folder: Path, *, drop: int, calibration: Sequence[Any]) -> dict[str, Path]:
    """Writes the graph of all tasks and that of one, in float and in integers; returns their files by name."""
    from mtlops.export.graph import PairsGraph, write_onnx
    from mtlops.export.quantisation import write_static
    from mtlops.model.encoders import load_trunk
    from mtlops.model.multitask import PairModel
    from mtlops.model.trained import load_model

    model, trunk = load_model(suite / "models/trained"), load_trunk(suite / "data/encoder")
    pairs = PairModel(trunk, model.model.model_copy(update={"adapter_drop": drop}))
    fresh = [pairs.adapter.bank(pairs.init(task, Generator().manual_seed(0)), training=False) for task in model.tasks]
    found = {}
    plain = PairModel(trunk, pairs.params)
    plain.pooling = replace(plain.pooling, first_token_only=False)
    for name, model_, tensors in (("all", pairs, fresh), ("one", pairs, fresh[:1]), ("plain", plain, fresh[:1])):
        found |= {f"{name}.{number}": folder / f"{name}.{number}.onnx" for number in ("fp32", "int8")}
        write_onnx(PairsGraph(trunk, model_, tasks=tensors, embedding="last"), found[f"{name}.fp32"], opset=20)
        positions = np.arange(len(tensors), dtype=np.int64)
        passes = (
            {
                "input_ids": ids, "attention_mask": mask, "pair_row": np.zeros_like(positions),
                "pair_task": positions, "embed_row": np.zeros(1, np.int64),
            }
            for ids, mask in calibration
        )  # fmt: skip
        write_static(found[f"{name}.fp32"], found[f"{name}.int8"], passes=passes)
    return found


def _texts(prepared: Path, bundle: Bundle) -> list[str]:
    of_task = [read_split(prepared, task.name, "test")["text"].to_pylist() for task in bundle.tasks]
    share = _TEXTS // len(of_task)
    return [text for texts in of_task for text in texts[:: max(1, len(texts) // share)][:share]]


def _batches(runtime: Runtime, texts: Sequence[str], size: int) -> list[tuple[Any, Any]]:
    ids = sorted(runtime.tokenizer.ids(texts), key=len)
    return [pad(ids[i : i + size], pad_id=runtime.tokenizer.pad_id) for i in range(0, len(ids), size)]


def _median_tokens(bundle: Bundle, texts: Sequence[str]) -> float:
    return float(np.median([len(ids) for ids in Runtime(bundle, threads=1).tokenizer.ids(texts)]))


def _depth(bundle: Bundle) -> int:
    return int(bundle.manifest["params"]["model"]["adapter_drop"])


def _layers(bundle: Bundle) -> int:
    return int(json.loads((bundle.folder / "trunk/config.json").read_text())["num_hidden_layers"])


def _cpu_seconds(running: Server) -> float:
    """Of all threads: to the nanosecond, where /proc/PID/stat counts hundredths of a second."""
    threads = Path(f"/proc/{running.process.pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def _memory_mb(running: Server, what: str) -> float:
    """VmRSS, or VmHWM, its peak."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(what)).split()[1]) / 1024


PARTS: dict[str, Callable[[Path, Bundle, list[str]], list[str]]] = {
    "model": model,
    "server": lambda _, bundle, texts: server(bundle, texts),
    "many": lambda _, bundle, texts: many(bundle, texts),
}

if __name__ == "__main__":
    main()
