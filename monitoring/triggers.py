"""What carries out a request to train again: nothing, a command on this machine, a cluster, or a webhook."""

import hashlib
import hmac
import json
import logging
import os
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from mtlops import catalog
from mtlops.errors import UsageError
from mtlops.files import write_json
from mtlops.params import Params
from mtlops.watch.labelled import write_window
from mtlops.watch.requests import STARTED, lose_started, set_status, waiting_requests
from mtlops.watch.state import State

SECRET = "MTLOPS_WEBHOOK_SECRET"  # noqa: S105 - the name of a variable
SIGNATURE = "X-Mtlops-Signature-256"
EVENT_TYPE = "org.mtlops.retrain.requested"

_SUCCEEDED, _FAILED, _SENT = "succeeded", "failed", "sent"
_SECONDS = 30.0
_VERDICTS = ("PROMOTE", "HOLD", "REJECT")

logger = logging.getLogger("mtlops.monitoring")


@dataclass(frozen=True)
class Outcome:
    """What became of a request: a status, and a sentence for people."""

    status: str
    note: str = ""


@dataclass(frozen=True)
class Place:
    """Where a trigger works.

    Attributes:
        params: file params.yaml.
        registry: URL.
        requests: folder in which each request is a JSON file.
        command: what to run instead of the pipelines' own command line; `{tasks}`, `{reason}`, `{request}`,
            `{window}`, `{registry}`, `{params}` and `{out}` (a folder for the bundle) stand for the request's. No
            shell is involved.
    """

    params: Path
    registry: str
    requests: Path
    command: tuple[str, ...] = ()


class Trigger(Protocol):
    """Carries out requests."""

    def __call__(self, request: Mapping[str, Any]) -> Outcome:
        """Carries out a request and returns when that is done; it never raises for what went wrong outside."""
        ...


class Local:
    """Runs the continuous pipeline on this machine, and waits for its verdict."""

    def __init__(self, params: Params, place: Place) -> None:
        own = (sys.executable, "-m", "pipelines", "run", "--pipeline", "continuous", "--json", "--params", "{params}",
               "--window", "{window}", "--out", "{out}",
               "--tasks", "{tasks}", "--reason", "{reason}", "--registry", "{registry}")  # fmt: skip
        self._command, self._place, self._window = place.command or own, place, params.trigger.window

    def __call__(self, request: Mapping[str, Any]) -> Outcome:
        """Runs the command; its exit code, and the verdict that it prints as JSON, are the outcome."""
        return _run(self._command, request, place=self._place, window=self._window, done=_SUCCEEDED)


class Cluster:
    """Submits the continuous pipeline to Kubeflow Pipelines; what becomes of the run is seen in the registry."""

    def __init__(self, params: Params, place: Place) -> None:
        own = (sys.executable, "-m", "pipelines", "submit", "--pipeline", "continuous", "--params", "{params}",
               "--window", "{window}",
               "--tasks", "{tasks}", "--reason", "{reason}", "--registry", "{registry}")  # fmt: skip
        self._command, self._place, self._window = place.command or own, place, params.trigger.window

    def __call__(self, request: Mapping[str, Any]) -> Outcome:
        """Runs the command; it prints the id of the run."""
        return _run(self._command, request, place=self._place, window=self._window, done="submitted")


class Webhook:
    """Posts a CloudEvent, signed with a shared secret: HMAC-SHA256 of the body in a header, as GitHub does it.

    Raises:
        UsageError: there is no secret: whoever could reach the receiver could start training.
    """

    def __init__(self, params: Params, place: Place) -> None:
        assert params.trigger.webhook is not None
        self._url, self._secret = params.trigger.webhook, read_secret()

    def __call__(self, request: Mapping[str, Any]) -> Outcome:
        """Posts the request; the receiver tells repeated ones by the event's id."""
        from cloudevents.core.bindings.http import to_structured_event
        from cloudevents.core.formats.json import JSONFormat
        from cloudevents.core.v1.event import CloudEvent

        attributes = {"id": request["id"], "source": f"mtlops/{request['suite']}", "type": EVENT_TYPE,
                      "specversion": "1.0", "datacontenttype": "application/json"}  # fmt: skip
        message = to_structured_event(CloudEvent(attributes, dict(request)), JSONFormat())
        headers = {**message.headers, SIGNATURE: sign(message.body, self._secret)}
        return _post(self._url, message.body, headers)


def open_trigger(params: Params, place: Place) -> Trigger | None:
    """Returns the trigger that `trigger.by` names; None for `none`.

    Raises:
        UsageError: it cannot work as it is set up.
    """
    entry = catalog.TRIGGERS[params.trigger.by]
    return catalog.load(entry.code)(params, place) if entry.code else None


class Carrier:
    """Carries out the requests that wait, one at a time, beside the passes of the monitor.

    A request is marked as started before anything is done, so that a monitor killed in between never starts it twice.
    Only the caller's thread touches the state.

    Args:
        trigger: what carries a request out; None for nobody.
        place: where it works.
        params: name the columns of the labelled rows that are handed over.
    """

    def __init__(self, trigger: Trigger | None, place: Place, *, params: Params) -> None:
        self._trigger, self._place, self._params = trigger, place, params
        self._request: Mapping[str, Any] | None = None
        self._outcome: list[Outcome] = []
        self._thread: threading.Thread | None = None
        self._has_begun = False

    def step(self, state: State) -> Outcome | None:
        """Records what has ended, starts what waits; returns the outcome that was recorded, if any."""
        if not self._has_begun:
            lose_started(state)
            self._has_begun = True
        ended = self._end(state)
        if self._thread is None and self._trigger is not None:
            for request in waiting_requests(state)[:1]:
                self._start(state, request)
        return ended

    def finish(self, state: State) -> list[Outcome]:
        """Carries out everything that waits, and returns what became of it."""
        outcomes = [self.step(state)]
        while self._thread is not None:
            self._thread.join()
            outcomes.append(self.step(state))
        return [outcome for outcome in outcomes if outcome is not None]

    def _start(self, state: State, request: Mapping[str, Any]) -> None:
        trigger = self._trigger
        assert trigger is not None
        write_json(self._place.requests / f"{request['id']}.json", request)
        window = self._place.requests / f"{request['id']}.jsonl"
        rows = write_window(window, state, request=request, params=self._params)
        logger.info("request=%s tasks=%s labelled_rows=%d", request["id"], ",".join(request["tasks"]), rows)
        set_status(state, request, STARTED)
        self._request, self._outcome = request, []

        def work() -> None:
            try:
                self._outcome.append(trigger(request))
            except Exception as error:  # the thread must not end without an outcome
                logger.exception("request=%s", request["id"])
                self._outcome.append(Outcome(_FAILED, f"{type(error).__name__}: {error}"))

        self._thread = threading.Thread(target=work, daemon=True, name=str(request["id"]))
        self._thread.start()

    def _end(self, state: State) -> Outcome | None:
        if self._thread is None or self._thread.is_alive():
            return None
        self._thread.join()
        self._thread = None
        assert self._request is not None
        outcome = self._outcome[0]
        logger.info("request=%s status=%s %s", self._request["id"], outcome.status, outcome.note)
        set_status(state, self._request, outcome.status, note=outcome.note)
        return outcome


def sign(body: bytes, secret: bytes) -> str:
    """Returns the signature of a body: `sha256=` and 64 hex digits."""
    return f"sha256={hmac.new(secret, body, hashlib.sha256).hexdigest()}"


def read_secret() -> bytes:
    """Returns the shared secret from the environment, or from the file that the environment names.

    Raises:
        UsageError: there is none, or it is empty.
    """
    file = os.environ.get(f"{SECRET}_FILE")
    try:
        secret = Path(file).read_text(encoding="utf-8").strip() if file else os.environ.get(SECRET, "")
    except OSError as error:
        raise UsageError(f"{SECRET}_FILE: {file}: cannot be read ({error.strerror}).") from None
    if not secret:
        raise UsageError(f"trigger.by webhook: needs a shared secret in {SECRET}, or in a file {SECRET}_FILE.")
    return secret.encode()


def _run(
    command: Sequence[str], request: Mapping[str, Any], *, place: Place, window: str | None, done: str
) -> Outcome:  # fmt: skip
    own = place.requests / f"{request['id']}.jsonl"
    rows = window or (str(own.resolve()) if own.exists() else "")
    if not rows and "{window}" in command:
        return Outcome(_FAILED, "no labelled rows: send labels and let the log hold texts, or give trigger.window")
    values = {"tasks": ",".join(request["tasks"]), "reason": f"{request['id']}: {request['reason']}",
              "request": str(place.requests / f"{request['id']}.json"), "registry": place.registry,
              "params": str(place.params), "window": rows,
              "out": str(place.requests / f"{request['id']}-bundle")}  # fmt: skip
    filled = [_fill(part, values) for part in command]
    log = place.requests / f"{request['id']}.log"
    logger.info("request=%s command=%s log=%s", request["id"], " ".join(filled), log)
    try:
        with log.open("wb") as file:
            found = subprocess.run(filled, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, check=False)  # noqa: S603
    except OSError as error:
        return Outcome(_FAILED, f"{filled[0]}: {error.strerror}")
    with log.open("ab") as file:
        file.write(found.stdout)
    if found.returncode != 0:
        return Outcome(_FAILED, f"exit {found.returncode}; {log} says why")
    return Outcome(_verdict(found.stdout) or done, str(log))


def _fill(part: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        part = part.replace(f"{{{name}}}", value)
    return part


def _verdict(output: bytes) -> str | None:
    """The verdict in the last line, when that is a JSON object with one."""
    lines = output.decode("utf-8", "replace").strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None
    verdict = found.get("verdict") if isinstance(found, dict) else None
    return verdict if verdict in _VERDICTS else None


def _post(url: str, body: bytes, headers: Mapping[str, str]) -> Outcome:
    asked = urllib.request.Request(url, data=body, headers=dict(headers), method="POST")  # noqa: S310 - checked below
    if not url.startswith(("http://", "https://")):
        return Outcome(_FAILED, f"{url}: is no http or https address")
    try:
        with urllib.request.urlopen(asked, timeout=_SECONDS) as answer:  # noqa: S310
            return Outcome(_SENT, f"{url} answered {answer.status}")
    except urllib.error.HTTPError as error:
        return Outcome(_FAILED, f"{url} answered {error.code}")
    except OSError as error:
        return Outcome(_FAILED, f"{url}: {error}")
