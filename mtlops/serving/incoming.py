"""Requests and answers of another server as CloudEvents, for the prediction log: what KServe's logger sends.

A request and its answer are two events with one id, in any order. The half that comes first waits for the other, within
bounds. What another server answered is held against the tasks of the bundle that is served here: outputs as ours
(`<task>.label` with `<task>.probabilities`, `<task>.value`), or the graph's `logits`, for which the request's pairs are
needed.

CloudEvents 1.0 over HTTP, binary or structured mode; one event a request.
"""

import asyncio
import base64
import binascii
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from mtlops.decoding import Outputs
from mtlops.serving.asgi import Request, Response, as_json, parse_json
from mtlops.serving.events import REQUEST, RESPONSE
from mtlops.serving.limits import Limits
from mtlops.serving.log_rows import Record
from mtlops.serving.questions import check_id, question
from mtlops.serving.refusal import Refusal, bad
from mtlops.serving.rest import read_envelope
from mtlops.serving.runtime import Runtime
from mtlops.serving.tensors import Tensor
from mtlops.tasks import Task

logger = logging.getLogger(__name__)

WAITING_SECONDS = 60.0
"""That a half waits for the other."""

WAITING_BYTES = 64 << 20
"""Of all halves that wait; beyond it the oldest wait no longer."""

_STRUCTURED = b"application/cloudevents+json"
_PAIRS = ("pair_row", "pair_task")
_BUNDLE_ID_DIGITS = 16


@dataclass(frozen=True)
class Event:
    """One half of an exchange.

    Attributes:
        id: of the request.
        is_answer: it is what came back.
        body: the protocol's JSON.
    """

    id: str
    is_answer: bool
    body: bytes


@dataclass(frozen=True)
class _Asked:
    """What a request held: N texts, where it held texts; (P,) rows and tasks of its pairs, where it held pairs."""

    texts: Sequence[str] | None
    num_rows: int
    pairs: tuple[NDArray[np.int64], NDArray[np.int64]] | None


@dataclass(frozen=True)
class _Waiting:
    event: Event
    timer: asyncio.TimerHandle


class Incoming:
    """Joins halves and hands whole exchanges on.

    Args:
        runtime: says what is served at the moment.
        limits: of a request.
        keep: takes a record; returns whether there was room.
        count: is told what became of an event: `logged`, `alone` (an answer without its request), `unmatched` (a
            request without an answer), `refused`, `dropped`.
    """

    def __init__(
        self,
        runtime: Callable[[], Runtime],
        limits: Limits,
        *,
        keep: Callable[[Record], bool],
        count: Callable[[str], None],
    ) -> None:
        self._runtime, self._limits, self._keep, self._count = runtime, limits, keep, count
        self._waiting: dict[str, _Waiting] = {}
        self._num_bytes = 0

    def take(self, event: Event) -> str:
        """Takes an event, in the event loop; returns `waiting`, or what became of it.

        Raises:
            Refusal: it, or its other half, is malformed or does not fit what is served.
        """
        waiting = self._waiting.get(event.id)
        if waiting is not None and waiting.event.is_answer != event.is_answer:
            self._remove(event.id)
            return self._join(event, waiting.event) if event.is_answer else self._join(waiting.event, event)
        if waiting is not None:
            self._end(event.id)
        self._check(event)
        self._num_bytes += len(event.body)
        while self._num_bytes > WAITING_BYTES and self._waiting:
            self._end(next(iter(self._waiting)))
        timer = asyncio.get_running_loop().call_later(WAITING_SECONDS, self._end, event.id)
        self._waiting[event.id] = _Waiting(event, timer)
        return "waiting"

    async def handle(self, request: Request) -> Response:
        """Answers POST /v2/events. Raises Refusal like `take`."""
        if request.method != "POST":
            raise Refusal(405, f"{request.path} takes POST, not {request.method}.")
        event = read_event(request, await request.body(self._limits.body_bytes))
        return as_json({"id": event.id, "outcome": self.take(event)}, status=202)

    def close(self) -> None:
        """Waits no longer: answers are logged as they are."""
        for event_id in list(self._waiting):
            self._end(event_id)

    def _check(self, event: Event) -> None:
        """Refuses at once what could not be read later, when nobody is there to be told."""
        with _counted(self._count):
            if event.is_answer:
                _tensors(event.body)
            else:
                _asked(event.body, self._runtime(), self._limits)

    def _remove(self, event_id: str) -> Event:
        waiting = self._waiting.pop(event_id)
        waiting.timer.cancel()
        self._num_bytes -= len(waiting.event.body)
        return waiting.event

    def _end(self, event_id: str) -> None:
        """The other half did not come."""
        event = self._remove(event_id)
        if not event.is_answer:
            self._count("unmatched")
            return
        try:
            self._join(event, None)
        except Refusal as refusal:
            logger.warning("events: answer %s without its request: %s", event.id, refusal.reason)

    def _join(self, answer: Event, request: Event | None) -> str:
        with _counted(self._count):
            runtime = self._runtime()
            asked = None if request is None else _asked(request.body, runtime, self._limits)
            record = _record(answer, asked, runtime)
        outcome = "dropped" if not self._keep(record) else "alone" if asked is None else "logged"
        self._count(outcome)
        return outcome


def read_event(request: Request, body: bytes) -> Event:
    """Returns the event of an HTTP request. Raises Refusal when it is none, or of another type."""
    if request.headers.get(b"content-type", b"").startswith(_STRUCTURED):
        attributes = parse_json(body)
        if not isinstance(attributes, dict):
            raise bad("the body must be a CloudEvent: a JSON object with id, type and data.")
        body = _data(attributes)
    else:
        attributes = {
            name.removeprefix(b"ce-").decode("latin-1"): value.decode("latin-1")
            for name, value in request.headers.items()
            if name.startswith(b"ce-")
        }
    kind, event_id = attributes.get("type"), attributes.get("id")
    if kind not in (REQUEST, RESPONSE):
        raise bad(f"type {str(kind)[:100]!r}: a CloudEvent of type {REQUEST} or {RESPONSE} is taken, one at a time.")
    if not event_id:
        raise bad("id: the event has none; a request and its answer are joined by it.")
    return Event(check_id(event_id), kind == RESPONSE, body)


@contextlib.contextmanager
def _counted(count: Callable[[str], None]) -> Iterator[None]:
    try:
        yield
    except Refusal:
        count("refused")
        raise


def _data(attributes: Mapping[str, Any]) -> bytes:
    if "data_base64" not in attributes:
        return orjson.dumps(attributes.get("data"))
    try:
        return base64.b64decode(attributes["data_base64"], validate=True)
    except (binascii.Error, TypeError, ValueError):
        raise bad("data_base64: is not base64.") from None


def _asked(body: bytes, runtime: Runtime, limits: Limits) -> _Asked:
    envelope = read_envelope(body, None, limits)
    by_name = {tensor.name: tensor for tensor in envelope.inputs}
    inputs = [tensor for tensor in envelope.inputs if tensor.name not in _PAIRS]
    found = question(runtime, limits, inputs=inputs, outputs=(), parameters={}, request_id=None)
    if not by_name.keys() & set(_PAIRS):
        return _Asked(found.texts, found.num_rows, None)
    pairs = [by_name.get(name) for name in _PAIRS]
    if any(tensor is None or tensor.datatype == "BYTES" or len(tensor.shape) != 1 for tensor in pairs):
        raise bad("inputs 'pair_row' and 'pair_task': must be INT64 [P], both of them.")
    rows, tasks = (np.asarray(tensor.values, dtype=np.int64) for tensor in pairs if tensor is not None)
    if len(rows) != len(tasks):
        raise bad(f"inputs 'pair_row' and 'pair_task': have {len(rows)} and {len(tasks)} elements.")
    return _Asked(found.texts, found.num_rows, (rows, tasks))


def _tensors(body: bytes) -> tuple[str, dict[str, Tensor]]:
    """The version of the model and the outputs of an answer; numbers as float32 of their shape."""
    answer = parse_json(body, where="the event's data")
    outputs = answer.get("outputs") if isinstance(answer, dict) else None
    if not isinstance(outputs, list) or not outputs:
        raise bad("the event's data: 'outputs' must be a list of at least one output, as the protocol's v2 has it.")
    found = {}
    for output in outputs:
        name, shape, data = (output.get(key) if isinstance(output, dict) else None for key in ("name", "shape", "data"))
        if not isinstance(name, str) or not isinstance(shape, list) or not isinstance(data, list):
            raise bad("outputs: every output needs name, shape and data (JSON, not raw bytes).")
        if output.get("datatype") == "BYTES":
            if not all(isinstance(text, str) for text in data):
                raise bad(f"output {name!r}: data of BYTES must be strings.")
            found[name] = Tensor(name, "BYTES", (len(data),), data)
            continue
        try:
            values = np.asarray(data, dtype=np.float32).reshape(shape)
        except (ValueError, TypeError, OverflowError):
            raise bad(f"output {name!r}: data are not the numbers of shape {str(shape)[:60]}.") from None
        if not np.isfinite(values).all():
            raise bad(f"output {name!r}: a number is not finite.")
        found[name] = Tensor(name, "FP32", values.shape, values)
    return str(answer.get("model_version") or ""), found


def _record(answer: Event, asked: _Asked | None, runtime: Runtime) -> Record:
    version, found = _tensors(answer.body)
    if len(version) == _BUNDLE_ID_DIGITS and version != runtime.bundle_id:
        raise Refusal(409, f"bundle {version!r} answered; here {runtime.bundle_id} is served and says what tasks mean.")
    outputs = _of_pairs(found["logits"], asked, runtime) if "logits" in found else _of_tasks(found, runtime)
    counts = {len(next(v for v in vars(one).values() if v is not None)) for one in outputs.values()}
    if len(counts) != 1 or (asked is not None and asked.num_rows not in counts):
        raise bad("outputs: the number of rows is not that of the request, the same for every task.")
    (rows,) = counts
    texts = None if asked is None else asked.texts
    return Record(datetime.now(UTC), answer.id, "champion", runtime, outputs, texts, None, rows * len(outputs))


def _of_tasks(found: Mapping[str, Tensor], runtime: Runtime) -> dict[str, Outputs]:
    outputs = {task.name: _of_task(found, task) for task in runtime.tasks}
    answered = {name: one for name, one in outputs.items() if one is not None}
    if not answered:
        names = ", ".join(task.name for task in runtime.tasks)
        raise bad(f"outputs: none is of a task that is served here ({names}): <task>.label and <task>.probabilities.")
    return answered


def _of_task(found: Mapping[str, Tensor], task: Task) -> Outputs | None:
    if task.per_word:
        if f"{task.name}.tags" in found:
            raise bad(
                f"output '{task.name}.tags': the answers of tasks that tag words are not taken from other servers."
            )
        return None
    if task.kind == "regression":
        value = found.get(f"{task.name}.value")
        return None if value is None else Outputs(values=_numbers(value, columns=None))
    labels, shares = found.get(f"{task.name}.label"), found.get(f"{task.name}.probabilities")
    if labels is None and shares is None:
        return None
    if labels is None or shares is None or labels.datatype != "BYTES":
        raise bad(f"outputs of {task.name!r}: both label (BYTES) and probabilities (FP32) are needed.")
    probabilities = _numbers(shares, columns=len(task.classes))
    if len(labels.values) != len(probabilities):
        raise bad(f"outputs of {task.name!r}: {len(labels.values)} labels for {len(probabilities)} rows.")
    return Outputs(probabilities, _labels(labels.values, task))


def _numbers(tensor: Tensor, *, columns: int | None) -> NDArray[np.float32]:
    """(N,), or (N, columns)."""
    values = np.asarray(tensor.values)
    if tensor.datatype == "BYTES" or not len(values) or values.shape[1:] != (() if columns is None else (columns,)):
        wanted = "[N]" if columns is None else f"[N, {columns}]"
        raise bad(f"output {tensor.name!r}: must be FP32 {wanted}, not {tensor.datatype} {list(tensor.shape)}.")
    return values


def _labels(texts: Sequence[str] | NDArray[Any], task: Task) -> NDArray[np.int64] | NDArray[np.bool_]:
    if task.kind == "multilabel":
        where = f"output '{task.name}.label'"
        named = [parse_json(text.encode(), where=where) for text in texts]
        rows = [names if isinstance(names, list) else [names] for names in named]
    else:
        rows = [[text] for text in texts]
    if unknown := [name for names in rows for name in names if name not in task.classes]:
        raise bad(f"output '{task.name}.label': {unknown[0]!r}: the classes are {', '.join(task.classes)}.")
    if task.kind == "multilabel":
        return np.asarray([[name in names for name in task.classes] for names in rows], dtype=np.bool_)
    return np.asarray([task.classes.index(names[0]) for names in rows], dtype=np.int64)


def _of_pairs(logits: Tensor, asked: _Asked | None, runtime: Runtime) -> dict[str, Outputs]:
    """The answers of the graph itself, as Triton serves it: logits (P, C) of the request's pairs."""
    if asked is None or asked.pairs is None:
        raise bad("output 'logits': the request that came before it, with pair_row and pair_task, says whose they are.")
    values, (rows, tasks) = np.asarray(logits.values), asked.pairs
    if logits.datatype == "BYTES" or values.ndim != 2 or len(values) != len(rows) or not len(rows):
        raise bad(f"output 'logits': must be FP32 [{len(rows)}, C], not {logits.datatype} {list(logits.shape)}.")
    found = {}
    for position in dict.fromkeys(tasks.tolist()):
        if not 0 <= position < len(runtime.tasks):
            raise bad(f"input 'pair_task': {position}; the tasks here go from 0 to {len(runtime.tasks) - 1}.")
        of_task = tasks == position
        if rows[of_task].tolist() != list(range(asked.num_rows)):
            raise bad(f"input 'pair_row': task {position} must have every row once, in order, to be logged.")
        if runtime.tasks[position].per_word:
            raise bad(f"input 'pair_task': task {position} tags words: its answers are not taken from other servers.")
        if values.shape[1] < runtime.tasks[position].num_outputs:
            raise bad(f"output 'logits': has {values.shape[1]} columns, too few for task {position}.")
        found[runtime.tasks[position].name] = runtime.decode(position, values[of_task])
    return found
