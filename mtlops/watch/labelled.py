"""Rows of production whose true labels are known: what a task can be trained with after an alarm."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlops.files import write_text
from mtlops.watch.state import State

if TYPE_CHECKING:
    from mtlops.params import Params


def write_window(path: Path, state: State, *, request: Mapping[str, Any], params: "Params") -> int:
    """Writes the labelled rows of a request's tasks and time as JSON Lines, in the suite's own columns.

    Args:
        path: file to write; none is written without rows.
        state: of the monitor.
        request: what was asked for.
        params: names the columns.

    Returns:
        The number of rows.
    """
    tasks = [name for name in request["tasks"] if name in params.suite.tasks]
    found: dict[tuple[str, int], dict[str, Any]] = {}
    start, stop = (_micros(request["data_window"][end]) for end in ("from", "to"))
    query = (
        "SELECT request, row, task, text, label FROM labelled WHERE time BETWEEN ? AND ? ORDER BY time, request, row"
    )
    for row in state.rows(query, start, stop + 1_000_000):
        if row["task"] in tasks:
            entry = found.setdefault((row["request"], row["row"]), {})
            entry |= _columns(row["task"], row["text"], label=json.loads(row["label"]), params=params)
    if found:
        write_text(path, "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in found.values()))
    return len(found)


def _columns(task: str, text: str, *, label: Any, params: "Params") -> dict[str, Any]:
    spec = params.suite.tasks[task]
    columns: dict[str, Any] = {params.inputs(task).text: text}
    if isinstance(spec.label, list):
        names: Sequence[str] = label
        return columns | {column: int(name in names) for column, name in zip(spec.label, spec.classes, strict=True)}
    return columns | {spec.label: label}


def _micros(time: str) -> int:
    return int(datetime.fromisoformat(time).timestamp() * 1e6)
