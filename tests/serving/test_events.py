"""Answers as CloudEvents: what a receiver reads, and what happens when it does not."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from cloudevents.core.bindings.http import HTTPMessage, from_http_event

from mtlops.errors import UsageError
from mtlops.serving.events import REQUEST, RESPONSE, EventSender
from tests.serving.processes import Server, listening, serving
from tests.tiny_suite import Workspace

TEXTS = ["a film", "the law & the court"]


@contextmanager
def receiver(status: int = 202) -> Iterator[tuple[str, list[Any]]]:
    """A URL that takes events, and the events that it took."""
    found: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.append(from_http_event(HTTPMessage(dict(self.headers.items()), body)))
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with listening(Handler) as address:
        yield f"{address}/", found


def asked(server: Server) -> str:
    """Asks over the protocol, and returns the id."""
    body = {"id": "q1", "inputs": [{"name": "text", "datatype": "BYTES", "shape": [2], "data": TEXTS}]}
    status, answer = server.post("/v2/models/tiny/infer", {**body, "parameters": {"tasks": "mood"}})
    assert status == 200, answer
    return json.dumps(answer["outputs"])


@pytest.mark.e2e
@pytest.mark.parametrize("with_text", [False, True])
def test_answers_are_sent_and_texts_only_when_asked_for(finished: Workspace, tmp_path: Path, with_text: bool) -> None:
    with receiver() as (url, events):
        more = ("--log-text",) if with_text else ()
        with serving(tmp_path, "--bundle", str(finished.bundle), "--log-events", url, *more) as server:
            outputs = asked(server)
            assert server.stop() == 0
    assert [event.get_type() for event in events] == [REQUEST, RESPONSE][not with_text :]
    assert {event.get_id() for event in events} == {"q1"}
    sent = events[-1].get_data()
    assert json.loads(outputs) == sent["outputs"] and sent["model_name"] == "tiny"
    assert events[-1].get_extension("inferenceservicename") == "tiny"
    if with_text:
        assert events[0].get_data()["inputs"][0]["data"] == TEXTS
    else:
        assert TEXTS[1] not in json.dumps(sent)


@pytest.mark.e2e
def test_a_receiver_that_refuses_costs_no_answer(finished: Workspace, tmp_path: Path) -> None:
    with (
        receiver(status=500) as (url, events),
        serving(tmp_path, "--bundle", str(finished.bundle), "--log-events", url) as server,
    ):
        for _ in range(3):
            asked(server)
        while server.metric("mtlops_events_dropped_total") < 3:
            assert server.process.poll() is None
        assert len(events) == 3 and server.stop() == 0
    assert "events: " in server.errors.read_text()


def test_a_wrong_url_is_told() -> None:
    with pytest.raises(UsageError, match="--log-events ftp://x: must be a URL that begins with http://"):
        EventSender("ftp://x", with_requests=False, dropped=lambda rows: None)
