"""Spans as a collector gets them, over OTLP/HTTP from a real server."""

import gzip
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
import tritonclient.grpc as triton
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from mtlops.errors import UsageError
from mtlops.serving import tracing
from mtlops.serving.tracing import Tracing
from tests.serving.processes import listening, serving
from tests.serving.test_server import text_input
from tests.tiny_suite import Workspace

TRACE, CALLER = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = {"traceparent": f"00-{TRACE}-{CALLER}-01"}


@contextmanager
def collector() -> Iterator[tuple[str, list[Any]]]:
    """The URL of a collector, and the spans that it took, each with the name of its service."""
    found: list[Any] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.headers.get("content-encoding") == "gzip":
                body = gzip.decompress(body)
            assert self.path == "/v1/traces"
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                facts = {fact.key: fact.value.string_value for fact in resource.resource.attributes}
                spans = [span for scope in resource.scope_spans for span in scope.spans]
                found.extend((facts["service.name"], span) for span in spans)
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with listening(Handler) as address:
        yield address, found


@pytest.mark.e2e
@pytest.mark.parametrize("by", ["option", "environment"])
def test_a_request_its_queue_and_its_pass_are_spans_of_the_caller_s_trace(
    finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    with collector() as (url, found):
        if by == "environment":
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
            monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
        options = ("--trace-endpoint", url) if by == "option" else ()
        with serving(tmp_path, "--bundle", str(finished.bundle), *options) as server:
            status, _ = server.post("/predict", {"text": ["a film"], "tasks": ["mood"], "id": "q1"}, headers=PARENT)
            assert status == 200
            assert server.post("/predict", {"text": []}, headers=PARENT)[0] == 400
            client = triton.InferenceServerClient(f"127.0.0.1:{server.ports['grpc']}")
            tensor, values = text_input(triton, ["a film"])
            tensor.set_data_from_numpy(values)
            client.infer("tiny", [tensor], headers=PARENT)
            client.close()
            server.predict("the law")
            assert server.stop() == 0
    assert {service for service, _ in found} == {"ours" if by == "environment" else "mtlops"}
    spans = [span for _, span in found]
    requests = [span for span in spans if span.name == "infer"]
    of_caller = [span for span in requests if span.trace_id.hex() == TRACE]
    assert len(requests) == 4 and len(of_caller) == 3
    assert all(span.parent_span_id.hex() == CALLER for span in of_caller)
    (asked,) = [span for span in of_caller if any(a.value.string_value == "q1" for a in span.attributes)]
    (refused,) = [span for span in of_caller if span.status.code == 2]
    assert {a.key: a.value.int_value for a in refused.attributes} == {"mtlops.refused": 400}
    queue, computed = (
        next(s for s in spans if s.name == name and s.parent_span_id == asked.span_id) for name in ("queue", "pass")
    )
    times = [asked.start_time_unix_nano, queue.start_time_unix_nano, queue.end_time_unix_nano,
             computed.start_time_unix_nano, computed.end_time_unix_nano, asked.end_time_unix_nano]  # fmt: skip
    slack = 1_000_000  # the wall clock and the monotonic one are read one after the other
    assert all(later - earlier > -slack for earlier, later in itertools.pairwise(times))
    assert not [span for span in spans if span.parent_span_id == refused.span_id]


@pytest.mark.e2e
def test_a_collector_that_is_not_there_costs_no_answer(finished: Workspace, tmp_path: Path) -> None:
    options = ("--bundle", str(finished.bundle), "--trace-endpoint", "http://127.0.0.1:9", "--drain-seconds", "0")
    with serving(tmp_path, *options) as server:
        assert server.predict("a film")
        assert server.stop() == 0


def test_a_wrong_endpoint_is_told() -> None:
    with pytest.raises(UsageError, match="must be a URL"):
        Tracing("localhost:4318")


@pytest.mark.parametrize(
    "variables, expected",
    [
        ({}, False),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://a"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://a", "OTEL_SDK_DISABLED": "TRUE"}, False),
    ],
)
def test_the_standard_variables_switch_it_on_and_off(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: bool
) -> None:
    for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert tracing.is_configured() == expected
