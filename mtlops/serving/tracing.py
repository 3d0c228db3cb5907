"""Traces for who collects them by OpenTelemetry: of each request its time in the server, in the queue and in the model.

Spans are made when the answer is there, from times that are taken anyway. A thread of the SDK sends them over
OTLP/HTTP; what the collector does not take is dropped. The SDK reads the standard variables OTEL_*, the sampler among
them. A caller's `traceparent` (W3C Trace Context) is the parent.
"""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from mtlops import __version__
from mtlops.errors import UsageError
from mtlops.serving.questions import Answer

if TYPE_CHECKING:
    from opentelemetry.context import Context

logger = logging.getLogger(__name__)

PARENT_HEADERS = ("traceparent", "tracestate")

_SEND_SECONDS = 5
_PATH = "/v1/traces"


@dataclass(frozen=True)
class Traced:
    """A request that is over.

    Attributes:
        started_ns: since 1970, when all of it was there.
        parent: its headers `PARENT_HEADERS`, as far as it had them.
        attributes: what is said of it, by name.
        refused: the status of HTTP it was refused with; None for an answer.
    """

    started_ns: int
    parent: Mapping[str, str]
    attributes: Mapping[str, str | int | Sequence[str]]
    refused: int | None = None


class Tracing:
    """Sends spans.

    Args:
        endpoint: URL of a collector, with or without the path `/v1/traces`; None leaves it to OTEL_*.

    Raises:
        UsageError: the URL is none, or the SDK is not installed.
    """

    def __init__(self, endpoint: str | None) -> None:
        url = None if endpoint is None else _url(endpoint)
        try:
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator
        except ImportError:
            raise UsageError("opentelemetry is not installed. Install `mtlops[otel]`.") from None
        facts = {"service.version": __version__}
        if "OTEL_SERVICE_NAME" not in os.environ:
            facts["service.name"] = "mtlops"
        self._provider = TracerProvider(resource=Resource.create(facts), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=url, timeout=_SEND_SECONDS)))
        self._tracer = self._provider.get_tracer("mtlops", __version__)
        self._propagator = TraceContextTextMapPropagator()

    def add(self, traced: Traced, answer: Answer | None = None) -> None:
        """Makes the spans of a request that ends now; with its answer also those of the queue and the passes."""
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        parent = self._propagator.extract(traced.parent) if traced.parent else None
        span = self._tracer.start_span(
            "infer", parent, SpanKind.SERVER, attributes=dict(traced.attributes), start_time=traced.started_ns
        )
        if traced.refused is not None:
            span.set_attribute("mtlops.refused", traced.refused)
            span.set_status(StatusCode.ERROR)
        elif answer is not None and answer.turn is not None and span.is_recording():
            self._add_turn(set_span_in_context(span), answer)
        span.end()

    def close(self) -> None:
        """Sends what waits, for a few seconds at most, and ends."""
        self._provider.shutdown()

    def _add_turn(self, context: "Context", answer: Answer) -> None:
        turn = answer.turn
        assert turn is not None
        since_1970 = time.time_ns() - time.monotonic_ns()

        for name, begun, ended in (("queue", turn.arrived, turn.begun), ("pass", turn.begun, turn.ended)):
            span = self._tracer.start_span(name, context, start_time=since_1970 + int(begun * 1e9))
            span.end(since_1970 + int(ended * 1e9))


def is_configured() -> bool:
    """Returns whether the standard variables name a collector and do not switch traces off.

    They may be set for every process of a cluster: without the SDK, they get a warning and no traces.
    """
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    named = any(os.environ.get(name) for name in ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"))
    if not named or off:
        return False
    try:
        import opentelemetry.exporter.otlp.proto.http.trace_exporter  # noqa: F401
    except ImportError:
        logger.warning("OTEL_* name a collector, but opentelemetry is not installed: no traces. Use `mtlops[otel]`.")
        return False
    return True


def _url(endpoint: str) -> str:
    parts = urlsplit(endpoint)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise UsageError(f"--trace-endpoint {endpoint}: must be a URL, as in http://localhost:4318.")
    return endpoint if parts.path not in ("", "/") else endpoint.rstrip("/") + _PATH
