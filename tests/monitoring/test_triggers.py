"""Requests to train again: when they come, how often, and what carries them out."""

import dataclasses
import http.server
import json
import subprocess
import sys
import threading
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from monitoring.attempt import processes_of
from monitoring.triggers import SECRET, SIGNATURE, Carrier, Local, Place, open_trigger, sign
from mtlops.bundle import Bundle
from mtlops.errors import UsageError
from mtlops.params import Drift, Params, parse_params
from mtlops.registry import Registry
from mtlops.watch.engine import Watch
from mtlops.watch.log import PredictionLog
from mtlops.watch.references import References
from mtlops.watch.requests import all_requests, request_training, set_status
from mtlops.watch.state import State
from tests.monitoring.daemons import wait_for
from tests.small_bundles import make_bundle
from tests.watch.logs import MOOD, STARS, TASKS, World, Writer

SUITE = "suite: {name: small, tasks: {mood: {kind: binary, source: a.csv, label: m, classes: [a, b]}}}\n"


def params(**trigger: Any) -> Params:
    return parse_params(SUITE + f"trigger: {json.dumps({'kinds': ['input'], **trigger})}")


class Drifting:
    """A log in which mood drifts, and the watch over it."""

    def __init__(self, bundle: Bundle, folder: Path) -> None:
        self.log, self.bundle = folder / "log", bundle
        self.writer = Writer(self.log, bundle.id, per_day=200.0)
        self.references = References.of_bundle(bundle.folder)
        self.state = State(":memory:")
        self.watch = Watch(Drift(window_rows=100), self.references, self.state)

    def day(
        self, given: Params, *, tasks: Any = (MOOD,), shift: float = 2.0, change: Any = None, sources: Any = None
    ) -> dict[str, Any] | None:
        """Two more windows, and what is asked for after them."""
        self.writer.traffic(World(1, shift=shift), 200, tasks=tasks, change=change)
        reader = PredictionLog(str(self.log))
        self.watch.catch_up(reader, listed=reader.files())
        return self.ask(given, sources=sources)

    def ask(self, given: Params, *, sources: Any = None) -> dict[str, Any] | None:
        """What is asked for now."""
        with self.state.transaction():
            return request_training(self.state, self.references, trigger=given.trigger, log="log", sources=sources)

    def why(self) -> str:
        return self.state.fact("decisions")["mood"]


@pytest.fixture
def drifting(bundle: Bundle, tmp_path: Path) -> Drifting:
    return Drifting(bundle, tmp_path)


def test_a_request_names_tasks_window_evidence_and_bundle(drifting: Drifting) -> None:
    request = drifting.day(params(by="local"), tasks=(MOOD, STARS))
    assert request is not None and request["tasks"] == ["mood", "stars"]
    assert request["bundle"] == drifting.bundle.id and request["data_window"]["from"] == "2026-03-01T00:00:00Z"
    assert request["reason"] == "mood: covariate shift; stars: covariate shift"
    assert {cell["kind"] for cell in request["evidence"]["mood"]["cells"]} == {"input", "embedding"}
    assert len(request["windows"]) == 4


def test_tasks_of_other_sources_are_asked_for_one_after_the_other(drifting: Drifting) -> None:
    given, sources = params(by="local"), {"mood": "a.csv", "stars": "b.csv"}
    first = drifting.day(given, tasks=(MOOD, STARS), sources=sources)
    assert first is not None and first["tasks"] == ["mood"] and set(first["evidence"]) == {"mood"}
    assert drifting.state.fact("decisions")["stars"].endswith("asked for next, its rows come from another source")
    second = drifting.ask(given, sources=sources)
    assert second is not None and second["tasks"] == ["stars"] and second["id"] != first["id"]
    assert drifting.ask(given, sources=sources) is None


def test_no_request_without_drift_or_before_enough_windows(drifting: Drifting) -> None:
    assert drifting.day(params(violations=3), shift=0.0) is None and drifting.why() == "no alarm that lasts"
    assert drifting.day(params(violations=3)) is None and drifting.why() == "no alarm that lasts"
    assert drifting.day(params(violations=3)) is not None


def test_one_at_a_time_then_a_cool_down_then_a_budget(drifting: Drifting) -> None:
    given = params(by="local", cool_down_hours=72, max_per_month=2)
    first = drifting.day(given)
    assert first is not None
    assert drifting.day(given) is None and drifting.why().endswith("a request is under way")
    set_status(drifting.state, first, "HOLD")
    assert drifting.day(given) is None and "cooling down" in drifting.why()
    drifting.writer.now = drifting.writer.now.replace(month=3, day=9)
    second = drifting.day(given)
    assert second is not None and second["id"] != first["id"]
    set_status(drifting.state, second, "failed")
    drifting.writer.now = drifting.writer.now.replace(month=3, day=20)
    assert drifting.day(given) is None and "the budget of 2 requests a month is spent" in drifting.why()
    assert drifting.writer.now.tzinfo is UTC


def test_without_a_trigger_an_alarm_is_reported_once(drifting: Drifting) -> None:
    given = params(cool_down_hours=0)
    assert drifting.day(given) is not None
    assert drifting.day(given) is None and "this alarm was reported" in drifting.why()
    assert [request["status"] for request in all_requests(drifting.state)] == ["recorded"]


def test_a_data_fault_asks_for_no_training(drifting: Drifting) -> None:
    def spoil(entries: list[dict[str, Any]]) -> None:
        for entry in entries[::3]:
            entry["probabilities"] = [0.1]

    assert drifting.day(params(by="local", violations=1), change=spoil) is None
    assert "retraining will not help" in drifting.why()


def test_local_runs_a_command_without_a_shell_and_keeps_its_verdict(drifting: Drifting, tmp_path: Path) -> None:
    program = "import json, sys; print(json.dumps({'verdict': 'PROMOTE', 'arguments': sys.argv[1:]}))"
    place = Place(tmp_path / "params.yaml", "registry; rm -rf", tmp_path / "requests",
                  (sys.executable, "-c", program, "{tasks}", "{registry}", "{request}"))  # fmt: skip
    given = params(by="local")
    request = drifting.day(given)
    assert request is not None
    outcomes = Carrier(open_trigger(given, place), place, params=given).finish(drifting.state)
    assert [outcome.status for outcome in outcomes] == ["PROMOTE"]
    assert json.loads((place.requests / f"{request['id']}.json").read_text()) == request
    said = json.loads((place.requests / f"{request['id']}.log").read_text())
    assert said["arguments"] == ["mood", "registry; rm -rf", str(place.requests / f"{request['id']}.json")]
    counts = drifting.state.counts()
    assert counts["retrain.mood.requested"] == counts["retrain.mood.started"] == counts["retrain.mood.PROMOTE"] == 1
    assert Carrier(open_trigger(given, place), place, params=given).finish(drifting.state) == []


@pytest.mark.parametrize("command, note", [(("false",), "exit 1"), (("no-such-program-here",), "No such file")])
def test_a_command_that_fails_is_recorded(
    drifting: Drifting, tmp_path: Path, command: tuple[str, ...], note: str
) -> None:
    given = params(by="local")
    place = Place(tmp_path / "params.yaml", "", tmp_path / "requests", command)
    drifting.day(given)
    outcomes = Carrier(open_trigger(given, place), place, params=given).finish(drifting.state)
    assert outcomes[0].status == "failed" and note in outcomes[0].note


def test_what_a_killed_monitor_had_started_is_lost_where_nobody_knows(drifting: Drifting, tmp_path: Path) -> None:
    request = drifting.day(params(by="local"))
    assert request is not None
    set_status(drifting.state, request, "started")
    Carrier(None, Place(tmp_path, "", tmp_path), params=params()).step(drifting.state)
    assert [found["status"] for found in all_requests(drifting.state)] == ["lost"]


def counting(folder: Path, program: str) -> Place:
    """A place whose command notes each of its starts and then runs a program."""
    note = f"import json, os, pathlib, sys, time\nwith open({str(folder / 'starts')!r}, 'a') as f: f.write('x')\n"
    return Place(folder / "params.yaml", "", folder / "requests", (sys.executable, "-c", note + program))


def test_a_monitor_that_comes_back_waits_for_what_is_still_at_work(drifting: Drifting, tmp_path: Path) -> None:
    given, go = params(by="local"), tmp_path / "go"
    place = counting(tmp_path, f"while not pathlib.Path({str(go)!r}).exists(): time.sleep(0.05)\n"
                               "print(json.dumps({'verdict': 'HOLD'}))")  # fmt: skip
    request = drifting.day(given)
    assert request is not None
    first = Carrier(open_trigger(given, place), place, params=given)
    first.step(drifting.state)
    wait_for((tmp_path / "starts").exists)
    assert processes_of(request["id"])
    second = Carrier(open_trigger(given, place), place, params=given)  # the first one's process was killed, say
    second.step(drifting.state)
    go.touch()
    assert [outcome.status for outcome in second.finish(drifting.state)] == ["HOLD"]
    assert (tmp_path / "starts").read_text() == "x"
    assert [found["status"] for found in all_requests(drifting.state)] == ["HOLD"]


def test_a_killed_command_is_tried_again_and_then_given_up(
    drifting: Drifting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("monitoring.triggers._PAUSE_SECONDS", 0.01)
    given = params(by="local")
    place = counting(tmp_path, "os.kill(os.getpid(), 9)")
    drifting.day(given)
    outcomes = Carrier(open_trigger(given, place), place, params=given).finish(drifting.state)
    assert (outcomes[0].status, (tmp_path / "starts").read_text()) == ("failed", "x" * 8)
    assert "exit -9, attempt 8" in outcomes[0].note


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), 9)", "sys.exit(5)"])
def test_more_kills_of_a_run_or_its_steps_are_survived_than_a_chaos_run_has(
    drifting: Drifting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    """A pipeline whose step was killed exits with 5: the platform failed."""
    monkeypatch.setattr("monitoring.triggers._PAUSE_SECONDS", 0.01)
    given, starts = params(by="local"), tmp_path / "starts"
    place = counting(tmp_path, f"if len(open({str(starts)!r}).read()) < 5: {end}\n"
                               "print(json.dumps({'verdict': 'PROMOTE'}))")  # fmt: skip
    drifting.day(given)
    outcomes = Carrier(open_trigger(given, place), place, params=given).finish(drifting.state)
    assert (outcomes[0].status, starts.read_text()) == ("PROMOTE", "xxxxx")


def test_what_another_run_has_trained_meanwhile_is_not_trained_again(drifting: Drifting, tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    old, new = (make_bundle(tmp_path / f"b{seed}", tasks={"mood": seed}) for seed in (0, 1))
    for seed, before in ((0, None), (1, old)):
        registry.publish(tmp_path / f"b{seed}")
        registry.promote((old, new)[seed], expect=before, by="test", reason="a schedule")
    place = dataclasses.replace(counting(tmp_path, "pass"), registry=registry.url)
    request = drifting.day(params(by="local"))
    assert request is not None
    local = Local(params(by="local"), place)
    assert local({**request, "bundle": old}).status == "superseded"
    assert local({**request, "bundle": new}).status == "succeeded"
    assert local({**request, "id": "a schedule"[:10], "bundle": old}).status == "superseded"


def test_a_schedule_at_work_is_waited_for_and_gives_the_only_run(drifting: Drifting, tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    old, new = (make_bundle(tmp_path / f"b{seed}", tasks={"mood": seed}) for seed in (0, 1))
    registry.publish(tmp_path / "b0")
    registry.promote(old, expect=None, by="test", reason="the first")
    program = (
        "import sys, time; from pathlib import Path; from mtlops.registry import Registry\n"
        "registry, folder, old, new = Registry(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]\n"
        "with registry.retraining(['mood']):\n"
        "    (folder / 'at-work').touch(); time.sleep(1.5)\n"
        "    registry.publish(folder / 'b1'); registry.promote(new, expect=old, by='cron', reason='the schedule')\n"
    )
    schedule = subprocess.Popen([sys.executable, "-c", program, registry.url, str(tmp_path), old, new])
    wait_for((tmp_path / "at-work").exists)
    request = drifting.day(params(by="local"))
    assert request is not None
    place = dataclasses.replace(counting(tmp_path, "pass"), registry=registry.url)
    assert Local(params(by="local"), place)({**request, "bundle": old}).status == "superseded"
    assert schedule.wait(timeout=30) == 0
    assert not (tmp_path / "starts").exists() and len(registry.history()) == 2


def test_a_promotion_by_a_run_that_was_killed_afterwards_counts(drifting: Drifting, tmp_path: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    bundle = make_bundle(tmp_path / "b")
    request = drifting.day(params(by="local"))
    assert request is not None
    registry.publish(tmp_path / "b")
    registry.promote(bundle, expect=None, by="test", reason=f"{request['id']}: mood drifted")
    place = dataclasses.replace(counting(tmp_path, "pass"), registry=registry.url)
    assert Local(params(by="local"), place)(request).status == "PROMOTE"
    assert not (tmp_path / "starts").exists()


def surer(entries: list[dict[str, Any]]) -> None:
    """Answers of mood and stars that are always the same."""
    for entry in entries:
        if entry["task"] == "mood":
            entry |= {"label": ["good"], "probabilities": [0.02, 0.03, 0.95]}
        if entry["task"] == "stars":
            entry["value"] = 4.9


def test_when_the_texts_of_all_tasks_moved_the_whole_suite_is_recommended(drifting: Drifting) -> None:
    given = params(by="local", kinds=["prediction"], cool_down_hours=72)
    request = drifting.day(given, tasks=TASKS, change=surer)
    assert request is not None
    assert (request["scope"], request["tasks"]) == ("suite", ["mood", "stars", "tags"])
    assert request["reason"].startswith("the texts of all tasks moved")
    assert [found["status"] for found in all_requests(drifting.state)] == ["recommended"]
    assert "train the whole suite" in drifting.why()
    assert drifting.day(given, tasks=TASKS, change=surer) is None  # and nothing is asked for beside it


def test_as_long_as_the_texts_are_as_before_the_drifting_tasks_alone_are_trained(drifting: Drifting) -> None:
    request = drifting.day(params(by="local", kinds=["prediction"]), tasks=TASKS, shift=0.0, change=surer)
    assert request is not None and (request["scope"], request["tasks"]) == ("tasks", ["mood", "stars"])


def test_a_task_waits_for_the_verdict_on_the_texts_of_all_tasks(drifting: Drifting) -> None:
    given = params(by="local", kinds=["prediction"], violations=1)
    drifting.writer.traffic(World(1), 40, tasks=[MOOD], change=surer)
    drifting.writer.traffic(World(1), 60, tasks=TASKS, change=surer)
    reader = PredictionLog(str(drifting.log))
    drifting.watch.catch_up(reader, listed=reader.files())
    with drifting.state.transaction():
        assert request_training(drifting.state, drifting.references, trigger=given.trigger, log="log") is None
    assert "waits for the window of the texts that every task was asked for" in drifting.why()


def test_texts_that_the_tokenizer_does_not_know_are_a_data_fault(drifting: Drifting) -> None:
    def garble(entries: list[dict[str, Any]]) -> None:
        for entry in entries[::3]:
            entry["statistics"] = [*entry["statistics"], ("unknown_token_share", 0.96)]

    assert drifting.day(params(by="local", violations=1), shift=0.0, change=garble) is None
    assert "retraining will not help" in drifting.why() and "the tokenizer knows less than half" in drifting.why()


def test_webhook_posts_a_signed_cloud_event(
    drifting: Drifting, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    posts: list[tuple[dict[str, str], bytes]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            posts.append((dict(self.headers), self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(202)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    given = params(by="webhook", webhook=f"http://127.0.0.1:{server.server_address[1]}/hook")
    place = Place(tmp_path / "params.yaml", "", tmp_path / "requests")
    monkeypatch.setenv(SECRET, "shared")
    request = drifting.day(given)
    assert request is not None
    outcomes = Carrier(open_trigger(given, place), place, params=given).finish(drifting.state)
    server.shutdown()
    server.server_close()
    assert [outcome.status for outcome in outcomes] == ["sent"]
    headers, body = posts[0]
    lower = {name.lower(): value for name, value in headers.items()}
    assert lower[SIGNATURE.lower()] == sign(body, b"shared") != sign(body, b"other")
    event = json.loads(body)
    assert event["id"] == request["id"] and event["type"] == "org.mtlops.retrain.requested"
    assert event["data"]["tasks"] == ["mood"] and lower["content-type"].startswith("application/cloudevents+json")


def test_webhook_without_a_secret_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SECRET, raising=False)
    with pytest.raises(UsageError, match="needs a shared secret in MTLOPS_WEBHOOK_SECRET"):
        open_trigger(params(by="webhook", webhook="http://x"), Place(tmp_path, "", tmp_path))


def test_passes_go_on_while_a_command_runs(drifting: Drifting, tmp_path: Path) -> None:
    given = params(by="local")
    flag = tmp_path / "go"
    program = f"import pathlib, time\nwhile not pathlib.Path({str(flag)!r}).exists(): time.sleep(0.05)"
    place = Place(tmp_path / "params.yaml", "", tmp_path / "requests", (sys.executable, "-c", program))
    carrier = Carrier(open_trigger(given, place), place, params=given)
    drifting.day(given)
    assert carrier.step(drifting.state) is None
    assert [found["status"] for found in all_requests(drifting.state)] == ["started"]
    assert drifting.day(given) is None and carrier.step(drifting.state) is None
    flag.touch()
    assert [outcome.status for outcome in carrier.finish(drifting.state)] == ["succeeded"]


def test_labelled_rows_of_the_log_are_handed_over_in_the_suites_columns(drifting: Drifting, tmp_path: Path) -> None:
    def write(entries: list[dict[str, Any]]) -> None:
        for number, entry in enumerate(entries):
            entry["text"] = f"text {number}"

    given = parse_params(
        SUITE.replace("tasks:", "inputs: {text: body}, tasks:") + "trigger: {by: local, kinds: [input]}"
    )
    drifting.writer.traffic(World(1, shift=2.0), 10, tasks=[MOOD], change=write)
    drifting.writer.feedback()
    request = drifting.day(given)
    place = Place(tmp_path / "params.yaml", "", tmp_path / "requests",
                  (sys.executable, "-c", "import sys; print(open(sys.argv[1]).read())", "{window}"))  # fmt: skip
    outcomes = Carrier(open_trigger(given, place), place, params=given).finish(drifting.state)
    assert outcomes[0].status == "succeeded"
    rows = [json.loads(line) for line in (place.requests / f"{request['id']}.log").read_text().strip().splitlines()]
    assert len(rows) == 10 and rows[3]["body"] == "text 3" and set(rows[0]) == {"body", "m"}
    assert all(row["m"] in MOOD.classes for row in rows)


def test_the_pipelines_command_needs_labelled_rows(drifting: Drifting, tmp_path: Path) -> None:
    given = params(by="local")
    drifting.day(given)
    place = Place(tmp_path / "params.yaml", "registry", tmp_path / "requests")
    outcomes = Carrier(open_trigger(given, place), place, params=given).finish(drifting.state)
    assert outcomes[0].status == "failed" and outcomes[0].note.startswith("no labelled rows: send labels")
