"""The REST port: the Open Inference Protocol v2 with Triton's binary tensor extension, /predict and feedback."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any

import orjson

from mtlops import __version__
from mtlops.serving import tensors
from mtlops.serving.asgi import Application, Handler, Request, Response, as_json, check_token, no_such, parse_json
from mtlops.serving.description import describe
from mtlops.serving.limits import Limits
from mtlops.serving.log_rows import Feedback
from mtlops.serving.questions import Question, answer_tensors, check_id, metadata, plain_question, question
from mtlops.serving.refusal import Refusal, bad
from mtlops.serving.runtime import Runtime
from mtlops.serving.service import Answered, Service
from mtlops.serving.tensors import Tensor
from mtlops.serving.tracing import PARENT_HEADERS
from mtlops.tasks import Task

SERVER = "mtlops"
EXTENSIONS = ("binary_tensor_data", "feedback")
PLATFORM = "onnx_onnxruntime_v1"

_HEADER_LENGTH = b"inference-header-content-length"
_MODEL = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?(?:/(?P<what>ready|infer))?")
_MOST_LABELS = 10_000


@dataclass(frozen=True)
class _Envelope:
    """A request of the protocol, before it is held against a model."""

    inputs: Sequence[Tensor]
    outputs: Sequence[str]
    binary: frozenset[str]
    all_binary: bool
    parameters: dict[str, Any]
    request_id: Any


class Rest:
    """Answers over HTTP.

    Args:
        service: answers.
        token: that clients must bring; None asks for none. Health needs none.
        more: what answers at further paths.
    """

    def __init__(
        self, service: Service, *, token: str | None = None, more: Mapping[str, Handler] = MappingProxyType({})
    ) -> None:
        self._service, self._token, self._more = service, token, more
        self.application = Application(self._handle, closing=lambda: service.is_draining)

    async def _handle(self, request: Request) -> Response:
        path = request.path
        if path.startswith("/v2/health/"):
            return self._health(request)
        check_token(request, self._token)
        if match := _MODEL.fullmatch(path):
            return await self._model(request, match["name"], match["version"] or "", what=match["what"] or "")
        if path in ("/v2", "/v2/"):
            _check_method(request, "GET")
            return as_json({"name": SERVER, "version": __version__, "extensions": EXTENSIONS})
        if path == "/predict":
            _check_method(request, "POST")
            return await self._predict(request, await request.body(self._service.limits.body_bytes))
        if path == "/v2/feedback":
            _check_method(request, "POST")
            return self._feedback(parse_json(await request.body(self._service.limits.body_bytes)))
        if path in self._more:
            return await self._more[path](request)
        raise no_such(request)

    def _health(self, request: Request) -> Response:
        _check_method(request, "GET", "HEAD")
        if request.path == "/v2/health/live":
            return as_json({"live": True})
        if request.path == "/v2/health/ready":
            ready = self._service.is_ready
            return as_json({"ready": ready}, status=200 if ready else 503)
        raise no_such(request)

    async def _model(self, request: Request, name: str, version: str, *, what: str) -> Response:
        if what == "infer":
            _check_method(request, "POST")
            body = await request.body(self._service.limits.body_bytes)
            return await self._infer(request, body, name=name, version=version)
        _check_method(request, "GET")
        runtime = self._service.check_model(name, version)
        if what == "ready":
            ready = self._service.is_ready
            return as_json({"name": name, "ready": ready}, status=200 if ready else 503)
        inputs, outputs = metadata(runtime)
        return as_json({
            "name": name, "versions": [runtime.bundle_id], "platform": PLATFORM, "inputs": inputs, "outputs": outputs,
            "parameters": {"variant": runtime.variant},
        })  # fmt: skip

    async def _infer(self, request: Request, body: bytes, *, name: str, version: str) -> Response:
        envelopes: list[_Envelope] = []

        def ask(runtime: Runtime) -> Question:
            envelope = read_envelope(body, request.headers.get(_HEADER_LENGTH), self._service.limits)
            envelopes.append(envelope)
            return question(
                runtime, self._service.limits, inputs=envelope.inputs, outputs=envelope.outputs,
                parameters=envelope.parameters, request_id=envelope.request_id,
            )  # fmt: skip

        answered = await self._service.answer(ask, name=name, version=version, parent=lambda: _parent(request))
        return _infer_response(name, answered, envelopes[0])

    async def _predict(self, request: Request, body: bytes) -> Response:
        def ask(runtime: Runtime) -> Question:
            return plain_question(runtime, self._service.limits, parse_json(body))

        answered = await self._service.answer(ask, parent=lambda: _parent(request))
        answer, texts = answered.answer, answered.question.texts or ()
        predictions = describe(answer.runtime.tasks, answer.outputs, texts)
        return as_json({
            "id": answered.question.id, "bundle": answer.runtime.bundle_id, "predictions": predictions,
        })  # fmt: skip

    def _feedback(self, body: Any) -> Response:
        labels = body.get("labels") if isinstance(body, dict) and "labels" in body else [body]
        if not isinstance(labels, list) or not 1 <= len(labels) <= _MOST_LABELS:
            raise bad(f"'labels' must be a list of 1 to {_MOST_LABELS} labels.")
        tasks = {task.name: task for task in self._service.runtime.tasks}
        self._service.feedback([_label(label, f"labels[{i}]", tasks) for i, label in enumerate(labels)])
        return as_json({"accepted": len(labels)}, status=202)


def read_envelope(body: bytes, header_length: bytes | None, limits: Limits) -> _Envelope:
    """Returns what a body holds: a JSON head, and after it the raw bytes of inputs that are sent so.

    Args:
        body: the whole of it.
        header_length: header `Inference-Header-Content-Length`; None where all is JSON.
        limits: shapes beyond them are refused before their data are looked at.

    Raises:
        Refusal: it is malformed.
    """
    size = len(body)
    if header_length is not None:
        if not header_length.isdigit() or len(header_length) > 12 or int(header_length) > len(body):
            raise bad(
                f"header Inference-Header-Content-Length: must be a number of bytes up to the body's {len(body)}."
            )
        size = int(header_length)
    head = parse_json(body[:size], where="the JSON part of the body" if size < len(body) else "the body")
    if not isinstance(head, dict):
        raise bad("the body must be a JSON object with 'inputs'.")
    parameters = _mapping(head.get("parameters"), "parameters")
    inputs = _inputs(head.get("inputs"), memoryview(body)[size:], limits)
    outputs = _list(head.get("outputs"), "outputs")
    names, binary = [], set()
    for output in outputs:
        if not isinstance(output, dict) or not isinstance(output.get("name"), str):
            raise bad("outputs: every output needs a name (a string).")
        names.append(output["name"])
        if _flag(_mapping(output.get("parameters"), f"output {output['name']!r}: parameters"), "binary_data"):
            binary.add(output["name"])
    if len(set(names)) < len(names):
        raise bad("outputs: a name is there twice.")
    return _Envelope(
        inputs, names, frozenset(binary), _flag(parameters, "binary_data_output"), parameters, head.get("id")
    )  # fmt: skip


def _inputs(entries: Any, raw: memoryview, limits: Limits) -> list[Tensor]:
    if not isinstance(entries, list) or not entries:
        raise bad("inputs: must be a list of at least one input.")
    found, at = [], 0
    for entry in entries:
        if not isinstance(entry, dict):
            raise bad("inputs: every input must be an object with name, datatype, shape and data.")
        name, datatype, shape = tensors.check_head(
            entry.get("name"), entry.get("datatype"), entry.get("shape"), most=limits.body_bytes
        )
        size = _mapping(entry.get("parameters"), f"input {name!r}: parameters").get("binary_data_size")
        if size is None:
            found.append(tensors.from_values(name, datatype, shape, entry.get("data")))
            continue
        if type(size) is not int or not 0 <= size <= len(raw) - at:
            raise bad(f"input {name!r}: binary_data_size {size!r}; {len(raw) - at} bytes follow the JSON part.")
        if "data" in entry:
            raise bad(f"input {name!r}: has both data and binary_data_size. Send one of them.")
        found.append(tensors.from_bytes(name, datatype, shape, raw[at : at + size]))
        at += size
    if at != len(raw):
        raise bad(f"{len(raw) - at} bytes follow the JSON part and belong to no input.")
    return found


def _infer_response(name: str, answered: Answered, envelope: _Envelope) -> Response:
    outputs, raw = [], []
    for tensor in answer_tensors(answered.question, answered.answer):
        output = tensors.as_json(tensor)
        if envelope.all_binary or tensor.name in envelope.binary:
            del output["data"]
            raw.append(tensors.to_bytes(tensor))
            output["parameters"] = {"binary_data_size": len(raw[-1])}
        outputs.append(output)
    answer = {
        "model_name": name, "model_version": answered.answer.runtime.bundle_id, "id": answered.question.id,
        "outputs": outputs,
    }  # fmt: skip
    body = orjson.dumps(answer, option=orjson.OPT_SERIALIZE_NUMPY)
    if not raw:
        return Response(body)
    return Response(
        b"".join([body, *raw]), content_type=b"application/octet-stream",
        headers=[(_HEADER_LENGTH, b"%d" % len(body))],
    )  # fmt: skip


def _label(entry: Any, where: str, tasks: dict[str, Task]) -> Feedback:
    """A late label: {"request_id": ..., "row": 0, "task": ..., "label": ...}; a regression's is `value`."""
    if not isinstance(entry, dict):
        raise bad(f"{where}: must be an object with request_id, row, task and label.")
    request_id, row, task_name = entry.get("request_id"), entry.get("row", 0), entry.get("task")
    if not isinstance(request_id, str) or not request_id:
        raise bad(f"{where}: request_id must be the id that the answer had.")
    if type(row) is not int or not 0 <= row < 2**31:
        raise bad(f"{where}: row must be the position of the text in its request, from 0.")
    if not isinstance(task_name, str) or task_name not in tasks:
        raise bad(f"{where}: task {task_name!r} is not served; {', '.join(tasks)} are.")
    task, now = tasks[task_name], datetime.now(UTC)
    if task.per_word:
        raise bad(f"{where}: task {task.name!r} tags words: late labels are for tasks with one answer to a text.")
    if task.kind == "regression":
        value = entry.get("value", entry.get("label"))
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise bad(f"{where}: value must be a number: task {task.name!r} is a regression.")
        return Feedback(now, check_id(request_id), row, task.name, None, float(value))
    label = entry.get("label")
    names: list[Any] = label if isinstance(label, list) else [label]
    if unknown := [name for name in names if name not in task.classes]:
        raise bad(f"{where}: label {unknown[0]!r}: the classes of {task.name!r} are {', '.join(task.classes)}.")
    if task.kind != "multilabel" and len(names) != 1:
        raise bad(f"{where}: task {task.name!r} has exactly one label.")
    return Feedback(now, check_id(request_id), row, task.name, names, None)


def _parent(request: Request) -> dict[str, str]:
    found = {name: request.headers.get(name.encode()) for name in PARENT_HEADERS}
    return {name: value.decode("latin-1") for name, value in found.items() if value is not None}


def _check_method(request: Request, *allowed: str) -> None:
    if request.method not in allowed:
        raise Refusal(405, f"{request.path} takes {' or '.join(allowed)}, not {request.method}.")


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise bad(f"{where}: must be an object.")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise bad(f"{where}: must be a list.")
    return value


def _flag(parameters: dict[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if not isinstance(value, bool):
        raise bad(f"parameters: {name} must be true or false.")
    return value
