"""Requests to train again: when they come, how often, and what carries them out."""

import http.server
import json
import sys
import threading
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from monitoring.triggers import SECRET, SIGNATURE, Carrier, Place, open_trigger, sign
from mtlops.bundle import Bundle
from mtlops.errors import UsageError
from mtlops.params import Drift, Params, parse_params
from mtlops.watch.engine import Watch
from mtlops.watch.log import PredictionLog
from mtlops.watch.references import References
from mtlops.watch.requests import all_requests, request_training, set_status
from mtlops.watch.state import State
from tests.watch.logs import MOOD, STARS, World, Writer

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
        self, given: Params, *, tasks: Any = (MOOD,), shift: float = 2.0, change: Any = None
    ) -> dict[str, Any] | None:
        """Two more windows, and what is asked for after them."""
        self.writer.traffic(World(1, shift=shift), 200, tasks=tasks, change=change)
        reader = PredictionLog(str(self.log))
        self.watch.catch_up(reader, listed=reader.files())
        with self.state.transaction():
            return request_training(self.state, self.references, trigger=given.trigger, log="log")

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


def test_what_a_killed_monitor_had_started_is_lost_not_repeated(drifting: Drifting, tmp_path: Path) -> None:
    request = drifting.day(params(by="local"))
    assert request is not None
    set_status(drifting.state, request, "started")
    Carrier(None, Place(tmp_path, "", tmp_path), params=params()).step(drifting.state)
    assert [found["status"] for found in all_requests(drifting.state)] == ["lost"]


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
