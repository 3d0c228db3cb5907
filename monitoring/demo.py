"""`make demo`: a scenario played with real processes. A task drifts and is repaired while the server answers.

A server, a monitor and a registry are started in build/demo, with the bundle that `make run` made. Phase by phase the
scenario's traffic comes in and its labels come back. From there on nobody does anything: the monitor alarms and asks
for training, the continuous pipeline trains the tasks in question alone, the gate judges them, the registry's champion
changes, the server swaps. In the end the demo measures what that brought, and whether anything else changed; where
something is not as the scenario says, it ends with a line and exit code 6.
"""

import argparse
import itertools
import logging
import os
import random
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from monitoring import outcome
from monitoring.attempt import processes_of
from monitoring.processes import ANY_PORTS, get, post, running
from monitoring.scenarios import DEFAULT, Expected, Phase, Rows, Scenario, read_scenario, scenario_names
from mtlops.bundle import Bundle
from mtlops.errors import MtlopsError, PlatformError, VerdictError
from mtlops.params import Params, read_params
from mtlops.registry import Registry
from mtlops.report import write_report

FOLDER = Path("build/demo")
PREPARED = Path("data/prepared")
PROBES = 25
_TEXTS = 8
_PAUSE_SECONDS = 0.5
_LONGEST_SECONDS = 3600.0
_ENDED_WELL = ("PROMOTE", "HOLD", "REJECT")

logger = logging.getLogger(__name__)


@dataclass
class Demo:
    """A running demo.

    Attributes:
        folder: where everything of it lies.
        scenario: what is played.
        events: what happened: seconds since the start, a kind and a sentence.
        claims: what had to be so: a sentence, and whether it was.
        requests: answered, and failed, by the server.
    """

    folder: Path
    scenario: Scenario
    events: list[dict[str, Any]] = field(default_factory=list)
    claims: list[dict[str, Any]] = field(default_factory=list)
    requests: dict[str, int] = field(default_factory=lambda: {"answered": 0, "failed": 0})
    _started: float = field(default_factory=time.monotonic)

    def tell(self, words: str, kind: str = "event") -> None:
        """Notes and prints an event."""
        seconds = round(time.monotonic() - self._started, 1)
        self.events.append({"seconds": seconds, "kind": kind, "event": words})
        print(f"{int(seconds) // 60:3d}:{int(seconds) % 60:02d}  {words}", flush=True)

    def claim(self, words: str, holds: bool) -> None:
        """Notes and prints whether something that had to be so is so."""
        self.claims.append({"claim": words, "holds": holds})
        self.tell(f"{'ok' if holds else 'NOT AS EXPECTED'}: {words}", "claim")

    def ask(self, url: str, texts: Sequence[str], tasks: Sequence[str]) -> dict[str, Any]:
        """Returns the server's answer to some tasks, or to all; a request that fails is counted and raised."""
        wanted = {"tasks": list(tasks)} if tasks else {}
        try:
            answer = post(f"{url}/predict", {"text": list(texts), **wanted})
        except OSError:
            self.requests["failed"] += 1
            raise
        self.requests["answered"] += 1
        return answer


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the demo and returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m monitoring.demo", description="Play a scenario, live.")
    parser.add_argument(
        "--scenario", default=DEFAULT, metavar="NAME", help=f"{', '.join(scenario_names())}, or a YAML file"
    )
    logging.basicConfig(level=logging.WARNING)
    try:
        play(parser.parse_args(arguments).scenario, params_file=Path("params.yaml"), folder=FOLDER)
    except MtlopsError as error:
        for line in str(error).splitlines():
            print(f"demo: error: {line}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        print(f"demo: error: {error}. The logs in {FOLDER} say more.", file=sys.stderr)
        return PlatformError.exit_code
    except KeyboardInterrupt:
        return 130
    return 0


def play(name: str, *, params_file: Path, folder: Path) -> None:
    """Plays a scenario with the bundle in models/candidate.

    Args:
        name: of a scenario that comes with mtlops, or its file.
        params_file: params.yaml of the suite.
        folder: gets the registry, the logs and timeline.html; what it held is removed.

    Raises:
        UsageError: the scenario is wrong, or not for this suite.
        VerdictError: it did not end as it says.
        PlatformError: a process did not start, or something took too long.
    """
    scenario = read_scenario(name)
    bundle = Bundle.open(Path("models/candidate"))
    scenario.check_tasks([task.name for task in bundle.tasks], where=name)
    demo = Demo(folder, scenario)
    params = read_params(prepare_folder(params_file, folder, scenario))
    registry = Registry(str(folder / "registry"))
    champion = _first_champion(registry, folder)
    demo.tell(f"scenario {name}: {scenario.about}", "phase")
    demo.tell(f"champion {champion.id}: {', '.join(task.name for task in champion.tasks)}")
    rows = Rows(PREPARED / "windows", champion.tasks)
    try:
        with _server(demo, registry) as server, _monitor(demo, registry) as monitor:
            demo.tell(f"server on {server}, monitor's page on {monitor}")
            _live(demo, (server, monitor), rows=rows, champion=champion.id)
        _measure(demo, params, registry=registry, champion=champion, rows=rows)
    finally:
        _write(demo, name)
    demo.tell(f"timeline: {folder / 'timeline.html'}; logs of server and monitor beside it")
    wrong = [claim["claim"] for claim in demo.claims if not claim["holds"]]
    if wrong:
        raise VerdictError(f"scenario {name} did not end as it says: {'; '.join(wrong)}. See {folder}/timeline.html.")


def _first_champion(registry: Registry, folder: Path) -> Bundle:
    bundle_id = registry.publish(Path("models/candidate"))
    registry.promote(bundle_id, expect=None, by="demo", reason="the first champion")
    return Bundle.open(registry.fetch(bundle_id, folder / "cache"))


@contextmanager
def _server(demo: Demo, registry: Registry) -> Iterator[str]:
    folder = demo.folder
    arguments = ("-m", "mtlops", "serve", *ANY_PORTS, "--registry", registry.url, "--poll-seconds", "1",
                 "--log", str(folder / "log"), "--log-text", "--log-flush-seconds", "1",
                 "--cache", str(folder / "cache"))  # fmt: skip
    with running(arguments, folder / "server.log", r"rest=(\d+)") as port:
        yield f"http://127.0.0.1:{port}"


@contextmanager
def _monitor(demo: Demo, registry: Registry) -> Iterator[str]:
    folder = demo.folder
    arguments = ("-m", "monitoring", "run", "--params", str(folder / "params.yaml"), "--registry", registry.url,
                 "--log", str(folder / "log"), "--interval", "2", "--port", "0",
                 "--requests", str(folder / "requests"))  # fmt: skip
    with running(arguments, folder / "monitor.log", r"http://[\d.]+:(\d+)/") as port:
        try:
            yield f"http://127.0.0.1:{port}"
        finally:
            _leave_nothing(folder / "requests")


def _leave_nothing(requests: Path) -> None:
    """Ends pipelines of requests that are still at work when the demo is broken off."""
    for path in requests.glob("*.attempts.json"):
        for process in processes_of(path.name.removesuffix(".attempts.json")):
            os.kill(process, signal.SIGTERM)


def _live(demo: Demo, urls: tuple[str, str], *, rows: Rows, champion: str) -> None:
    """The part with a server: phases of traffic, alarms, and what the monitor does about them."""
    server, monitor = urls
    probes = rows.rest(demo.scenario.probes).texts[:PROBES]
    before = [demo.ask(server, [text], ()) for text in probes]
    for phase in demo.scenario.phases:
        _play_phase(demo, urls, phase, rows=rows)
    expect = demo.scenario.expect
    with _background(demo, server, rows):
        ended = _await_requests(demo, monitor, expect)
        if any(request["status"] == "PROMOTE" for request in ended):
            _wait(demo, "a swap", lambda: demo.ask(server, probes[:1], ())["bundle"] not in ("", champion))
            newest = _champion(demo)
            _wait(demo, "the swap", lambda: demo.ask(server, probes[:1], ())["bundle"] == newest)
            demo.tell("server: swapped without a restart", "swap")
    after = [demo.ask(server, [text], ()) for text in probes]
    others = [name for name in before[0]["predictions"][0]["tasks"] if name not in _retrained(ended)]
    same = [name for name in outcome.equal_answers(before, after) if name in others]
    demo.claim(f"{len(same)} of {len(others)} other tasks answer bit-identically ({len(probes)} texts)", same == others)
    answered, failed = demo.requests["answered"], demo.requests["failed"]
    demo.claim(f"requests: {answered} answered, {failed} failed", failed == 0)


def _retrained(ended: Sequence[dict[str, Any]]) -> set[str]:
    return {task for request in ended if request["status"] == "PROMOTE" for task in request["tasks"]}


def _champion(demo: Demo) -> str:
    entry = Registry(str(demo.folder / "registry")).champion()
    assert entry is not None
    return entry.bundle_id


def _play_phase(demo: Demo, urls: tuple[str, str], phase: Phase, *, rows: Rows) -> None:
    server, monitor = urls
    before = _windows(monitor)
    numbers = [_send(demo, server, rows.next(source), source.tasks) for source in phase.traffic]
    _take_turns(numbers)
    total = sum(source.number for source in phase.traffic)
    demo.tell(f"{phase.name}: {total} rows answered: {phase.about}", "phase")
    for name, level in phase.levels.items():
        _await_level(demo, monitor, name, level=level, windows=before.get(name, 0))
    for name, cause in phase.causes.items():
        said = _causes(monitor, name)
        demo.claim(f"the likeliest cause for {name} is {cause} (said: {', '.join(said)})", said[:1] == [cause])


def _await_level(demo: Demo, monitor: str, name: str, *, level: str, windows: int) -> None:
    """Waits for another window of a task than there were, and for its level."""
    _wait(demo, f"window of {name}", lambda: _windows(monitor).get(name, 0) > windows)
    try:
        _wait(demo, f"{name} {level}", lambda: _level(monitor, name) == level, seconds=60)
    except PlatformError:
        demo.claim(f"monitor: {name} is {_level(monitor, name)}, expected {level}", False)
    else:
        is_alert = level == "drifted"
        words = f"ALERT: {_said(monitor, name)}" if is_alert else f"monitor: {name} is {level}"
        demo.tell(words, "alert" if is_alert else "event")


def _take_turns(senders: list[Iterator[None]]) -> None:
    while senders:
        senders = [sender for sender in senders if next(sender, "ended") != "ended"]


def _send(demo: Demo, server: str, traffic: Any, tasks: Sequence[str]) -> Iterator[None]:
    """Asks for some tasks, a few texts a request, and sends the true labels back; yields after each request."""
    for start in range(0, len(traffic.texts), _TEXTS):
        part = range(start, min(start + _TEXTS, len(traffic.texts)))
        answer = demo.ask(server, [traffic.texts[i] for i in part], tasks)
        labels = [
            {"request_id": answer["id"], "row": row, "task": name, "label": values[i]}
            for name, values in traffic.labels.items()
            for row, i in enumerate(part)
            if values[i] is not None and (not tasks or name in tasks)
        ]
        if labels:
            post(f"{server}/v2/feedback", {"labels": labels})
        yield None


def _await_requests(demo: Demo, monitor: str, expect: Expected) -> list[dict[str, Any]]:
    """Waits for what the scenario says must be asked for, and checks it; returns the requests that have ended."""
    if expect.scope == "none":
        decisions = {name: task.get("decision") for name, task in get(f"{monitor}/drift.json")["tasks"].items()}
        for name in demo.scenario.phases[-1].levels:
            demo.tell(f"no training of {name}: {decisions[name]}", "request")
        demo.claim("no training was asked for, the champion stays", not _requests(monitor))
        return []
    found = _wait(demo, "a request to retrain", lambda: _requests(monitor))
    if expect.scope == "suite":
        demo.tell(f"request {found[-1]['id']}: {found[-1]['reason']}", "request")
        recommended = found[-1]["status"] == "recommended" and found[-1]["tasks"] == sorted(expect.tasks)
        demo.claim("the whole suite is recommended for training, and no task is trained alone",
                   recommended and len(found) == 1)  # fmt: skip
        return []
    demo.tell(f"request {found[-1]['id']}: train {', '.join(found[-1]['tasks'])}; the pipeline runs, traffic goes on",
              "request")  # fmt: skip
    ended: list[dict[str, Any]] = _wait(demo, "the end of the pipeline", lambda: _ended(monitor, expect))
    for request in ended:
        demo.tell(f"pipeline ended: {', '.join(request['tasks'])}: {request['status']}", "verdict")
    events = [event["text"] for event in get(f"{monitor}/drift.json")["events"] if "(" in event["text"]]
    for text in dict.fromkeys(event for event in events if event.startswith("request") and "HOLD" in event):
        demo.tell(f"monitor's page: {text}", "verdict")
    tasks = sorted({task for request in ended for task in request["tasks"]})
    demo.claim(f"asked for: {', '.join(tasks)}, and nothing else", tasks == sorted(expect.tasks))
    statuses = [request["status"] for request in ended]
    demo.claim(f"verdict: {', '.join(statuses)}", all(status in expect.verdicts for status in statuses))
    return ended


def _ended(monitor: str, expect: Expected) -> list[dict[str, Any]]:
    """All requests, once each task was asked for and each request has ended."""
    found = _requests(monitor)
    tasks = {task for request in found for task in request["tasks"]}
    is_over = all(request["status"] not in {"requested", "started"} for request in found)
    has_failed = any(request["status"] not in _ENDED_WELL for request in found)
    return found if is_over and (has_failed or tasks >= set(expect.tasks)) else []


def _measure(demo: Demo, params: Params, *, registry: Registry, champion: Bundle, rows: Rows) -> None:
    """What the update brought on rows that nobody labelled, and cost on known ones."""
    entry = registry.champion()
    assert entry is not None
    expect = demo.scenario.expect
    if "PROMOTE" not in expect.verdicts:
        demo.claim(f"champion {champion.id} stays", entry.bundle_id == champion.id)
        return
    updated = Bundle.open(registry.fetch(entry.bundle_id, demo.folder / "cache"))
    scores = outcome.measure_gains(
        demo.scenario, params, rows=rows, before=champion, after=updated, prepared=PREPARED
    )  # fmt: skip
    for name, found in scores.items():
        (old_new, new_new), (old_known, new_known) = found["new"], found["known"]
        said = (
            f"{name}, {found['metric']} on {outcome.HELD_OUT} other rows of the shift: {old_new:.3f} -> {new_new:.3f}"
        )
        demo.claim(f"{said}; on known rows: {old_known:.3f} -> {new_known:.3f}",
                   name not in expect.gains or new_new > old_new)  # fmt: skip
    same = outcome.identical_parts(champion, updated)
    wanted = {task.name for task in champion.tasks} - set(expect.tasks)
    added, size = outcome.added_bytes(registry, updated.id)
    demo.claim(f"bundle {updated.id}: files and golden outputs identical: {', '.join(same)}", wanted <= set(same))
    demo.tell(f"it added {added / 1e6:.1f} of {size / 1e6:.0f} MB to the registry")


def _write(demo: Demo, name: str) -> None:
    content = {"scenario": name, "about": demo.scenario.about, "events": demo.events, "claims": demo.claims,
               "requests": demo.requests}  # fmt: skip
    write_report(demo.folder / "timeline.json", {"schema_version": 1, **content})


def prepare_folder(params_file: Path, folder: Path, scenario: Scenario) -> Path:
    """Empties the folder and writes the params: a monitor that acts by itself, and windows as long as a phase."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    content = yaml.safe_load(params_file.read_text(encoding="utf-8"))
    rows = {"window_rows": scenario.window_rows, "audit_rows": scenario.window_rows}
    content["drift"] = {**content.get("drift", {}), **rows}
    content["trigger"] = {"by": "local", "violations": 1, "of_windows": 3}
    path = folder / "params.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    return path


@contextmanager
def _background(demo: Demo, server: str, rows: Rows) -> Iterator[None]:
    """Two requests a second, all the while: texts that no task finds new, each asked for its own tasks."""
    names = sorted(task.name for task in rows.tasks)
    sources = [rows.rest(name) for name in demo.scenario.background]
    asked = [(found.texts[i], found.tasks_of(i, names)) for found in sources for i in range(PROBES, len(found.texts))]
    random.Random(0).shuffle(asked)
    stop = threading.Event()

    def ask() -> None:
        for text, tasks in itertools.cycle(asked):
            if stop.wait(_PAUSE_SECONDS):
                return
            try:
                demo.ask(server, [text], tasks)
            except OSError as error:
                demo.tell(f"a request FAILED: {error}")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _wait(demo: Demo, what: str, is_there: Callable[[], Any], *, seconds: float = _LONGEST_SECONDS) -> Any:
    """Returns what `is_there` returns as soon as it is true."""
    stop = time.monotonic() + seconds
    while not (found := is_there()):
        if time.monotonic() > stop:
            raise PlatformError(f"no {what} within {seconds:.0f} s. The logs in {demo.folder} say why.")
        time.sleep(0.5)
    return found


def _tasks(monitor: str) -> dict[str, Any]:
    return dict((get(f"{monitor}/drift.json") or {}).get("tasks", {}))


def _windows(monitor: str) -> dict[str, int]:
    """Windows of traffic of each task so far."""
    return {name: task["windows"].get("traffic", 0) for name, task in _tasks(monitor).items()}


def _level(monitor: str, name: str) -> str:
    return str(_tasks(monitor).get(name, {}).get("level", "not judged yet"))


def _causes(monitor: str, name: str) -> list[str]:
    diagnosis = _tasks(monitor)[name]["diagnosis"] or {"causes": []}
    return [found["cause"] for found in diagnosis["causes"]]


def _said(monitor: str, name: str) -> str:
    cells = _tasks(monitor)[name]["cells"]
    kinds = [kind for kind, cell in cells.items() if cell["level"] == "drifted"]
    causes = _causes(monitor, name)
    cause = f"; likely cause: {', '.join(causes)}" if causes else ""
    return f"{name} drifted ({', '.join(kinds)}){cause}"


def _requests(monitor: str) -> list[dict[str, Any]]:
    """The requests so far, the oldest first."""
    return list(reversed((get(f"{monitor}/drift.json") or {}).get("requests", [])))


if __name__ == "__main__":
    raise SystemExit(main())
