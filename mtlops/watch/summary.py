"""What the monitor knows, as one JSON value: reports/drift.json, the status page and the metrics are made from it."""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from mtlops.drift.detector import LEVELS, OK
from mtlops.watch.engine import Watch
from mtlops.watch.requests import all_requests
from mtlops.watch.selfcheck import check_reference
from mtlops.watch.state import State
from mtlops.watch.streams import LABELS, TRAFFIC, num_cells

SCHEMA_VERSION = 1
_HISTORY = 60


def summarise(watch: Watch, *, log: str) -> dict[str, Any]:
    """Returns everything that is worth showing.

    Args:
        watch: after a pass.
        log: what was read, for people.
    """
    state, references = watch.state, watch.references
    tasks = {name: _task(watch, name) for name in references.by_name}
    newest = state.fact("newest")
    return {
        "schema_version": SCHEMA_VERSION,
        "suite": references.suite,
        "bundle": references.bundle_id,
        "level": max((task["level"] for task in tasks.values()), key=LEVELS.index),
        "newest_row": None if newest is None else iso(newest),
        "budget": {
            "false_alarms_per_month": watch.drift.false_alarms_per_month,
            "cells": sum(num_cells(reference) for reference in references.by_name.values()),
            "months_to_a_false_alarm_of_a_cell": watch.judge.threshold,
        },
        "tasks": tasks,
        "warnings": [*_warnings(watch), *_learning(watch)],
        "log": {"url": log, **_log_facts(state)},
        "requests": all_requests(state),
        "events": [{**event, "time": iso(event["time"])} for event in state.events()],
    }


def iso(micros: int) -> str:
    """Returns a time in microseconds since 1970 as ISO 8601 in UTC."""
    return datetime.fromtimestamp(micros / 1e6, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _task(watch: Watch, name: str) -> dict[str, Any]:
    state = watch.state
    windows = {source: state.windows(name, source=source, limit=_HISTORY) for source in (TRAFFIC, LABELS)}
    found = state.rows("SELECT kind, cell FROM detectors WHERE name = ? ORDER BY kind", name)
    cells = {row["kind"]: {**json.loads(row["cell"])} for row in found}
    newest = {cell["kind"]: cell for source in windows for cell in _cells(windows[source])}
    for cell in cells.values():
        cell["columns"] = newest.get(cell["kind"], {}).get("columns") or _moved(cell)
        cell["since"] = None if cell["since"] is None else iso(cell["since"])
    diagnoses = [w[0].get("diagnosis") for w in windows.values() if w and w[0].get("diagnosis")]
    latest = {source: w[0] for source, w in windows.items() if w}
    level = max([OK, *(cell["level"] for cell in cells.values())], key=LEVELS.index)
    return {
        "level": level,
        "cells": cells,
        "diagnosis": watch.judge.volume_diagnosis(name) or (diagnoses[-1] if level != OK and diagnoses else None),
        "priors": latest.get(LABELS, {}).get("priors"),
        "metrics": {key: value for w in latest.values() for key, value in (w.get("metrics") or {}).items()},
        "open": {
            stream.source: {"rows": stream.rows, "bad_rows": stream.bad}
            for stream in watch.streams()
            if stream.name == name
        },
        "windows": {source: len(w) for source, w in windows.items()},
        "history": [_point(w) for w in sorted([*windows[TRAFFIC], *windows[LABELS]], key=_stop, reverse=True)],
        "decision": (state.fact("decisions") or {}).get(name),
    }


def _learning(watch: Watch) -> list[str]:
    """Tasks whose phases have no reference yet."""
    of = watch.drift.season_cycles
    return [
        f"{name}: {learnt} of {of} seasons learnt ({watch.drift.season}); until then a window is a whole season."
        for name, learnt in watch.seasons.learning().items()
    ]


def _moved(cell: Mapping[str, Any]) -> dict[str, Any]:
    """What moved in a cell that is no test of columns."""
    return {cell["kind"]: {"moved": cell["moved"], "score": cell["score"]}} if cell.get("moved") else {}


def _cells(windows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return windows[0]["cells"] if windows else []


def _stop(window: Mapping[str, Any]) -> tuple[int, int]:
    return window["stop"], window["id"]


def _point(window: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("score", "p_value", "level", "evidence")
    return {
        "window": window["id"], "source": window["source"], "from": iso(window["start"]), "to": iso(window["stop"]),
        "rows": window["rows"], "level": window["level"], "late_rows": window["late_rows"],
        "bad_rows": window["bad_rows"],
        "cells": {cell["kind"]: {key: cell.get(key) for key in keys} for cell in window["cells"]},
    }  # fmt: skip


def _log_facts(state: State) -> dict[str, Any]:
    damaged = state.rows("SELECT name, reason FROM files WHERE reason IS NOT NULL ORDER BY micros DESC LIMIT 20")
    return {
        "counts": state.counts(),
        "set_aside": [dict(row) for row in damaged],
        "num_set_aside": state.rows("SELECT count(*) AS n FROM files WHERE reason IS NOT NULL")[0]["n"],
        "lost": state.fact("lost_files") or [],
        "strange": state.fact("strange_files") or [],
        "too_late": state.fact("forgotten_files") or 0,
        "labels_waiting": state.rows("SELECT count(*) AS n FROM waiting")[0]["n"],
    }


def _warnings(watch: Watch) -> list[str]:
    """Those of the self-check, which is made once for each reference and settings."""
    drift = watch.drift
    key = json.dumps([watch.references.versions(), drift.model_dump(mode="json")], sort_keys=True)
    kept = watch.state.fact("self_check") or {}
    if kept.get("key") != key:
        threshold = watch.judge.threshold
        found = [
            warning
            for reference in watch.references.by_name.values()
            for warning in check_reference(reference, drift, threshold=threshold)
        ]
        kept = {"key": key, "warnings": found}
        watch.state.remember("self_check", kept)
    return list(kept["warnings"])
