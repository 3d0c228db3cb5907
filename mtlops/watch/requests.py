"""When drift becomes a request to train a task again, and when it does not.

A task is due when enough of its last windows violate and the newest one does (mlops-stacks' rule); then a cool-down, a
budget, requests still under way and causes that training cannot mend hold it back. Each of these leaves a sentence.
Time is the log's own, so that a log read later gives the same requests.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from mtlops.drift.detector import DRIFTED
from mtlops.drift.profile import ENCODER
from mtlops.watch.references import References
from mtlops.watch.state import State
from mtlops.watch.streams import LABELS, TRAFFIC

if TYPE_CHECKING:
    from mtlops.params import Trigger

REQUESTED, STARTED = "requested", "started"
OPEN = (REQUESTED, STARTED)
"""What is under way; every other status is an end: `recorded`, `recommended`, `succeeded`, `superseded`, `failed`,
`lost`, or the gate's verdict."""

RECORDED, LOST = "recorded", "lost"

RECOMMENDED = "recommended"
"""The whole suite should be trained again: a decision for people, so only a webhook is told."""

_WHOLE = "the texts of all tasks moved: train the whole suite again, on rows of now; not one task alone"

_HOUR = 3_600_000_000
_MONTH = 30 * 24 * _HOUR


@dataclass(frozen=True)
class Decision:
    """What is to be done about one task.

    Attributes:
        is_due: whether to ask for training.
        why: in a sentence.
        windows: the violating ones, the newest first.
    """

    is_due: bool
    why: str
    windows: tuple[Mapping[str, Any], ...] = ()


def request_training(
    state: State, references: References, *, trigger: "Trigger", log: str, sources: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """Returns a new request that names every task that is due, or None; decisions are recorded, too.

    A labelled window holds rows of one source, so tasks with another source than the first one that is due stay due,
    and are asked for by the next call.

    Where half of the tasks or more are due, two at least, and the texts that every task was asked for have moved, the
    encoder meets other texts than it was chosen for: the whole suite is recommended for training, and no task is
    trained alone. Call it inside a transaction.

    Args:
        state: of the monitor.
        references: of the champion.
        trigger: section of params.yaml.
        log: URL of the prediction log, for whoever carries the request out.
        sources: where each task's rows come from (`source` in params.yaml); none: all from one.
    """
    now = state.fact("newest") or 0
    decisions = {task.name: _decide(state, references, task=task.name, trigger=trigger) for task in references.tasks}
    due = {name: decision for name, decision in decisions.items() if decision.is_due}
    are_many = len(due) > 1 and 2 * len(due) >= len(decisions)
    is_whole = are_many and _encoder_moved(state, references, trigger=trigger)
    said = {name: f"{decision.why}; {_WHOLE}" if is_whole else decision.why for name, decision in due.items()}
    if due and sources and not is_whole:
        first = sources.get(next(iter(due)))
        later = {name for name in due if sources.get(name) != first}
        said |= {name: f"{due[name].why}; asked for next, its rows come from another source" for name in later}
        due = {name: decision for name, decision in due.items() if name not in later}
    state.remember("decisions", {name: decision.why for name, decision in decisions.items()} | said)
    if not due:
        return None
    content = _content(references, due, now=now, log=log, by=trigger.by)
    status = RECORDED if trigger.by == "none" else REQUESTED
    if is_whole:
        content |= {"scope": "suite", "tasks": sorted(decisions), "reason": f"{_WHOLE} ({content['reason']})"}
        status = REQUESTED if trigger.by == "webhook" else RECOMMENDED
    state.run("INSERT INTO requests VALUES (?, ?, ?, ?, ?)", content["id"], now, status, now, json.dumps(content))
    _count(state, content["tasks"], status)
    for name in due:
        state.tell(name, f"asked for training: {said[name]} (request {content['id']})", time=now)
    return content


def waiting_requests(state: State) -> list[dict[str, Any]]:
    """Returns the requests that nothing has been done about, the oldest first."""
    found = state.rows("SELECT content FROM requests WHERE status = ? ORDER BY time", REQUESTED)
    return [json.loads(row["content"]) for row in found]


def started_requests(state: State) -> list[dict[str, Any]]:
    """Returns the requests that are being carried out, as far as this state knows, the oldest first."""
    found = state.rows("SELECT content FROM requests WHERE status = ? ORDER BY time", STARTED)
    return [json.loads(row["content"]) for row in found]


def set_status(state: State, request: Mapping[str, Any], status: str, *, note: str = "") -> None:
    """Records what has become of a request, in a transaction of its own."""
    with state.transaction():
        now = state.fact("newest") or 0
        state.run("UPDATE requests SET status = ?, updated = ? WHERE id = ?", status, now, request["id"])
        _count(state, request["tasks"], status)
        for task in request["tasks"]:
            state.tell(task, f"request {request['id']}: {status}{f' ({note})' if note else ''}", time=now)


def lose_started(state: State) -> None:
    """Marks what an earlier, killed monitor had started: nobody knows how it ended, and it is not started twice."""
    for request in started_requests(state):
        note = "the monitor was stopped while it ran; look at its log, or reset the alarm"
        set_status(state, request, LOST, note=note)


def all_requests(state: State, limit: int = 20) -> list[dict[str, Any]]:
    """Returns the newest requests with their status, the newest first."""
    found = state.rows("SELECT status, content FROM requests ORDER BY time DESC, id LIMIT ?", limit)
    return [{**json.loads(row["content"]), "status": row["status"]} for row in found]


def violates(window: Mapping[str, Any], kinds: Sequence[str]) -> bool:
    """Returns whether one of these kinds, or the data, was drifted in a window."""
    return any(cell["level"] == DRIFTED and cell["kind"] in (*kinds, "data") for cell in window["cells"])


def _decide(state: State, references: References, *, task: str, trigger: "Trigger") -> Decision:
    version = references.by_name[task].version
    now = state.fact("newest") or 0
    found: list[dict[str, Any]] = []
    for source in (TRAFFIC, LABELS):
        windows = state.windows(task, source=source, limit=trigger.of_windows)
        last = [window for window in windows if window["version"] == version]
        bad = [window for window in last if violates(window, trigger.kinds)]
        if last and bad and bad[0]["id"] == last[0]["id"] and len(bad) >= trigger.violations:
            found += bad
    if not found:
        return Decision(is_due=False, why="no alarm that lasts")
    said = f"{len(found)} of the last windows drifted, the newest too"
    diagnosis = next((window["diagnosis"] for window in found if window.get("diagnosis")), None)
    if diagnosis and not diagnosis["retraining_helps"]:
        return Decision(is_due=False, why=f"{said}, but retraining will not help: {diagnosis['causes'][0]['because']}")
    if _encoder_is_due(state, found[0]):
        return Decision(is_due=False, why=f"{said}; waits for the window of the texts that every task was asked for")
    mine = [row for row in state.rows("SELECT time, status, content FROM requests") if _is_about(row, task)]
    if any(row["status"] in OPEN for row in mine):
        return Decision(is_due=False, why=f"{said}; a request is under way")
    newest = max((row["time"] for row in mine), default=None)
    if trigger.by == "none" and newest is not None and _since(found[0]) <= newest:
        return Decision(is_due=False, why=f"{said}; this alarm was reported on {_iso(newest)}")
    if newest is not None and now - newest < trigger.cool_down_hours * _HOUR:
        return Decision(is_due=False, why=f"{said}; cooling down after the request of {_iso(newest)}")
    recent = state.rows("SELECT count(*) AS n FROM requests WHERE time > ?", now - _MONTH)[0]["n"]
    if recent >= trigger.max_per_month:
        return Decision(is_due=False, why=f"{said}; the budget of {trigger.max_per_month} requests a month is spent")
    evidence = [window["id"] for window in found]
    if any(set(evidence) <= set(json.loads(row["content"])["windows"]) for row in mine):
        return Decision(is_due=False, why=f"{said}; these windows have led to a request already")
    return Decision(is_due=True, why=said, windows=tuple(found))


def _encoder_is_due(state: State, window: Mapping[str, Any]) -> bool:
    """Whether so many texts of all tasks wait to be judged that they may be what a task's window drifted by."""
    found = state.rows("SELECT facts FROM streams WHERE name = ? AND source = ?", ENCODER, TRAFFIC)
    return bool(found) and 2 * json.loads(found[0]["facts"])["rows"] >= max(1, window["rows"])


def _encoder_moved(state: State, references: References, *, trigger: "Trigger") -> bool:
    """Whether the texts that were asked for every task violate, by the same rule as a task's windows."""
    version = references.by_name[ENCODER].version
    windows = state.windows(ENCODER, source=TRAFFIC, limit=trigger.of_windows)
    moved = [violates(window, ("input", "embedding")) for window in windows if window["version"] == version]
    return bool(moved) and moved[0] and sum(moved) >= trigger.violations


def _since(window: Mapping[str, Any]) -> int:
    """When the oldest alarm of a window began."""
    found = [cell["since"] for cell in window["cells"] if cell["level"] == DRIFTED and cell["since"] is not None]
    return int(min(found, default=window["stop"]))


def _is_about(row: Any, task: str) -> bool:
    return task in json.loads(row["content"])["tasks"]


def _content(
    references: References, due: Mapping[str, Decision], *, now: int, log: str, by: str
) -> dict[str, Any]:  # fmt: skip
    windows = [window for decision in due.values() for window in decision.windows]
    ids = sorted(window["id"] for window in windows)
    digest = hashlib.sha256(json.dumps([references.bundle_id, sorted(due), ids]).encode()).hexdigest()[:8]
    return {
        "schema_version": 1,
        "id": f"retrain-{datetime.fromtimestamp(now / 1e6, UTC):%Y%m%dT%H%M%S}-{digest}",
        "time": _iso(now), "suite": references.suite, "bundle": references.bundle_id,
        "scope": "tasks", "tasks": sorted(due),
        "trigger": by, "reason": _reason(due),
        "data_window": {
            "log": log, "from": _iso(min(window["start"] for window in windows)),
            "to": _iso(max(window["stop"] for window in windows)),
        },
        "windows": ids,
        "evidence": {name: _evidence(decision.windows[0]) for name, decision in due.items()},
    }  # fmt: skip


def _reason(due: Mapping[str, Decision]) -> str:
    parts = []
    for name, decision in due.items():
        diagnosis = decision.windows[0].get("diagnosis")
        causes = ", ".join(cause["cause"] for cause in diagnosis["causes"]) if diagnosis else "drift"
        parts.append(f"{name}: {causes}")
    return "; ".join(parts)


def _evidence(window: Mapping[str, Any]) -> dict[str, Any]:
    cells = [cell for cell in window["cells"] if cell["level"] == DRIFTED]
    keys = ("kind", "score", "effect", "p_value", "since", "drifted", "rows")
    return {"cells": [{key: cell.get(key) for key in keys} for cell in cells], "diagnosis": window.get("diagnosis")}


def _count(state: State, tasks: Sequence[str], status: str) -> None:
    for task in tasks:
        state.count(f"retrain.{task}.{status}", 1)


def _iso(micros: int) -> str:
    return datetime.fromtimestamp(micros / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
