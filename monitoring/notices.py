"""What people are told of an alarm: one message a task, as plain text, once for each kind that drifts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mtlops.drift.detector import DRIFTED
from mtlops.drift.profile import ENCODER
from mtlops.watch.state import State
from mtlops.watch.streams import TRAFFIC

NUM_EXAMPLES = 3
_CHARACTERS = 200
_CANDIDATES = 200

_ALL_TASKS = "The texts of requests for all tasks are others than before."
_LOOK = "Tasks that suffer from it alarm by themselves; if none does within some windows, nothing needs to be done."
_UNKNOWN = "not known yet; the next window says more"


@dataclass(frozen=True)
class Notice:
    """A message.

    Attributes:
        name: the task, or `encoder`.
        keys: of the alarms that it tells of, each `task/kind/since`: they are not told again.
        title: in a line.
        body: plain text.
    """

    name: str
    keys: tuple[str, ...]
    title: str
    body: str


def new_notices(report: Mapping[str, Any], state: State) -> Iterator[Notice]:
    """Yields a message for each task with alarms that nobody was told of.

    Args:
        report: of a pass.
        state: knows what was told, and the newest texts where the log holds them.
    """
    told = {row["key"] for row in state.rows("SELECT key FROM told")}
    for name, task in report["tasks"].items():
        drifted = {kind: cell for kind, cell in task["cells"].items() if cell["level"] == DRIFTED}
        new = tuple(key for kind, cell in drifted.items() if (key := f"{name}/{kind}/{cell['since']}") not in told)
        if new:
            yield Notice(name, new, _title(report, name, drifted), _body(report, name, drifted, state))


def _title(report: Mapping[str, Any], name: str, drifted: Mapping[str, Any]) -> str:
    of = "all tasks" if name == ENCODER else name
    causes = [cause["cause"] for cause in (report["tasks"][name]["diagnosis"] or {"causes": []})["causes"]]
    return f"{report['suite']}: {of} has drifted: {', '.join(causes or drifted)}"


def _body(report: Mapping[str, Any], name: str, drifted: Mapping[str, Any], state: State) -> str:
    diagnosis = report["tasks"][name]["diagnosis"]
    causes = [f"{cause['cause']}: {cause['because']}" for cause in (diagnosis or {"causes": []})["causes"]]
    action = diagnosis["action"] if diagnosis else _LOOK
    since = min((cell["since"] for cell in drifted.values() if cell["since"]), default="this pass")
    lines = [f"Task: {name} of {report['suite']}, bundle {report['bundle']}", f"Since: {since}", "What moved:"]
    for kind, cell in drifted.items():
        lines += [f"- {kind}: {line}" for line in _moved(cell)]
    because = causes or [_ALL_TASKS if name == ENCODER else _UNKNOWN]
    lines += ["Likely cause:", *(f"- {cause}" for cause in because), f"What to do: {action}", "Examples:"]
    found = examples(state, name, drifted)
    lines += [f"- {text}" for text in found] or ["- none: the log holds no texts of it (mtlops serve --log-text)"]
    return "\n".join(lines)


def _moved(cell: Mapping[str, Any]) -> Iterator[str]:
    """What moved in a cell, the strongest column first, with its effect and interval."""
    effect = cell.get("effect")
    size = ""
    if effect and effect["value"] is not None:
        interval = f"[{effect['low']:.3g}, {effect['high']:.3g}]"
        size = f"effect {effect['value']:.3g} {interval}, floor {effect['floor']:.3g}, {cell['rows']:,} rows"
    names = cell["drifted"][:3] or ["no single column"]
    for position, name in enumerate(names):
        found = (cell["columns"].get(name) or {}).get("moved")
        said = f"{found['part']} from {found['reference']:.3g} to {found['current']:.3g}" if found else "moved"
        yield f"{name}: {said}" + (f" ({size})" if size and position == 0 else "")


def examples(state: State, name: str, drifted: Mapping[str, Any]) -> list[str]:
    """Returns some newest texts of the window that alarmed; of the label that moved, where one has."""
    windows = state.windows(name, source=TRAFFIC, limit=1)
    if not windows or set(drifted) <= {"volume", "data", "data-labels"}:
        return []
    task = "" if name == ENCODER else name
    query = (
        "SELECT text, label, time FROM answers WHERE text IS NOT NULL AND time BETWEEN ? AND ? AND (task = ? OR ? = '')"
        " UNION SELECT text, NULL, time FROM labelled WHERE time BETWEEN ? AND ? AND (task = ? OR ? = '')"
        " ORDER BY time DESC LIMIT ?"
    )
    place = (windows[0]["start"], windows[0]["stop"], task, task)
    rows = state.rows(query, *place, *place, _CANDIDATES)
    label = _label(drifted)
    some = [row["text"] for row in rows if label is not None and row["label"] == label] or [r["text"] for r in rows]
    return [_short(text) for text in dict.fromkeys(some)][:NUM_EXAMPLES]


def _label(drifted: Mapping[str, Any]) -> str | None:
    """The label whose share moved most, where there are more of it than before."""
    column = drifted.get("prediction", {}).get("columns", {}).get("prediction.label") or {}
    moved = column.get("moved")
    return str(moved["part"]) if moved and moved["current"] > moved["reference"] else None


def _short(text: str) -> str:
    words = " ".join(text.split())
    return words if len(words) <= _CHARACTERS else f"{words[:_CHARACTERS]} ..."
