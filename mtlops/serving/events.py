"""Requests and answers as CloudEvents, as KServe's logger sends them: for who already listens to those.

CloudEvents 1.0, HTTP binary mode; type `org.kubeflow.serving.inference.request` or `.response`, the same id for both,
the Open Inference Protocol's JSON as data. https://kserve.github.io/website, "Inference Logger".
"""

import http.client
import logging
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import orjson

from mtlops.data.tokenisation import pad
from mtlops.errors import UsageError
from mtlops.serving.questions import Answer, Question, answer_tensors
from mtlops.serving.runtime import Runtime
from mtlops.serving.tensors import Tensor, as_json

REQUEST = "org.kubeflow.serving.inference.request"
RESPONSE = "org.kubeflow.serving.inference.response"

_WAITING = 1_000
_POST_SECONDS = 5.0
_COMPLAIN_EVERY = 1_000

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Exchange:
    """A question, its answer, and when it was given."""

    asked: Question
    answer: Answer
    time: datetime


class EventSender:
    """Sends events from a thread of its own; what the receiver is too slow for, or refuses, is dropped and counted.

    Args:
        url: receives them by POST; http or https.
        with_requests: requests are sent, too; they hold the texts.
        dropped: is told how many events were dropped.

    Raises:
        UsageError: the URL is none, or `cloudevents` is not installed.
    """

    def __init__(self, url: str, *, with_requests: bool, dropped: Callable[[int], None]) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--log-events {url}: must be a URL that begins with http:// or https://.")
        try:
            import cloudevents.core.v1.event  # noqa: F401
        except ImportError:
            raise UsageError("cloudevents is not installed. Install `mtlops[serve]`.") from None
        self._url, self._with_requests, self._dropped = url, with_requests, dropped
        self._waiting: queue.Queue[_Exchange | None] = queue.Queue(_WAITING)
        self._failures, self._has_failed, self._is_open = 0, False, True
        self._thread = threading.Thread(target=self._work, name="events", daemon=True)
        self._thread.start()

    def add(self, asked: Question, answer: Answer) -> None:
        """Takes note of an answer; it is sent later, or dropped when too much waits already."""
        try:
            self._waiting.put_nowait(_Exchange(asked, answer, datetime.now(UTC)))
        except queue.Full:
            self._dropped(1 + self._with_requests)

    def close(self) -> None:
        """Sends what waits, and ends; with the first event that fails, the rest is dropped."""
        self._is_open = False
        self._waiting.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (exchange := self._waiting.get()) is not None:
            if self._with_requests:
                self._send(exchange, REQUEST, _request(exchange.asked))
            self._send(exchange, RESPONSE, _response(exchange.asked, exchange.answer))

    def _send(self, exchange: _Exchange, kind: str, data: dict[str, Any]) -> None:
        if self._has_failed and not self._is_open:
            self._dropped(1)
            return
        from cloudevents.core.bindings.http import to_binary_event
        from cloudevents.core.v1.event import CloudEvent

        suite = _suite(exchange.answer.runtime)
        attributes = {
            "id": exchange.asked.id, "source": f"mtlops/{suite}", "type": kind, "specversion": "1.0",
            "time": exchange.time, "datacontenttype": "application/json", "inferenceservicename": suite,
        }  # fmt: skip
        head = to_binary_event(CloudEvent(attributes, None)).headers
        request = urllib.request.Request(self._url, orjson.dumps(data, option=orjson.OPT_SERIALIZE_NUMPY), head)  # noqa: S310 - checked above
        try:
            with urllib.request.urlopen(request, timeout=_POST_SECONDS):  # noqa: S310
                self._has_failed = False
        except (OSError, http.client.HTTPException) as error:
            self._has_failed, self._failures = True, self._failures + 1
            if self._failures % _COMPLAIN_EVERY == 1:
                reason = error.reason if isinstance(error, urllib.error.URLError) else error
                logger.warning("events: %s: not sent (%s); %d failed so far", self._url, reason, self._failures)
            self._dropped(1)


def _suite(runtime: Runtime) -> str:
    return str(runtime.bundle.manifest["suite"])


def _request(asked: Question) -> dict[str, Any]:
    if asked.texts is not None:
        inputs = [Tensor("text", "BYTES", (asked.num_rows,), asked.texts)]
    else:
        ids, mask = pad(asked.ids or ())
        inputs = [Tensor("input_ids", "INT64", ids.shape, ids), Tensor("attention_mask", "INT64", mask.shape, mask)]
    return {"id": asked.id, "inputs": [as_json(tensor) for tensor in inputs]}


def _response(asked: Question, answer: Answer) -> dict[str, Any]:
    return {
        "id": asked.id, "model_name": _suite(answer.runtime), "model_version": answer.runtime.bundle_id,
        "outputs": [as_json(tensor) for tensor in answer_tensors(asked, answer)],
    }  # fmt: skip
