"""The monitor that stays: a pass every few seconds, metrics and a status page on one port."""

import logging
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from monitoring.metrics import Metrics
from monitoring.notifier import Notifier
from monitoring.triggers import Carrier
from mtlops.errors import ArtefactError, PlatformError
from mtlops.files import to_json
from mtlops.report.document import document
from mtlops.report.drift import DRIFT
from mtlops.steps.monitor import Monitor

_REFRESH_SECONDS = 10

logger = logging.getLogger("mtlops.monitoring")


class Resident:
    """Passes over the log until it is told to stop.

    Args:
        opened: makes the monitor; asked again after an error, since a champion may not be there yet.
        carrier: carries out requests.
        notifier: tells people of alarms.
        interval_seconds: between the ends and starts of passes.
    """

    def __init__(
        self, opened: Callable[[], Monitor], *, carrier: Carrier, notifier: Notifier, interval_seconds: float
    ) -> None:  # fmt: skip
        self.metrics = Metrics()
        self.report: dict[str, Any] | None = None
        self.trouble = "the first pass has not ended"
        self.stopped = threading.Event()
        self._opened, self._carrier, self._notifier, self._interval = opened, carrier, notifier, interval_seconds
        self._monitor: Monitor | None = None

    def run(self) -> None:
        """Makes passes until `stopped` is set; what storage does not let through is tried again.

        Raises:
            UsageError: it was started with something that cannot be.
        """
        try:
            while not self.stopped.is_set():
                self._pass()
                self.stopped.wait(self._interval)
        finally:
            self._close()

    def _pass(self) -> None:
        try:
            if self._monitor is None:
                self._monitor = self._opened()
            self._carrier.step(self._monitor.state)
            _, report = self._monitor.once(clock=time.time())
            self._tell(report)
            self._notifier.step(self._monitor.state, report)
        except (PlatformError, ArtefactError) as error:
            if str(error) != self.trouble:
                logger.warning("%s Trying again every %g s.", error, self._interval)
            self.trouble = str(error)
            self.metrics.fail()
            self._close()

    def _tell(self, report: dict[str, Any]) -> None:
        newest = report["newest_row"]
        seconds = datetime.fromisoformat(newest).timestamp() if newest else 0.0
        self.report, self.trouble = report, ""
        self.metrics.succeed(report, time=time.time(), newest=seconds)

    def _close(self) -> None:
        if self._monitor is not None:
            self._monitor.close()
            self._monitor = None


def serve(resident: Resident, *, host: str, port: int) -> ThreadingHTTPServer:
    """Returns a running server of the status page, /metrics, /drift.json and /health.

    Raises:
        PlatformError: the port is taken.
    """
    handler = type("Handler", (_Handler,), {"resident": resident})
    try:
        server = ThreadingHTTPServer((host, port), handler)
    except OSError as error:
        raise PlatformError(f"{host}:{port}: cannot listen ({error.strerror}). Give another --port.") from None
    threading.Thread(target=server.serve_forever, daemon=True, name="status").start()
    return server


@contextmanager
def stopping_on_signals(resident: Resident) -> Iterator[None]:
    """A context in which SIGTERM and Ctrl-C end the pass under way and then the monitor."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, lambda *_: resident.stopped.set())
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def status_page(report: dict[str, Any] | None, *, trouble: str) -> str:
    """Returns the status page; before the first pass, and while passes fail, it says so."""
    links = [("Metrics", "metrics"), ("JSON", "drift.json")]
    parts: list[object] = [f"No pass: {trouble}"] if trouble else []
    if report is not None:
        parts += DRIFT.body(report)
    title = f"Drift of {report['suite']}" if report else "Drift"
    return document(title=title, about=DRIFT.about, links=links, parts=parts)


class _Handler(BaseHTTPRequestHandler):
    resident: Resident

    def do_GET(self) -> None:
        resident = self.resident
        pages: dict[str, Callable[[], tuple[str, bytes]]] = {
            "/": lambda: ("text/html", status_page(resident.report, trouble=resident.trouble).encode()),
            "/metrics": lambda: ("text/plain; version=0.0.4", resident.metrics.text()),
            "/drift.json": lambda: ("application/json", to_json(resident.report).encode()),
        }
        path = self.path.partition("?")[0]
        if path == "/health":
            status = HTTPStatus.SERVICE_UNAVAILABLE if resident.trouble else HTTPStatus.OK
            self._answer(status, "text/plain", (resident.trouble or "ok").encode())
        elif path in pages:
            self._answer(HTTPStatus.OK, *pages[path]())
        else:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"There is /, /metrics, /drift.json and /health.")

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", f"{kind}; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Refresh", str(_REFRESH_SECONDS))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is http.server's
        logger.debug(format, *args)
