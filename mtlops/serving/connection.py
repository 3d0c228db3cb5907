"""A client's connection, as uvicorn reads it, with two bounds that uvicorn lacks: seconds and bytes of a request."""

import asyncio
from http import HTTPStatus
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_BYTES = 64 * 1024


def reading_within(seconds: float) -> type["Connection"]:
    """Returns connections on which a request must have arrived whole within so many seconds."""
    return type("Connection", (Connection,), {"read_seconds": seconds})


class Connection(HttpToolsProtocol):
    """Closes itself when a request does not arrive whole within `read_seconds`, or its head is over `HEAD_BYTES`.

    The seconds count from the connection, then from the first byte of each further request. A client that sends a
    byte now and then would otherwise hold a connection for ever, and a head without an end would fill the memory.
    """

    read_seconds: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None  # one for many requests: it is dear
        self._begun: float | None = None  # when what is being read began; None: nothing is
        self._head_bytes: int | None = 0  # None: the head is complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Starts the clock."""
        super().connection_made(transport)
        self._start_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stops it."""
        self._stop_clock()
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Reads on, as far as the bounds allow."""
        super().data_received(data)
        if self._head_bytes is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES:
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def on_message_begin(self) -> None:
        """A request begins."""
        self._head_bytes = 0
        if self._begun is None:
            self._start_clock()
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Its head is there."""
        self._head_bytes = None
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """It is there as a whole."""
        self._stop_clock()
        super().on_message_complete()

    def _start_clock(self) -> None:
        self._begun = self.loop.time()
        if self._timer is None:
            self._timer = self.loop.call_later(self.read_seconds, self._look_at_clock)

    def _stop_clock(self) -> None:
        self._begun = None

    def _look_at_clock(self) -> None:
        self._timer = None
        if self._begun is None:
            return
        left = self._begun + self.read_seconds - self.loop.time()
        if left > 0:
            self._timer = self.loop.call_later(left, self._look_at_clock)
        else:
            self._refuse(HTTPStatus.REQUEST_TIMEOUT)

    def _refuse(self, status: HTTPStatus) -> None:
        """Says why, unless an answer is on its way, and closes."""
        self._stop_clock()
        self._head_bytes = None
        if self.transport.is_closing():
            return
        cycle = cast("RequestResponseCycle | None", self.cycle)
        if cycle is None or cycle.response_complete:
            body = b'{"error":"%s"}' % status.phrase.encode()
            head = b"HTTP/1.1 %d %s\r\n" % (status, status.phrase.encode())
            head += b"content-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
            self.transport.write(head + body)
        self.transport.close()
