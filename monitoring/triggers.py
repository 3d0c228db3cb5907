"""What carries out a request to train again: nothing, a command on this machine, a cluster, or a webhook."""

import hashlib
import hmac
import logging
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from monitoring.attempt import processes_of, start_attempt, verdict_of
from mtlops import catalog
from mtlops.errors import PlatformError, UsageError
from mtlops.files import read_json, write_json
from mtlops.params import Params
from mtlops.registry import Entry, Registry
from mtlops.watch.labelled import write_window
from mtlops.watch.requests import STARTED, lose_started, set_status, started_requests, waiting_requests
from mtlops.watch.state import State

SECRET = "MTLOPS_WEBHOOK_SECRET"  # noqa: S105 - the name of a variable
SIGNATURE = "X-Mtlops-Signature-256"
EVENT_TYPE = "org.mtlops.retrain.requested"

_SUCCEEDED, _FAILED, _SENT, _SUPERSEDED = "succeeded", "failed", "sent", "superseded"
_SECONDS = 30.0

_ATTEMPTS = 8
"""Of a run that others kill, as a whole or a step of it, or whose platform fails. Not for ever: too little memory kills
every time, too."""

_PAUSE_SECONDS = 2.0
"""Before the second attempt; the third waits twice as long, and so on."""

_POLL_SECONDS = 0.5

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
    """Carries out requests.

    Attributes:
        resumes: whether calling it again for a request that an earlier, killed monitor had started is safe.
    """

    resumes: bool

    def __call__(self, request: Mapping[str, Any]) -> Outcome:
        """Carries out a request and returns when that is done; it never raises for what went wrong outside."""
        ...


class Local:
    """Runs the continuous pipeline on this machine, and waits for its verdict.

    The pipeline is a process of its own that outlives the monitor. Called again for a request, this waits for what is
    still at work, takes the outcome that was left, and starts another attempt only where the last one was killed or
    the platform failed; the registry's history tells whether the request was promoted already.
    """

    resumes = True

    def __init__(self, params: Params, place: Place) -> None:
        own = (sys.executable, "-m", "pipelines", "run", "--pipeline", "continuous", "--json", "--params", "{params}",
               "--window", "{window}", "--out", "{out}",
               "--tasks", "{tasks}", "--reason", "{reason}", "--registry", "{registry}")  # fmt: skip
        self._command, self._place, self._window = place.command or own, place, params.trigger.window

    def __call__(self, request: Mapping[str, Any]) -> Outcome:
        """Runs the command; its exit code, and the verdict that it prints as JSON, are the outcome."""
        command = _command(self._command, request, place=self._place, window=self._window)
        if isinstance(command, Outcome):
            return command
        attempts = self._file(request, "attempts.json")
        while True:
            self._wait(request)
            made = read_json(attempts, made_by="the monitor")["made"] if attempts.exists() else 0
            found = self._found(request, made=made)
            if found is not None:
                return found
            if made:
                time.sleep(_PAUSE_SECONDS * made)
            write_json(attempts, {"made": made + 1})
            outcome = self._file(request, "outcome.json")
            outcome.unlink(missing_ok=True)
            log = self._file(request, "log")
            logger.info("request=%s attempt=%d command=%s log=%s", request["id"], made + 1, " ".join(command), log)
            start_attempt(command, request["id"], outcome=outcome, log=log).wait()

    def _wait(self, request: Mapping[str, Any]) -> None:
        """Until nothing of this request is at work, and nobody else trains its tasks."""
        said = ""
        while True:
            busy = f"{len(found)} processes of it" if (found := processes_of(request["id"])) else self._other(request)
            if not busy:
                return
            if busy != said:
                logger.info("request=%s waits for %s", request["id"], busy)
                said = busy
            time.sleep(_POLL_SECONDS)

    def _other(self, request: Mapping[str, Any]) -> str:
        return Registry(self._place.registry).retrainers(request["tasks"]) if self._place.registry else ""

    def _found(self, request: Mapping[str, Any], *, made: int) -> Outcome | None:
        """What has become of the request; None when it is to be tried (again)."""
        log, file = str(self._file(request, "log")), self._file(request, "outcome.json")
        nothing: dict[str, Any] = {"code": None, "verdict": None, "note": ""}
        left = read_json(file, made_by="the monitor") if file.exists() else nothing
        if left["code"] == 0:
            return Outcome(left["verdict"] or _SUCCEEDED, f"{left['note']} {log}".strip())
        entry = self._promoted(request)
        if entry is not None:
            return Outcome("PROMOTE", f"champion version {entry.version}; the run was killed afterwards; {log}")
        if self._is_superseded(request):
            return Outcome(_SUPERSEDED, "another run has trained these tasks since; nothing was started")
        if left["code"] is None and left["note"]:
            return Outcome(_FAILED, left["note"])
        may_pass = left["code"] is None or left["code"] < 0 or left["code"] == PlatformError.exit_code
        if not may_pass or made >= _ATTEMPTS:
            said = "killed" if left["code"] is None else f"exit {left['code']}"
            return Outcome(_FAILED, f"{said}, attempt {made}; {log} says why")
        return None

    def _promoted(self, request: Mapping[str, Any]) -> Entry | None:
        """The champion that this request has led to: its reason begins with the request's id."""
        history = Registry(self._place.registry).history() if self._place.registry else []
        return next((entry for entry in history if entry.reason.startswith(f"{request['id']}:")), None)

    def _is_superseded(self, request: Mapping[str, Any]) -> bool:
        """Whether every task of the request has other files in the champion than when it was asked for."""
        registry = Registry(self._place.registry) if self._place.registry else None
        champion = registry.champion() if registry else None
        if registry is None or champion is None or champion.bundle_id == request["bundle"]:
            return False
        if request["bundle"] not in registry.ids():
            return True
        now, then = (registry.manifest(name)["files"] for name in (champion.bundle_id, request["bundle"]))
        return all(_of_task(now, task) != _of_task(then, task) for task in request["tasks"])

    def _file(self, request: Mapping[str, Any], ending: str) -> Path:
        return self._place.requests / f"{request['id']}.{ending}"


def _of_task(files: Mapping[str, str], task: str) -> dict[str, str]:
    return {name: digest for name, digest in files.items() if name.startswith(f"tasks/{task}/")}


class Cluster:
    """Submits the continuous pipeline to Kubeflow Pipelines; what becomes of the run is seen in the registry."""

    resumes = False

    def __init__(self, params: Params, place: Place) -> None:
        own = (sys.executable, "-m", "pipelines", "submit", "--pipeline", "continuous", "--params", "{params}",
               "--window", "{window}",
               "--tasks", "{tasks}", "--reason", "{reason}", "--registry", "{registry}")  # fmt: skip
        self._command, self._place, self._window = place.command or own, place, params.trigger.window

    def __call__(self, request: Mapping[str, Any]) -> Outcome:
        """Runs the command; it prints the id of the run."""
        command = _command(self._command, request, place=self._place, window=self._window)
        return command if isinstance(command, Outcome) else _run(command, request, place=self._place, done="submitted")


class Webhook:
    """Posts a CloudEvent, signed with a shared secret: HMAC-SHA256 of the body in a header, as GitHub does it.

    Raises:
        UsageError: there is no secret: whoever could reach the receiver could start training.
    """

    resumes = False

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

    A request is marked as started before anything is done, so that a monitor killed in between knows of it: it goes on
    with the request where the trigger can (`resumes`), and marks it as lost where nobody knows how it ended. Only the
    caller's thread touches the state.

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
            self._has_begun = True
            self._go_on(state)
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

    def _go_on(self, state: State) -> None:
        """Takes up what an earlier monitor had started, or marks it as lost."""
        if self._trigger is None or not self._trigger.resumes:
            lose_started(state)
            return
        for request in started_requests(state)[:1]:
            logger.info("request=%s was under way when the monitor stopped", request["id"])
            self._carry(request)

    def _start(self, state: State, request: Mapping[str, Any]) -> None:
        write_json(self._place.requests / f"{request['id']}.json", request)
        window = self._place.requests / f"{request['id']}.jsonl"
        rows = write_window(window, state, request=request, params=self._params)
        logger.info("request=%s tasks=%s labelled_rows=%d", request["id"], ",".join(request["tasks"]), rows)
        set_status(state, request, STARTED)
        self._carry(request)

    def _carry(self, request: Mapping[str, Any]) -> None:
        trigger = self._trigger
        assert trigger is not None
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


def _command(
    command: Sequence[str], request: Mapping[str, Any], *, place: Place, window: str | None
) -> list[str] | Outcome:  # fmt: skip
    """The command of a request; an outcome when there is nothing to train with."""
    own = place.requests / f"{request['id']}.jsonl"
    rows = window or (str(own.resolve()) if own.exists() else "")
    if not rows and "{window}" in command:
        return Outcome(_FAILED, "no labelled rows: send labels and let the log hold texts, or give trigger.window")
    values = {"tasks": ",".join(request["tasks"]), "reason": f"{request['id']}: {request['reason']}",
              "request": str(place.requests / f"{request['id']}.json"), "registry": place.registry,
              "params": str(place.params), "window": rows,
              "out": str(place.requests / f"{request['id']}-bundle")}  # fmt: skip
    return [_fill(part, values) for part in command]


def _run(command: Sequence[str], request: Mapping[str, Any], *, place: Place, done: str) -> Outcome:
    log = place.requests / f"{request['id']}.log"
    logger.info("request=%s command=%s log=%s", request["id"], " ".join(command), log)
    try:
        with log.open("wb") as file:
            found = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, check=False)  # noqa: S603
    except OSError as error:
        return Outcome(_FAILED, f"{command[0]}: {error.strerror}")
    with log.open("ab") as file:
        file.write(found.stdout)
    if found.returncode != 0:
        return Outcome(_FAILED, f"exit {found.returncode}; {log} says why")
    return Outcome(verdict_of(found.stdout)[0] or done, str(log))


def _fill(part: str, values: Mapping[str, str]) -> str:
    for name, value in values.items():
        part = part.replace(f"{{{name}}}", value)
    return part


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
