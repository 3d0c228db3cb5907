"""The REST interface without a socket: what is valid is answered, what is not gets a reason."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mtlops.bundle import Bundle
from mtlops.serving.batching import Batcher
from mtlops.serving.limits import Limits
from mtlops.serving.metrics import Metrics
from mtlops.serving.rest import Rest
from mtlops.serving.runtime import Runtime
from mtlops.serving.service import Service, Serving
from tests.serving.malformed import Reply, ask, run, valid
from tests.tiny_suite import Workspace

MODEL = "/v2/models/tiny"
LIMITS = Limits(rows=6, characters=500, body_bytes=50_000)


@pytest.fixture(scope="module")
def runtime(finished: Workspace) -> Runtime:
    return Runtime(Bundle.open(finished.bundle), threads=1)


@pytest.fixture(scope="module")
def rest(runtime: Runtime) -> Iterator[Rest]:
    batcher = Batcher(LIMITS, threads=1, batch_rows=4)
    service = Service(batcher, LIMITS, metrics=Metrics(), log=None)
    service.serve(Serving(runtime))
    yield Rest(service)
    batcher.close()


def post(rest: Rest, path: str, body: Any, **headers: str) -> Reply:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(ask(rest.application, "POST", path, content, headers=named))


def test_a_valid_request_is_answered_with_what_it_asked_for(rest: Rest, runtime: Runtime) -> None:
    reply = post(rest, f"{MODEL}/infer", valid())
    expected = runtime.predict(["a film", "the law"])["topic"].labels
    labels = [runtime.tasks[4].classes[i] for i in expected]
    assert (reply.status, reply.json) == (200, {
        "model_name": "tiny", "model_version": runtime.bundle_id, "id": "x",
        "outputs": [{"name": "topic.label", "datatype": "BYTES", "shape": [2], "data": labels}],
    })  # fmt: skip


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), min_size=1, max_size=6),
    tasks=st.lists(st.sampled_from(["mood", "grade", "stars", "about", "topic"]), min_size=1, unique=True),
    binary_in=st.booleans(),
    binary_out=st.booleans(),
)
def test_any_texts_and_any_tasks_give_the_runtime_s_answers_in_any_encoding(
    rest: Rest, runtime: Runtime, texts: list[str], tasks: list[str], binary_in: bool, binary_out: bool
) -> None:
    encoded = [text.encode() for text in texts]
    raw = b"".join(len(part).to_bytes(4, "little") + part for part in encoded) if binary_in else b""
    entry: dict[str, Any] = {"name": "text", "datatype": "BYTES", "shape": [len(texts), 1]}
    entry |= {"parameters": {"binary_data_size": len(raw)}} if binary_in else {"data": [[text] for text in texts]}
    parameters = {"tasks": ",".join(tasks), "binary_data_output": binary_out}
    head = json.dumps({"inputs": [entry], "parameters": parameters}).encode()
    reply = post(rest, f"{MODEL}/infer", head + raw, Inference_Header_Content_Length=str(len(head)))
    assert reply.status == 200, reply.body
    size = int(reply.headers.get(b"inference-header-content-length", len(reply.body)))
    outputs, at = json.loads(reply.body[:size])["outputs"], size
    expected = runtime.predict(texts, tasks=tasks)
    found = {}
    for output in outputs:
        if binary_out:
            length = output["parameters"]["binary_data_size"]
            found[output["name"]] = reply.body[at : at + length]
            at += length
        else:
            found[output["name"]] = output["data"]
    assert at == len(reply.body)
    assert {name.rpartition(".")[0] for name in found} == set(tasks)
    for task in tasks:
        name, wanted = (f"{task}.value", expected[task].values) if task == "stars" else (
            f"{task}.probabilities", expected[task].probabilities,
        )  # fmt: skip
        numbers = np.frombuffer(found[name], dtype="<f4") if binary_out else np.asarray(found[name])
        assert np.allclose(numbers, np.ravel(wanted), atol=1e-4)


def test_500_malformed_requests_are_refused_with_a_reason(rest: Rest) -> None:
    counted = run(rest.application, f"{MODEL}/infer", range(500))
    assert counted[400] > 350


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(["text", "tasks", "id", "labels", "row", "task", "label"]), inner, max_size=4
            )
        ),
    )
)
def test_any_json_at_predict_and_feedback_is_answered_or_refused(rest: Rest, body: Any) -> None:
    for path in ("/predict", "/v2/feedback"):
        reply = post(rest, path, body)
        assert reply.status in (200, 400, 409)
        assert reply.status == 200 or reply.json["error"]


@pytest.mark.parametrize(
    "method, path, status", [
        ("GET", f"{MODEL}/infer", 405), ("POST", "/v2/health/live", 405), ("GET", "/v2/health/alive", 404),
        ("GET", "/../../etc/passwd", 404), ("GET", "/v2/models/..%2f", 404), ("HEAD", "/v2/health/ready", 200),
        ("GET", f"{MODEL}/ready", 200), ("GET", f"{MODEL}/versions/1/ready", 404), ("DELETE", "/predict", 405),
    ],
)  # fmt: skip
def test_paths_and_methods(rest: Rest, method: str, path: str, status: int) -> None:
    assert asyncio.run(ask(rest.application, method, path)).status == status


def test_bodies_are_refused_before_they_are_read_to_the_end(rest: Rest) -> None:
    reply = post(rest, "/predict", b"{}", content_length="60000")
    assert reply.status == 413 and reply.headers[b"connection"] == b"close"
    assert post(rest, "/predict", b"x" * 60_000).status == 413
    assert post(rest, "/predict", b"{}", content_encoding="gzip").status == 415


def test_a_text_longer_than_allowed_and_too_many_pairs_are_refused(rest: Rest) -> None:
    assert "row 1 has 501 characters" in post(rest, "/predict", {"text": ["a", "b" * 501]}).json["error"]
    assert "at most 6 are taken" in post(rest, "/predict", {"text": ["a"] * 7}).json["error"]


def test_nothing_is_answered_before_a_model_is_there() -> None:
    batcher = Batcher(LIMITS, threads=1, batch_rows=4)
    rest = Rest(Service(batcher, LIMITS, metrics=Metrics(), log=None))
    for path in ("/predict", f"{MODEL}/infer"):
        reply = post(rest, path, valid())
        assert reply.status == 503 and reply.headers[b"retry-after"] == b"1"
    assert asyncio.run(ask(rest.application, "GET", "/v2/health/live")).status == 200
    assert asyncio.run(ask(rest.application, "GET", "/v2/health/ready")).status == 503
    batcher.close()


@pytest.mark.e2e
def test_10_000_more(rest: Rest) -> None:
    assert run(rest.application, f"{MODEL}/infer", range(1_000, 11_000))[400] > 7_000
