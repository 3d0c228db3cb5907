"""The server as its clients see it: a real process, NVIDIA's clients, malformed requests, stopping."""

import contextlib
import http.client
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtlops.bundle import Bundle
from mtlops.data.tokenisation import pad
from mtlops.prediction_log import FEEDBACK_SCHEMA, PREDICTION_SCHEMA
from mtlops.serving.runtime import Runtime
from tests.serving.processes import Server, serving
from tests.tiny_suite import Workspace

pytestmark = pytest.mark.e2e

TEXTS = ["the film was very good", "ein schöner Film: 👍", "", "law " * 50]
MODEL = "/v2/models/tiny"


@pytest.fixture(scope="module")
def runtime(finished: Workspace) -> Runtime:
    return Runtime(Bundle.open(finished.bundle), threads=1)


@pytest.fixture(scope="module")
def server(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    with serving(folder, "--bundle", str(finished.bundle), "--max-rows", "8", "--max-body-mb", "0.2") as found:
        yield found


def read_log(url: Path, table: str) -> pa.Table:
    files = sorted((url / table).rglob("*.parquet"), key=lambda path: path.name)
    return pa.concat_tables([pq.ParquetFile(path).read() for path in files])


def text_input(client: Any, texts: list[str]) -> Any:
    found = client.InferInput("text", [len(texts)], "BYTES")
    return found, np.array([text.encode() for text in texts], dtype=np.object_)


def check(result: Any, runtime: Runtime) -> None:
    expected = runtime.predict(TEXTS)
    assert np.allclose(result.as_numpy("topic.probabilities"), expected["topic"].probabilities, atol=1e-5)
    assert np.allclose(result.as_numpy("stars.value"), expected["stars"].values, atol=1e-4)
    labels = [label.decode() if isinstance(label, bytes) else label for label in result.as_numpy("mood.label")]
    assert labels == [runtime.tasks[0].classes[i] for i in expected["mood"].labels]
    about = json.loads(result.as_numpy("about.label")[0])
    assert about == [c for c, on in zip(("device", "story"), expected["about"].labels[0], strict=True) if on]


@pytest.mark.parametrize("binary", [True, False])
def test_triton_s_http_client(server: Server, runtime: Runtime, binary: bool) -> None:
    import tritonclient.http as client

    with client.InferenceServerClient(f"127.0.0.1:{server.ports['rest']}") as triton:
        assert triton.is_server_live() and triton.is_server_ready() and triton.is_model_ready("tiny")
        described = triton.get_model_metadata("tiny")
        assert {"name": "topic.probabilities", "datatype": "FP32", "shape": [-1, 3]} in described["outputs"]
        tensor, values = text_input(client, TEXTS)
        tensor.set_data_from_numpy(values, binary_data=binary)
        names = [f"{o['name']}" for o in described["outputs"]]
        wanted = [client.InferRequestedOutput(name, binary_data=binary) for name in names]
        result = triton.infer("tiny", [tensor], outputs=wanted, request_id="r1", model_version=described["versions"][0])
        assert result.get_response()["id"] == "r1"
        check(result, runtime)
        assert np.allclose(result.as_numpy("embedding"), runtime.embeddings(TEXTS), atol=1e-5)


@pytest.mark.parametrize("binary", [True, False])
def test_triton_s_grpc_client(server: Server, runtime: Runtime, binary: bool) -> None:
    import tritonclient.grpc as client
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    with client.InferenceServerClient(f"127.0.0.1:{server.ports['grpc']}") as triton:
        assert triton.is_server_live() and triton.is_server_ready() and triton.is_model_ready("tiny")
        assert triton.get_server_metadata().name == "mtlops"
        assert triton.get_model_metadata("tiny").outputs[0].name == "mood.label"
        if binary:
            tensor, values = text_input(client, TEXTS)
            tensor.set_data_from_numpy(values)
            check(triton.infer("tiny", [tensor]), runtime)
            return
        request = service_pb2.ModelInferRequest(model_name="tiny", id="typed")
        entry = request.inputs.add(name="text", datatype="BYTES", shape=[len(TEXTS)])
        entry.contents.bytes_contents.extend(text.encode() for text in TEXTS)
        request.parameters["tasks"].string_param = "topic"
        import grpc

        with grpc.insecure_channel(f"127.0.0.1:{server.ports['grpc']}") as channel:
            answer = service_pb2_grpc.GRPCInferenceServiceStub(channel).ModelInfer(request)
        assert [output.name for output in answer.outputs] == ["topic.label", "topic.probabilities"]
        shares = np.reshape(answer.outputs[1].contents.fp32_contents, (-1, 3))
        assert np.allclose(shares, runtime.predict(TEXTS)["topic"].probabilities, atol=1e-5)


def test_token_ids_give_what_their_text_gives(server: Server, runtime: Runtime) -> None:
    ids = runtime.tokenizer.ids(["the film was very good", "phone"])
    padded, mask = pad(ids)
    inputs = [
        {"name": name, "datatype": "INT64", "shape": list(values.shape), "data": values.tolist()}
        for name, values in (("input_ids", padded), ("attention_mask", mask))
    ]
    status, answer = server.post(f"{MODEL}/infer", {"inputs": inputs, "parameters": {"tasks": "topic"}})
    assert status == 200, answer
    plain = server.predict("the film was very good", "phone", tasks=["topic"])["predictions"]
    shares = np.reshape(answer["outputs"][1]["data"], (2, 3))
    assert np.allclose(shares, [list(row["tasks"]["topic"]["probabilities"].values()) for row in plain], atol=1e-5)


def infer(**changes: Any) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "datatype": "BYTES", "shape": [1], "data": ["a"], **changes}]}


@pytest.mark.parametrize(
    "path, body, status, reason",
    [
        (f"{MODEL}/infer", b"{", 400, "is not JSON"),
        (f"{MODEL}/infer", [], 400, "JSON object"),
        (f"{MODEL}/infer", {}, 400, "inputs: must be a list"),
        (f"{MODEL}/infer", infer(name="txt"), 400, "this model takes 'text'"),
        (f"{MODEL}/infer", infer(datatype="FP32"), 400, "datatype 'FP32' is not taken"),
        (f"{MODEL}/infer", infer(shape=[2]), 400, "data has 1 elements, shape .2. needs 2"),
        (f"{MODEL}/infer", infer(shape=[-1]), 400, "shape must be"),
        (f"{MODEL}/infer", infer(shape=[1 << 62, 1 << 62]), 400, "elements"),
        (f"{MODEL}/infer", infer(shape=[9], data=["a"] * 9), 400, "at most 8"),
        (f"{MODEL}/infer", infer(data=[1]), 400, r"data\[0\]: BYTES needs a string"),
        (f"{MODEL}/infer", {**infer(), "parameters": {"tasks": "topik"}}, 400, "Did you mean 'topic'"),
        (f"{MODEL}/infer", {**infer(), "outputs": [{"name": "topic.labels"}]}, 400, "Did you mean 'topic.label'"),
        (f"{MODEL}/infer", {**infer(), "id": 5}, 400, "id: must be a string"),
        ("/v2/models/other/infer", infer(), 404, "'tiny' is"),
        (f"{MODEL}/versions/7/infer", infer(), 404, "version '7'"),
        ("/predict", {"text": []}, 400, "at least one string"),
        ("/predict", {"texts": ["a"]}, 400, "Did you mean 'text'"),
        ("/predict", b"x" * 300_000, 413, "larger than 200000 bytes"),
        ("/v2/feedback", {"request_id": "a", "task": "mood", "label": "good"}, 409, "--log URL"),
        ("/v3", {}, 404, "there is nothing at POST"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(server: Server, path: str, body: Any, status: int, reason: str) -> None:
    found, answer = server.post(path, body)
    assert found == status, answer
    assert re.search(reason, answer["error"])
    assert "Traceback" not in answer["error"] and ".py" not in answer["error"]


def test_a_wrong_grpc_request_is_told_what_is_wrong(server: Server) -> None:
    import tritonclient.grpc as client
    from tritonclient.utils import InferenceServerException

    with client.InferenceServerClient(f"127.0.0.1:{server.ports['grpc']}") as triton:
        tensor, values = text_input(client, ["a"])
        tensor.set_data_from_numpy(values)
        for name, outputs, code, reason in (
            ("other", None, "NOT_FOUND", "'tiny' is"),
            ("tiny", [client.InferRequestedOutput("topic.labels")], "INVALID_ARGUMENT", "Did you mean 'topic.label'"),
        ):
            with pytest.raises(InferenceServerException, match=reason) as caught:
                triton.infer(name, [tensor], outputs=outputs)
            assert code in str(caught.value.status())


def test_metrics_count_tasks_codes_and_labels(server: Server) -> None:
    before = server.metric('mtlops_requests_total{code="200",task="topic"}')
    refused = server.metric('mtlops_requests_total{code="400",task=""}')
    answer = server.predict("the film was very good", tasks=["topic"])
    assert server.post("/predict", {"text": 1})[0] == 400
    label = answer["predictions"][0]["tasks"]["topic"]["label"]
    assert server.metric('mtlops_requests_total{code="200",task="topic"}') == before + 1
    assert server.metric('mtlops_requests_total{code="400",task=""}') == refused + 1
    assert server.metric(f'mtlops_predictions_total{{label="{label}",task="topic"}}') >= 1
    status, found = server.get("/status", "admin")
    task = found["tasks"]["topic"]
    sample = f'bundle_id="{found["bundle"]}",task="topic",task_version="{task["version"]}"'
    assert status == 200 and server.metric(f"mtlops_bundle_info{{{sample}}}") == 1


def test_it_starts_without_torch_and_with_little_memory(server: Server) -> None:
    status = Path(f"/proc/{server.process.pid}/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1])
    assert peak < 250_000
    maps = Path(f"/proc/{server.process.pid}/maps").read_text()
    assert "/torch/" not in maps and "/sklearn/" not in maps and "onnxruntime" in maps


def test_a_taken_port_and_a_missing_bundle_are_one_line(finished: Workspace, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options, code, reason in (
            (["--bundle", str(finished.bundle), "--port", port], 5, "cannot listen for rest"),
            (["--bundle", str(tmp_path / "none"), "--port", "0"], 4, "manifest.json"),
            (["--registry", str(tmp_path / "none"), "--port", "0"], 4, "has no champion"),
            (["--tls-cert", "x"], 2, "give both"),
            (["--canary", "topic"], 2, "TASK=SHARE"),
        ):
            command = [sys.executable, "-m", "mtlops", "serve", "--quiet", "--admin-port", "0", "--metrics-port", "0"]
            done = subprocess.run([*command, "--grpc-port", "0", *options], capture_output=True, text=True, check=False)
            assert done.returncode == code, done.stderr
            assert done.stderr.count("\n") == 1 and reason in done.stderr


def test_a_request_that_does_not_arrive_is_cut_off(finished: Workspace, tmp_path: Path) -> None:
    head = b"POST /predict HTTP/1.1\r\nhost: here\r\ncontent-length: 20\r\n"
    body = json.dumps({"text": TEXTS}).encode()
    with serving(tmp_path, "--bundle", str(finished.bundle), "--read-seconds", "1") as server:

        def send(*parts: bytes) -> bytes:
            with socket.create_connection(("127.0.0.1", server.ports["rest"])) as client:
                with contextlib.suppress(BrokenPipeError):  # cut off while it still sends
                    for part in parts:
                        client.sendall(part)
                        time.sleep(0.3)
                client.settimeout(20)
                return b"".join(iter(lambda: client.recv(65536), b""))

        assert send(b"").startswith(b"HTTP/1.1 408 ")
        assert send(b"POST /pre").startswith(b"HTTP/1.1 408 ")
        drops = [b"x-%d: a\r\n" % number for number in range(5)]
        assert send(head, *drops).startswith(b"HTTP/1.1 408 ")  # a byte now and then does not help
        assert send(head + b"\r\n", body[:3]) == b""  # an answer was due already: the connection ends
        assert send(head + b"x: " + b"a" * 70_000).startswith(b"HTTP/1.1 431 ")
        whole = b"POST /predict HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
        last = whole.replace(b"host:", b"connection: close\r\nhost:")
        answers = send(whole[:9], whole[9:], whole, last)  # as slowly, but whole; the last one 0.9 s after the first
        assert answers.count(b"HTTP/1.1 200 ") == 3
        assert server.get("/v2/health/ready")[0] == 200


def test_a_token_is_asked_for_everywhere_but_for_health(finished: Workspace, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret-word\n")
    with serving(tmp_path, "--bundle", str(finished.bundle), "--token-file", str(tmp_path / "token")) as server:
        assert server.get("/v2/health/ready")[0] == 200
        assert server.get("/v2")[0] == server.get("/status", "admin")[0] == 401
        assert server.post("/predict", {"text": "a"}, headers={"Authorization": "Bearer secret-wor"})[0] == 401
        assert server.post("/predict", {"text": "a"}, headers={"Authorization": "Bearer secret-word"})[0] == 200
        import tritonclient.grpc as client
        from tritonclient.utils import InferenceServerException

        with client.InferenceServerClient(f"127.0.0.1:{server.ports['grpc']}") as triton:
            assert triton.is_server_ready()
            with pytest.raises(InferenceServerException, match="bearer token"):
                triton.get_server_metadata()
            triton.get_server_metadata(headers={"authorization": "Bearer secret-word"})


def make_certificates(folder: Path) -> None:
    """A certificate authority, and a server's and a client's certificate of it."""
    short = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)

    openssl("req", "-x509", *short, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority")
    (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
    for name in ("server", "client"):
        openssl("req", *short, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        signed = ["-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2"]
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")


def test_tls_with_certificates_of_clients(finished: Workspace, tmp_path: Path) -> None:
    import grpc
    from tritonclient.grpc import service_pb2, service_pb2_grpc

    make_certificates(tmp_path)
    options = [f"--tls-{name}={tmp_path / file}" for name, file in (
        ("cert", "server.pem"), ("key", "server.key"), ("client-ca", "ca.pem"),
    )]  # fmt: skip
    with serving(tmp_path, "--bundle", str(finished.bundle), *options) as server:
        url = f"{server.url(scheme='https')}/v2/health/ready"
        stranger = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        with pytest.raises((urllib.error.URLError, ssl.SSLError, OSError)):
            urllib.request.urlopen(url, context=stranger)
        known = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
        known.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
        with urllib.request.urlopen(url, context=known) as response:
            assert response.status == 200
        ca, key, own = ((tmp_path / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem"))
        address = f"127.0.0.1:{server.ports['grpc']}"
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(ca, key, own)) as channel:
            stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
            assert stub.ServerReady(service_pb2.ServerReadyRequest()).ready
        with grpc.secure_channel(address, grpc.ssl_channel_credentials(ca)) as channel, pytest.raises(grpc.RpcError):
            service_pb2_grpc.GRPCInferenceServiceStub(channel).ServerReady(service_pb2.ServerReadyRequest(), timeout=5)


def test_every_answer_is_in_the_log_and_a_kill_loses_only_what_was_not_flushed(
    finished: Workspace, tmp_path: Path
) -> None:
    log = tmp_path / "log"
    options = ("--bundle", str(finished.bundle), "--log", str(log), "--log-flush-seconds", "0.2", "--log-text")
    with serving(tmp_path, *options) as server:
        asked = [server.predict(*TEXTS) for _ in range(5)]
        labels = [{"request_id": found["id"], "row": 1, "task": "mood", "label": "good"} for found in asked]
        assert server.post("/v2/feedback", {"labels": labels})[0] == 202
        assert server.post("/v2/feedback", {"request_id": "a", "task": "mood", "label": "god"})[0] == 400
        rows = 5 * len(TEXTS) * 5
        deadline = time.monotonic() + 30
        while server.metric('mtlops_log_rows_total{table="feedback"}') < 5 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.metric('mtlops_log_rows_total{table="predictions"}') == rows
        server.process.kill()
    table = read_log(log, "predictions")
    assert table.schema.remove_metadata().equals(PREDICTION_SCHEMA) and table.num_rows == rows
    assert set(table["request_id"].to_pylist()) == {found["id"] for found in asked}
    row = table.to_pylist()[1]
    assert row["text"] == TEXTS[1] and dict(row["statistics"])["words"] == 4 and len(row["embedding"]) == 16
    assert sum(value is not None for value in table["embedding"].to_pylist()) == 5 * len(TEXTS)
    feedback = read_log(log, "feedback")
    assert feedback.schema.remove_metadata().equals(FEEDBACK_SCHEMA) and feedback.num_rows == 5


def test_stopping_answers_every_request_that_was_accepted(finished: Workspace, tmp_path: Path) -> None:
    log = tmp_path / "log"
    answered: list[str] = []
    failed: list[object] = []
    # Flat out, a tiny model answers faster than rows are written; nothing may be dropped in this test.
    options = ("--bundle", str(finished.bundle), "--log", str(log), "--log-queue-rows", "10000000")
    with serving(tmp_path, *options, "--drain-seconds", "2") as server:

        def ask(*, anew: bool) -> None:
            with contextlib.closing(http.client.HTTPConnection("127.0.0.1", server.ports["rest"])) as connection:
                while True:
                    if anew:  # a connection for each request
                        connection.close()
                    try:
                        connection.request("POST", "/predict", json.dumps({"text": TEXTS}))
                    except (ConnectionRefusedError, ConnectionResetError, BrokenPipeError):
                        return  # not accepted
                    try:
                        response = connection.getresponse()
                        body = json.loads(response.read())
                        answered.append(body["id"]) if response.status == 200 else failed.append(body)
                    except (OSError, http.client.HTTPException, ValueError) as error:
                        failed.append(error)
                        return

        threads = [threading.Thread(target=ask, kwargs={"anew": number % 2 == 1}) for number in range(6)]
        for thread in threads:
            thread.start()
        while len(answered) < 20:
            time.sleep(0.01)
        os.kill(server.process.pid, 15)
        time.sleep(0.3)
        assert server.get("/v2/health/live")[0] == 200 and server.get("/v2/health/ready")[0] == 503
        for thread in threads:
            thread.join()
        assert server.process.wait(timeout=30) == 0
    assert not failed
    assert len(answered) == len(set(answered)) >= 20
    assert set(read_log(log, "predictions")["request_id"].to_pylist()) == set(answered)
