"""Events of another server become rows of the prediction log: joined, bounded, refused with a reason."""

import asyncio
import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cloudevents.core.bindings.http import to_binary_event, to_structured_event

from mtlops.bundle import Bundle
from mtlops.data.tokenisation import pad
from mtlops.serving import incoming
from mtlops.serving.asgi import Request
from mtlops.serving.events import REQUEST, RESPONSE
from mtlops.serving.incoming import Event, Incoming
from mtlops.serving.limits import Limits
from mtlops.serving.log_rows import Record
from mtlops.serving.refusal import Refusal
from mtlops.serving.runtime import Runtime
from tests.serving.processes import serving
from tests.serving.test_events import TEXTS, receiver
from tests.serving.test_server import read_log
from tests.tiny_suite import Workspace

SAME = ("task", "label", "probabilities", "value", "statistics", "text", "row", "request_id")


@pytest.fixture(scope="module")
def runtime(finished: Workspace) -> Runtime:
    return Runtime(Bundle.open(finished.bundle), threads=1)


class Taken:
    """What an `Incoming` handed on."""

    def __init__(self, runtime: Runtime) -> None:
        self.records: list[Record] = []
        self.outcomes: list[str] = []
        self.incoming = Incoming(lambda: runtime, Limits(), keep=self._keep, count=self.outcomes.append)

    def _keep(self, record: Record) -> bool:
        self.records.append(record)
        return True

    def take(self, *events: Event, then_wait: float = 0.0) -> None:
        async def all_of_them() -> None:
            for event in events:
                self.incoming.take(event)
            await asyncio.sleep(then_wait)
            self.incoming.close()

        asyncio.run(all_of_them())


def body(**parts: Any) -> bytes:
    return json.dumps(parts).encode()


def tensor(name: str, datatype: str, values: Any) -> dict[str, Any]:
    values = np.asarray(values)
    return {"name": name, "datatype": datatype, "shape": list(values.shape), "data": values.reshape(-1).tolist()}


def request(event_id: str = "a", texts: list[str] = TEXTS) -> Event:
    return Event(event_id, False, body(inputs=[tensor("text", "BYTES", texts)]))


def answer(runtime: Runtime, event_id: str = "a", *, version: str = "") -> Event:
    mood = runtime.predict(TEXTS, tasks=["mood"])["mood"]
    names = [runtime.tasks[0].classes[i] for i in mood.labels]
    outputs = [tensor("mood.label", "BYTES", names), tensor("mood.probabilities", "FP32", mood.probabilities)]
    return Event(event_id, True, body(outputs=outputs, model_version=version))


def http(headers: dict[str, str], content: bytes) -> Event:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": content}

    encoded = {name.encode(): value.encode() for name, value in headers.items()}
    return incoming.read_event(Request("POST", "/v2/events", encoded, receive), content)


@pytest.mark.e2e
@pytest.mark.parametrize("mode", ["binary", "structured"])
def test_events_of_a_server_give_another_the_same_log(finished: Workspace, tmp_path: Path, mode: str) -> None:
    """A real server sends its own events; posted to a second one, its log has the first one's rows."""
    bundle = ("--bundle", str(finished.bundle), "--drain-seconds", "0", "--log-text")
    with receiver() as (url, events):
        options = (*bundle, "--log", str(tmp_path / "first"), "--log-events", url, "--log-embeddings", "0")
        with serving(tmp_path / "a", *options) as server:
            for number in range(3):
                server.predict(*TEXTS, id=f"q{number}")
            assert server.stop() == 0
    token = tmp_path / "token"
    token.write_text("secret")
    options = (*bundle, "--log", str(tmp_path / "second"), "--token-file", str(token))
    with serving(tmp_path / "b", *options) as server:
        outcomes = []
        for event in events[1::2] + events[::2]:  # answers come first here
            message = (to_binary_event if mode == "binary" else to_structured_event)(event)
            content = message.body if isinstance(message.body, bytes) else message.body.encode()
            assert server.post("/v2/events", content, headers=message.headers)[0] == 401
            headers = {**message.headers, "Authorization": "Bearer secret"}
            status, told = server.post("/v2/events", content, headers=headers)
            assert status == 202, told
            outcomes.append(told["outcome"])
        assert outcomes == ["waiting"] * 3 + ["logged"] * 3
        assert server.metric('mtlops_events_taken_total{outcome="logged"}') == 3
        assert server.stop() == 0
    first, second = (_sorted(read_log(tmp_path / name, "predictions").to_pylist()) for name in ("first", "second"))
    assert len(first) == len(second) == 3 * len(TEXTS) * 5
    for one, other in zip(first, second, strict=True):
        assert {name: one[name] for name in SAME} == {name: other[name] for name in SAME}


def _sorted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["request_id"], row["row"], row["task"]))


def test_logits_of_the_graph_are_decoded_with_the_pairs_of_their_request(runtime: Runtime) -> None:
    ids, mask = pad(runtime.tokenizer.ids(TEXTS))
    rows, tasks = [0, 0, 1, 1], [4, 2, 4, 2]
    logits, _ = runtime.compute(runtime.tokenizer.ids(TEXTS), rows, tasks)
    inputs = [tensor("input_ids", "INT64", ids), tensor("attention_mask", "INT64", mask),
              tensor("pair_row", "INT64", rows), tensor("pair_task", "INT64", tasks)]  # fmt: skip
    outputs = [tensor("logits", "FP32", logits)]
    taken = Taken(runtime)
    taken.take(Event("a", False, body(inputs=inputs)), Event("a", True, body(outputs=outputs)))
    (record,) = taken.records
    assert taken.outcomes == ["logged"] and record.texts is None and record.num_rows == 4
    expected = runtime.predict(TEXTS)
    for position in (4, 2):
        name = runtime.tasks[position].name
        for ours, theirs in zip(vars(record.outputs[name]).values(), vars(expected[name]).values(), strict=True):
            assert (ours is None) == (theirs is None) and (ours is None or np.allclose(ours, theirs, atol=1e-4))


def test_an_answer_that_waited_in_vain_is_logged_alone_and_a_request_is_counted(
    runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incoming, "WAITING_SECONDS", 0.01)
    taken = Taken(runtime)
    taken.take(answer(runtime, "a"), request("b"), then_wait=0.2)
    assert sorted(taken.outcomes) == ["alone", "unmatched"]
    (record,) = taken.records
    assert record.request_id == "a" and record.texts is None


def test_too_much_that_waits_makes_the_oldest_go(runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incoming, "WAITING_BYTES", 3 * len(request().body))
    taken = Taken(runtime)
    taken.take(*(request(f"{i}") for i in range(5)), answer(runtime, "4"))
    assert taken.outcomes == ["unmatched", "unmatched", "logged", "unmatched", "unmatched"]


@pytest.mark.parametrize(
    "event, reason",
    [
        (Event("a", True, b"{"), "is not JSON"),
        (Event("a", True, body(predictions=[1])), "'outputs' must be a list"),
        (Event("a", True, body(outputs=[{"name": "mood.probabilities", "shape": [1], "data": ["x"]}])), "not the num"),
        (Event("a", False, body(inputs=[])), "inputs: must be a list"),
        (request("a", ["x" * 200_000]), "200000 characters"),
    ],
)
def test_what_cannot_be_read_is_refused_at_once(runtime: Runtime, event: Event, reason: str) -> None:
    taken = Taken(runtime)
    with pytest.raises(Refusal, match=reason):
        taken.take(event)
    assert taken.outcomes == ["refused"] and not taken.records


MOOD = tensor("mood.label", "BYTES", ["bad"])


@pytest.mark.parametrize(
    "outputs, reason",
    [
        ([tensor("other", "FP32", [1.0])], "none is of a task that is served here"),
        ([tensor("mood.label", "BYTES", ["bad", "good"])], "both label .* and probabilities"),
        ([tensor("mood.label", "BYTES", ["ugly"]), tensor("mood.probabilities", "FP32", [[0.5, 0.5]])], "'ugly'"),
        ([MOOD, tensor("mood.probabilities", "FP32", [[0.5, 0.5]])], "number of rows"),
        ([MOOD, tensor("mood.probabilities", "FP32", [[1.0]])], r"FP32 \[N, 2\]"),
        ([tensor("stars.value", "FP32", [[1.0], [2.0]])], r"FP32 \[N\]"),
        ([tensor("logits", "FP32", [[1.0, 2.0]])], "pair_row and pair_task"),
    ],
)
def test_an_answer_that_does_not_fit_is_refused(runtime: Runtime, outputs: list[Any], reason: str) -> None:
    taken = Taken(runtime)
    with pytest.raises(Refusal, match=reason):
        taken.take(request(), Event("a", True, body(outputs=outputs)))
    assert taken.outcomes == ["refused"] and not taken.records


def test_an_answer_of_another_bundle_is_refused(runtime: Runtime) -> None:
    taken = Taken(runtime)
    with pytest.raises(Refusal, match="bundle '0000000000000000' answered"):
        taken.take(request(), answer(runtime, version="0" * 16))
    taken.take(request(), answer(runtime, version=runtime.bundle_id))
    assert taken.outcomes == ["refused", "logged"]


@pytest.mark.parametrize(
    "headers, content, reason",
    [
        ({}, b"{}", "type 'None'"),
        ({"ce-type": "x", "ce-id": "1"}, b"{}", "type 'x'"),
        ({"ce-type": REQUEST}, b"{}", "id: the event has none"),
        ({"content-type": "application/cloudevents+json"}, b"[]", "must be a CloudEvent"),
        ({"content-type": "application/cloudevents+json"}, body(type=RESPONSE, id="1", data_base64="?"), "not base64"),
        ({"content-type": "application/cloudevents-batch+json"}, b"[]", "one at a time"),
    ],
)
def test_what_is_no_event_is_refused(headers: dict[str, str], content: bytes, reason: str) -> None:
    with pytest.raises(Refusal, match=reason):
        http(headers, content)


def test_data_may_be_base64() -> None:
    content = body(type=REQUEST, id="1", data_base64=base64.b64encode(request().body).decode())
    assert http({"content-type": "application/cloudevents+json; charset=utf-8"}, content) == request("1")
