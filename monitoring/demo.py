"""`make demo`: one task drifts in production and is repaired, while the server answers. Everything is real.

A server, a monitor and a registry are started in build/demo, with the bundle that `make run` made. Traffic of the
default suite comes first; then posts of newsgroups that no model has seen, whose labels come back. From there on nobody
does anything: the monitor alarms and asks for training, the continuous pipeline trains topic alone, the gate judges it,
the registry's champion changes, the server swaps. In the end the demo measures what that brought, and whether anything
else changed.
"""

import json
import logging
import os
import re
import shutil
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from monitoring.replay import Traffic, read_traffic
from mtlops import catalog
from mtlops.bundle import Bundle, diff
from mtlops.data.prepared import read_split
from mtlops.errors import MtlopsError, PlatformError
from mtlops.params import Params, read_params
from mtlops.registry import Registry
from mtlops.report import write_report
from mtlops.serving.runtime import Runtime

TASK = "topic"
WINDOW = 400
"""Posts of each phase, and rows of a window of the monitor: 50 a newsgroup after the shift."""

HELD_OUT = 600
"""Further posts of the same newsgroups, and as many known ones, on which old and new model are compared."""

PROBES = 25
_TEXTS = 8
_LONGEST_SECONDS = 900.0

logger = logging.getLogger(__name__)


@dataclass
class Demo:
    """A running demo.

    Attributes:
        folder: where everything of it lies.
        params: file params.yaml that it works with.
        events: what happened: seconds since the start, and a sentence.
        requests: answered, and failed, by the server.
    """

    folder: Path
    params: Path
    events: list[dict[str, Any]] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=lambda: {"answered": 0, "failed": 0})
    _started: float = field(default_factory=time.monotonic)

    def tell(self, words: str) -> None:
        """Notes and prints an event."""
        seconds = round(time.monotonic() - self._started, 1)
        self.events.append({"seconds": seconds, "event": words})
        print(f"{int(seconds) // 60:3d}:{int(seconds) % 60:02d}  {words}", flush=True)

    def ask(self, url: str, texts: Sequence[str], tasks: Sequence[str]) -> dict[str, Any]:
        """Returns the server's answer to some tasks, or to all; a request that fails is counted and raised."""
        wanted = {"tasks": list(tasks)} if tasks else {}
        try:
            answer = _post(f"{url}/predict", {"text": list(texts), **wanted})
        except OSError:
            self.requests["failed"] += 1
            raise
        self.requests["answered"] += 1
        return answer


def main() -> int:
    """Runs the demo and returns its exit code."""
    logging.basicConfig(level=logging.WARNING)
    try:
        _play(Path("params.yaml"), Path("build/demo"))
    except MtlopsError as error:
        print(f"demo: error: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"demo: error: {error}. The logs in build/demo say more.", file=sys.stderr)
        return PlatformError.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def _play(params_file: Path, folder: Path) -> None:
    demo = Demo(folder, prepare_folder(params_file, folder))
    params = read_params(demo.params)
    registry = Registry(str(folder / "registry"))
    bundle_id = registry.publish(Path("models/candidate"))
    registry.promote(bundle_id, expect=None, by="demo", reason="the first champion")
    champion = Bundle.open(registry.fetch(bundle_id, folder / "cache"))
    demo.tell(f"champion {champion.id}: {', '.join(task.name for task in champion.tasks)}")
    shift = _shuffled(read_traffic(Path("data/prepared/windows/unseen-newsgroups"), champion.tasks))
    calm = _shuffled(read_traffic(Path("data/prepared/windows/control-topic"), champion.tasks))
    reviews = read_traffic(Path("data/prepared/windows/control-reviews"), champion.tasks)
    server = ("-m", "mtlops", "serve", *_ports("port", "grpc-port", "admin-port", "metrics-port"), "--registry",
              registry.url, "--poll-seconds", "1", "--log", str(folder / "log"), "--log-text",
              "--log-flush-seconds", "1", "--cache", str(folder / "cache"))  # fmt: skip
    monitor = ("-m", "monitoring", "run", "--params", str(demo.params), "--registry", registry.url,
               "--log", str(folder / "log"), "--interval", "2", "--port", "0",
               "--requests", str(folder / "requests"))  # fmt: skip
    with (
        _running(server, folder / "server.log", r"rest=(\d+)") as rest,
        _running(monitor, folder / "monitor.log", r"http://[\d.]+:(\d+)/") as status,
    ):
        urls = f"http://127.0.0.1:{rest}", f"http://127.0.0.1:{status}"
        demo.tell(f"server on {urls[0]}, monitor's page on {urls[1]}")
        _live(demo, urls, calm=calm, shift=shift, probes=reviews.texts[:PROBES])
    _measure(demo, params, registry, champion, shift)
    write_report(folder / "timeline.json", {"events": demo.events, "requests": demo.requests})
    demo.tell(f"timeline: {folder / 'timeline.html'}; logs of server and monitor beside it")


def _live(demo: Demo, urls: tuple[str, str], *, calm: Traffic, shift: Traffic, probes: Sequence[str]) -> None:
    """The part with a server: traffic, shift, alarm, repair, swap."""
    server, monitor = urls
    before = [demo.ask(server, [text], ()) for text in probes]
    _send(demo, server, calm, range(WINDOW))
    demo.tell(f"{WINDOW} posts of known newsgroups answered, their labels sent back")
    _wait(demo, "a quiet window", lambda: _closed(monitor))
    demo.tell(f"monitor: {TASK} is {_level(monitor)}")
    _send(demo, server, shift, range(WINDOW))
    demo.tell(f"the shift: {WINDOW} posts of 8 newsgroups that training never saw, their labels sent back")
    _wait(demo, "an alarm", lambda: _level(monitor) == "drifted")
    demo.tell(f"ALERT: {_said(monitor)}")
    champion = before[0]["bundle"]
    request = _wait(demo, "a request to retrain", lambda: _requests(monitor))
    demo.tell(f"request {request[0]['id']}: train {', '.join(request[0]['tasks'])}; the pipeline runs, traffic goes on")
    with _trickle(demo, server, probes):
        _wait(demo, "the end of the pipeline", lambda: _requests(monitor, ended=True))
        ended = _requests(monitor, ended=True)[0]
        demo.tell(f"pipeline ended: {ended['status']}")
        if ended["status"] != "PROMOTE":
            raise PlatformError(f"the gate did not promote ({ended['status']}). {demo.folder}/monitor.log says why.")
        _wait(demo, "a swap", lambda: demo.ask(server, probes[:1], ())["bundle"] != champion)
        demo.tell("server: swapped without a restart")
    after = [demo.ask(server, [text], ()) for text in probes]
    _compare(demo, before, after)
    demo.tell(f"requests: {demo.requests['answered']} answered, {demo.requests['failed']} failed")


def _compare(demo: Demo, before: Sequence[dict[str, Any]], after: Sequence[dict[str, Any]]) -> None:
    """Are the server's answers of every other task what they were, to the last digit?"""
    pairs = [(a["predictions"][0]["tasks"], b["predictions"][0]["tasks"]) for a, b in zip(before, after, strict=True)]
    others = [name for name in pairs[0][0] if name != TASK]
    same = [name for name in others if all(a[name] == b[name] for a, b in pairs)]
    demo.tell(f"{len(same)} of {len(others)} other tasks answer bit-identically ({len(pairs)} texts, before and after)")


def _measure(demo: Demo, params: Params, registry: Registry, champion: Bundle, shift: Traffic) -> None:
    """What the update brought on posts of these newsgroups that nobody labelled, and cost on known ones."""
    entry = registry.champion()
    assert entry is not None
    updated = Bundle.open(registry.fetch(entry.bundle_id, demo.folder / "cache"))
    test = read_split(Path("data/prepared"), TASK, "test")
    rows = np.unique(np.linspace(0, test.num_rows - 1, HELD_OUT).astype(int))
    known = test["text"].take(rows).to_pylist(), test["label"].take(rows).to_pylist()
    new = shift.texts[WINDOW : WINDOW + HELD_OUT], shift.labels[TASK][WINDOW : WINDOW + HELD_OUT]
    scores = {
        name: [_score(params, bundle, *data) for bundle in (champion, updated)]
        for name, data in {"new newsgroups": new, "known newsgroups": known}.items()
    }
    for name, (old, now) in scores.items():
        demo.tell(f"{TASK}, macro-F1 on {HELD_OUT} other posts of {name}: {old:.3f} -> {now:.3f}")
    parts = diff(champion, updated)
    same = [name for name, part in parts.items() if (part.files, part.outputs) == ("identical", "identical")]
    bundle = next(found for found in registry.bundles() if found.id == updated.id)
    demo.tell(
        f"bundle {updated.id}: files and golden outputs identical: {', '.join(same)}; it added "
        f"{bundle.added_bytes / 1e6:.1f} of {bundle.bytes / 1e6:.0f} MB to the registry"
    )


def _score(params: Params, bundle: Bundle, texts: Sequence[str], labels: Sequence[Any]) -> float:
    from mtlops.decoding import decode

    task = next(task for task in params.tasks() if task.name == TASK)
    logits = Runtime(bundle).logits(texts, TASK)
    metrics = catalog.load(catalog.KINDS[task.kind].metrics)(
        task, task.encode(labels), decode(task, logits, bundle.calibrations[TASK])
    )
    return float(metrics[catalog.KINDS[task.kind].primary])


def prepare_folder(params_file: Path, folder: Path) -> Path:
    """Empties the folder and writes the params: a monitor that acts by itself, and windows as long as a phase."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = yaml.safe_load(params_file.read_text(encoding="utf-8"))
    content["drift"] = {**content.get("drift", {}), "window_rows": WINDOW, "audit_rows": WINDOW}
    content["trigger"] = {"by": "local", "violations": 1, "of_windows": 3}
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


def _shuffled(traffic: Traffic) -> Traffic:
    order = np.random.default_rng(0).permutation(len(traffic.texts))
    labels = {name: [values[i] for i in order] for name, values in traffic.labels.items()}
    return Traffic([traffic.texts[i] for i in order], [traffic.groups[i] for i in order], labels)


def _send(demo: Demo, server: str, traffic: Traffic, rows: range) -> None:
    """Asks for TASK, some texts a request, and sends the true labels back."""
    for start in range(rows.start, rows.stop, _TEXTS):
        part = range(start, min(start + _TEXTS, rows.stop))
        answer = demo.ask(server, [traffic.texts[i] for i in part], [TASK])
        for row, i in enumerate(part):
            label = {"request_id": answer["id"], "row": row, "task": TASK, "label": traffic.labels[TASK][i]}
            _post(f"{server}/v2/feedback", label)


@contextmanager
def _trickle(demo: Demo, server: str, texts: Sequence[str]) -> Iterator[None]:
    """Some requests a second, all the while."""
    stop = threading.Event()

    def ask() -> None:
        while not stop.wait(0.3):
            try:
                demo.ask(server, [texts[demo.requests["answered"] % len(texts)]], ())
            except OSError as error:
                demo.tell(f"a request FAILED: {error}")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _running(arguments: Sequence[str], log: Path, ready: str) -> Iterator[str]:
    """A process of this Python; yields what `ready` found in its log."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    with log.open("wb") as file:
        process = subprocess.Popen((sys.executable, *arguments), stdout=file, stderr=file, env=environment)  # noqa: S603
    try:
        stop = time.monotonic() + 60.0
        while not (found := re.search(ready, log.read_text(encoding="utf-8", errors="replace"))):
            if process.poll() is not None or time.monotonic() > stop:
                raise PlatformError(f"{' '.join(arguments[:3])} did not start. {log} says why.")
            time.sleep(0.1)
        yield found.group(1)
    finally:
        process.terminate()
        try:
            process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait(demo: Demo, what: str, is_there: Any) -> Any:
    """Returns what `is_there` returns as soon as it is true."""
    stop = time.monotonic() + _LONGEST_SECONDS
    while not (found := is_there()):
        if time.monotonic() > stop:
            raise PlatformError(f"no {what} within {_LONGEST_SECONDS:.0f} s. The logs in {demo.folder} say why.")
        time.sleep(0.5)
    return found


def _ports(*names: str) -> list[str]:
    return [word for name in names for word in (f"--{name}", "0")]


def _report(monitor: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{monitor}/drift.json", timeout=30) as response:  # noqa: S310 - our own monitor
        report: dict[str, Any] = json.load(response)
    return report


def _level(monitor: str) -> str:
    return str(_report(monitor).get("tasks", {}).get(TASK, {}).get("level", "not judged yet"))


def _closed(monitor: str) -> bool:
    return bool(_report(monitor).get("tasks", {}).get(TASK, {}).get("cells"))


def _said(monitor: str) -> str:
    task = _report(monitor)["tasks"][TASK]
    kinds = [kind for kind, cell in task["cells"].items() if cell["level"] == "drifted"]
    causes = [found["cause"] for found in (task["diagnosis"] or {"causes": []})["causes"]]
    return f"{TASK} drifted ({', '.join(kinds)}); likely cause: {', '.join(causes) or 'unknown'}"


def _requests(monitor: str, *, ended: bool = False) -> list[dict[str, Any]]:
    found = _report(monitor).get("requests", [])
    return [request for request in found if not ended or request["status"] not in {"requested", "started"}]


def _post(url: str, content: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(content).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - our own server
        body = response.read()
    return dict(json.loads(body)) if body else {}


if __name__ == "__main__":
    raise SystemExit(main())
