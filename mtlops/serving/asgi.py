"""The few lines of ASGI that the ports share: read a body within its limit, answer, refuse."""

import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import dataclass
from typing import Any

import orjson

from mtlops.serving.refusal import Refusal

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

logger = logging.getLogger(__name__)

JSON = b"application/json"


@dataclass(frozen=True)
class Request:
    """A request whose head has been read.

    Attributes:
        method: GET, POST and so on.
        path: without the query.
        headers: by name in lower case.
        receive: brings the body.
    """

    method: str
    path: str
    headers: dict[bytes, bytes]
    receive: Receive

    async def body(self, limit: int) -> bytes:
        """Returns the body. Raises Refusal as soon as it is larger than `limit` bytes."""
        if encoding := self.headers.get(b"content-encoding"):
            raise Refusal(415, f"content-encoding {encoding.decode('latin-1')!r} is not taken. Send the body as it is.")
        too_large = Refusal(413, f"the body is larger than {limit} bytes. Send several requests.")
        length = self.headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > limit:
            raise too_large
        parts, size = [], 0
        while True:
            message = await self.receive()
            if message["type"] == "http.disconnect":
                raise Refusal(400, "the client went away before its body was complete.")
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise too_large
            if not message.get("more_body"):
                return b"".join(parts) if len(parts) > 1 else parts[0]


@dataclass(frozen=True)
class Response:
    """What goes back.

    Attributes:
        body: bytes.
        status: of HTTP.
        content_type: of the body.
        headers: more of them.
    """

    body: bytes
    status: int = 200
    content_type: bytes = JSON
    headers: Iterable[tuple[bytes, bytes]] = ()


Handler = Callable[[Request], Awaitable[Response]]


class Application:
    """An ASGI application around one handler: refusals become JSON, faults become 500 and a line in the log.

    Args:
        handler: answers.
        closing: says whether connections are to be closed after their next answer.
    """

    def __init__(self, handler: Handler, *, closing: Callable[[], bool] = lambda: False) -> None:
        self._handler, self._closing = handler, closing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request."""
        if scope["type"] != "http":
            return
        request = Request(scope["method"], scope["path"], dict(scope["headers"]), receive)
        try:
            response = await self._handler(request)
        except Refusal as refusal:
            response = refused(refusal)
        except Exception:
            logger.exception("%s %s failed", request.method, request.path)
            response = refused(Refusal(500, "the server failed. Its log says why."))
        headers = [(b"content-type", response.content_type), (b"content-length", b"%d" % len(response.body))]
        headers += response.headers
        if self._closing() or response.status == 413:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": response.status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else response.body})


def refused(refusal: Refusal) -> Response:
    """Returns a refusal as the protocol has it: {"error": reason}."""
    headers: Headers = []
    if refusal.retry_after_seconds is not None:
        headers.append((b"retry-after", b"%d" % refusal.retry_after_seconds))
    if refusal.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return Response(orjson.dumps({"error": refusal.reason}), refusal.status, headers=headers)


def as_json(value: Any, *, status: int = 200) -> Response:
    """Returns a value as JSON."""
    return Response(orjson.dumps(value), status)


def parse_json(body: bytes, *, where: str = "the body") -> Any:
    """Returns the value of a JSON text. Raises Refusal when it is none."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise Refusal(400, f"{where} is not JSON: {error}.") from None


def check_token(request: Request, token: str | None) -> None:
    """Raises Refusal when a token is set and the request does not bring it."""
    if token is None:
        return
    given = request.headers.get(b"authorization", b"")
    if not hmac.compare_digest(given, b"Bearer " + token.encode()):
        raise Refusal(401, "a bearer token is needed: send the header 'Authorization: Bearer TOKEN'.")


def no_such(request: Request) -> Refusal:
    """Returns the refusal of an unknown path."""
    return Refusal(404, f"there is nothing at {request.method} {request.path[:100]!r}.")
