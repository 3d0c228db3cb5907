"""The gRPC port: the Open Inference Protocol v2, with tensors as typed contents or as raw bytes."""

import hmac
import logging
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import grpc

from mtlops import __version__
from mtlops.serving import tensors
from mtlops.serving.grpc_messages import METHODS, SERVICE, message
from mtlops.serving.limits import Limits
from mtlops.serving.questions import Question, answer_tensors, metadata, question
from mtlops.serving.refusal import GRPC_CODES, Refusal, bad
from mtlops.serving.rest import EXTENSIONS, PLATFORM, SERVER
from mtlops.serving.runtime import Runtime
from mtlops.serving.service import Service
from mtlops.serving.tensors import Tensor
from mtlops.serving.tracing import PARENT_HEADERS

logger = logging.getLogger(__name__)

_OPEN = ("ServerLive", "ServerReady")
_CONTENTS = {"BYTES": "bytes_contents", "INT64": "int64_contents", "INT32": "int_contents"}
_OVERHEAD = 1 << 16


class GrpcPort:
    """The server on that port.

    Args:
        service: answers.
        token: that clients must bring as metadata `authorization`; None asks for none.
    """

    def __init__(self, service: Service, *, token: str | None = None) -> None:
        self._service, self._token = service, token
        limit = service.limits.body_bytes + _OVERHEAD
        self._server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", -1),
                ("grpc.so_reuseport", 0),
            ]
        )
        handlers = {name: self._handler(name, getattr(self, f"_{_snake(name)}")) for name in METHODS}
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler(SERVICE, handlers)])

    def bind(self, address: str, *, credentials: grpc.ServerCredentials | None) -> int:
        """Takes an address, `host:port`, and returns the port. Raises RuntimeError when it is taken."""
        if credentials is None:
            return int(self._server.add_insecure_port(address))
        return int(self._server.add_secure_port(address, credentials))

    async def start(self) -> None:
        """Begins to answer."""
        await self._server.start()

    async def stop(self, *, grace_seconds: float) -> None:
        """Takes no new requests and waits for those that are under way."""
        await self._server.stop(grace_seconds)

    def _handler(self, name: str, answer: Callable[[Any, Any], Awaitable[Any]]) -> grpc.RpcMethodHandler:
        async def call(request: Any, context: Any) -> Any:
            try:
                if name not in _OPEN:
                    self._check_token(context)
                return await answer(request, context)
            except Refusal as refusal:
                if refusal.retry_after_seconds is not None:
                    context.set_trailing_metadata((("retry-after", str(refusal.retry_after_seconds)),))
                code = getattr(grpc.StatusCode, GRPC_CODES[refusal.status])
                await context.abort(code, refusal.reason)
            except Exception:
                logger.exception("gRPC %s failed", name)
                await context.abort(grpc.StatusCode.INTERNAL, "the server failed. Its log says why.")

        return grpc.unary_unary_rpc_method_handler(
            call,
            request_deserializer=message(f"{name}Request").FromString,
            response_serializer=message(f"{name}Response").SerializeToString,
        )

    def _check_token(self, context: Any) -> None:
        if self._token is None:
            return
        given = str(dict(context.invocation_metadata()).get("authorization", ""))
        if not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode()):
            raise Refusal(401, "a bearer token is needed: send the metadata authorization 'Bearer TOKEN'.")

    async def _server_live(self, request: Any, context: Any) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def _server_ready(self, request: Any, context: Any) -> Any:
        return message("ServerReadyResponse")(ready=self._service.is_ready)

    async def _model_ready(self, request: Any, context: Any) -> Any:
        self._service.check_model(request.name, request.version)
        return message("ModelReadyResponse")(ready=self._service.is_ready)

    async def _server_metadata(self, request: Any, context: Any) -> Any:
        return message("ServerMetadataResponse")(name=SERVER, version=__version__, extensions=EXTENSIONS)

    async def _model_metadata(self, request: Any, context: Any) -> Any:
        runtime = self._service.check_model(request.name, request.version)
        inputs, outputs = metadata(runtime)
        return message("ModelMetadataResponse")(
            name=request.name, versions=[runtime.bundle_id], platform=PLATFORM, inputs=inputs, outputs=outputs
        )

    async def _model_infer(self, request: Any, context: Any) -> Any:
        left = context.time_remaining()

        def ask(runtime: Runtime) -> Question:
            asked = _question(request, runtime, self._service.limits)
            if left is None or left > asked.timeout_seconds:
                return asked
            return Question(**{**vars(asked), "timeout_seconds": max(left, 0.0)})

        if not request.model_name:
            raise bad("model_name: is empty.")
        answered = await self._service.answer(
            ask, name=request.model_name, version=request.model_version, parent=lambda: _parent(context)
        )
        found = answer_tensors(answered.question, answered.answer)
        response = message("ModelInferResponse")(
            model_name=request.model_name,
            model_version=answered.answer.runtime.bundle_id,
            id=answered.question.id,
            outputs=[{"name": t.name, "datatype": t.datatype, "shape": t.shape} for t in found],
        )
        if request.raw_input_contents:
            response.raw_output_contents.extend(tensors.to_bytes(tensor) for tensor in found)
        else:
            for tensor, output in zip(found, response.outputs, strict=True):
                if tensor.datatype == "BYTES":
                    output.contents.bytes_contents.extend(str(text).encode() for text in tensor.values)
                else:
                    output.contents.fp32_contents.extend(tensor.values.reshape(-1).tolist())  # type: ignore[union-attr]
        return response


def credentials(*, certificate: Path, key: Path, client_ca: Path | None) -> grpc.ServerCredentials:
    """Returns TLS credentials; with `client_ca` clients must bring a certificate of it."""
    pair = key.read_bytes(), certificate.read_bytes()
    roots = client_ca.read_bytes() if client_ca else None
    return grpc.ssl_server_credentials([pair], root_certificates=roots, require_client_auth=roots is not None)


def _question(request: Any, runtime: Runtime, limits: Limits) -> Question:
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise bad(f"raw_input_contents: {len(raw)} entries for {len(request.inputs)} inputs. Send one for each.")
    inputs = [_input(entry, raw[i] if raw else None, limits) for i, entry in enumerate(request.inputs)]
    return question(
        runtime, limits, inputs=inputs, outputs=_names(request.outputs),
        parameters={name: _parameter(value) for name, value in request.parameters.items()}, request_id=request.id,
    )  # fmt: skip


def _input(entry: Any, raw: bytes | None, limits: Limits) -> Tensor:
    name, datatype, shape = tensors.check_head(entry.name, entry.datatype, list(entry.shape), most=limits.body_bytes)
    if raw is not None:
        return tensors.from_bytes(name, datatype, shape, raw)
    values: Sequence[Any] = list(getattr(entry.contents, _CONTENTS[datatype]))
    if datatype == "BYTES":
        values = [tensors.decode_text(name, position, value) for position, value in enumerate(values)]
    return tensors.from_values(name, datatype, shape, values)


def _parent(context: Any) -> dict[str, str]:
    return {name: str(value) for name, value in context.invocation_metadata() or () if name in PARENT_HEADERS}


def _names(outputs: Sequence[Any]) -> list[str]:
    names = [output.name for output in outputs]
    if len(set(names)) < len(names):
        raise bad("outputs: a name is there twice.")
    return names


def _parameter(value: Any) -> Any:
    which = value.WhichOneof("parameter_choice")
    return None if which is None else getattr(value, which)


def _snake(name: str) -> str:
    return "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in name).lstrip("_")
