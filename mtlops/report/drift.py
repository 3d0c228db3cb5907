"""The page of reports/drift.json, which `python -m monitoring run` serves as its status page, too."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtlops.report.document import Headline, Page, Payload, banner, facts, reasons
from mtlops.report.markup import Markup, card, chip, details, join, number, section, table, tag, value

_TONES = {"ok": "good", "suspected": "careful", "drifted": "bad"}
_WIDTH, _HEIGHT = 240.0, 56.0


def _headline(payload: Payload) -> Headline:
    level = payload["level"]
    bad = [name for name, task in payload["tasks"].items() if task["level"] == level]
    if level == "ok":
        judged = sum(sum(task["windows"].values()) for task in payload["tasks"].values())
        return Headline("ok", "good", "Nothing drifted." if judged else "No window is full yet.")
    said = [f"{name}: {_causes(payload['tasks'][name])}" for name in bad]
    return Headline(level, _TONES[level], "; ".join(said))


def _causes(task: Payload) -> str:
    if not task["diagnosis"]:
        return ", ".join(kind for kind, cell in task["cells"].items() if cell["level"] != "ok")
    return ", ".join(cause["cause"] for cause in task["diagnosis"]["causes"])


def _body(payload: Payload) -> Iterator[Markup]:
    head = _headline(payload)
    yield banner(head.word, head.tone, head.text)
    counts, log = payload["log"]["counts"], payload["log"]
    yield facts(
        ("bundle", payload["bundle"]), ("newest row", payload["newest_row"]), ("rows read", counts.get("rows", 0)),
        ("labels joined", counts.get("labels_joined", 0)), ("files set aside", log["num_set_aside"]),
        ("false alarms a month, at most", payload["budget"]["false_alarms_per_month"]),
    )  # fmt: skip
    yield reasons(payload["warnings"])
    for name, task in payload["tasks"].items():
        if task["cells"] or name != "encoder":
            yield section(f"Task {name}" if name != "encoder" else "All tasks together", *_task(task))
    if payload["requests"]:
        heads = ["request", "tasks", "status", "why", "rows from", "rows to"]
        yield section("Requests to train again", table(heads, map(_request, payload["requests"])))
    yield section("The log", _log(log))
    if payload["events"]:
        rows = [[event["time"], event["name"], event["text"]] for event in payload["events"]]
        yield section("What happened", table(["time", "task", "what"], rows))


def _task(task: Payload) -> Iterator[Markup]:
    yield chip(task["level"], _TONES[task["level"]])
    diagnosis = task["diagnosis"]
    if diagnosis:
        lines = [f"{cause['cause']}: {cause['because']}" for cause in diagnosis["causes"]]
        yield reasons([*lines, diagnosis["action"]])
    if task["decision"]:
        yield tag("p", f"Training: {task['decision']}.", class_="soft")
    waiting = ", ".join(f"{source} {found['rows']:,}" for source, found in task["open"].items())
    yield tag("p", f"Rows in the open windows: {waiting}." if waiting else "", class_="soft")
    if not task["cells"]:
        yield tag("p", "No window is full yet.")
        return
    heads = ["kind", "level", "effect / floor", "p of the window", "evidence", "since", "what moved"]
    yield table(heads, [_cell(kind, cell) for kind, cell in task["cells"].items()])
    if task["metrics"]:
        yield _metrics(task["metrics"])
    if task["history"]:
        yield details(f"Last {len(task['history'])} windows", _sparks(task["history"]), _history(task["history"]))


def _cell(kind: str, cell: Payload) -> list[object]:
    level = chip(cell["level"], _TONES[cell["level"]]) if cell["verdict"] != "insufficient data" else "too few rows"
    evidence = f"{min(cell['evidence'], 1.0):.0%} of an alarm" if cell["evidence"] else "none"
    return [kind, level, cell["score"], cell["p_value"], evidence, cell["since"], join(_moved(cell))]


def _moved(cell: Payload) -> Iterator[object]:
    for column in cell["drifted"][:3]:
        found = cell["columns"].get(column, {})
        part = found.get("moved")
        if part:
            said = f"{column}: {part['part']} from {number(part['reference'])} to {number(part['current'])}"
        else:
            said = column
        yield tag("div", said)


def _metrics(metrics: Mapping[str, Mapping[str, float]]) -> Markup:
    names = list(dict.fromkeys(name for found in metrics.values() for name in found))
    order = [kind for kind in ("reference", "estimated", "realised") if kind in metrics]
    return table(["metric", *order], [[name, *(metrics[kind].get(name) for kind in order)] for name in names])


def _history(points: Sequence[Payload]) -> Markup:
    heads = ["window", "from", "to", "of", "rows", "late", "not usable", "level"]
    return table(heads, [
        [str(p["window"]), p["from"], p["to"], p["source"], p["rows"], p["late_rows"], sum(p["bad_rows"].values()),
         chip(p["level"], _TONES[p["level"]])] for p in points
    ])  # fmt: skip


def _sparks(points: Sequence[Payload]) -> Markup:
    """A line for each kind: effect over floor of each window, the oldest left; the dotted line is the floor."""
    kinds = dict.fromkeys(kind for p in points for kind in p["cells"] if kind != "data")
    cards = []
    for kind in kinds:
        scores = [p["cells"][kind]["score"] or 0.0 for p in reversed(points) if kind in p["cells"]]
        if len(scores) > 1:
            cards.append(card(kind, _spark(scores, name=kind)))
    return tag("div", *cards, class_="grid")


def _spark(scores: Sequence[float], *, name: str) -> Markup:
    top = max(2.0, *scores)
    places = [(i * _WIDTH / (len(scores) - 1), _HEIGHT - 2 - (_HEIGHT - 4) * s / top) for i, s in enumerate(scores)]
    floor = _HEIGHT - 2 - (_HEIGHT - 4) / top
    said = f"effect over floor in {len(scores)} windows, from {scores[0]:.2f} to {scores[-1]:.2f}"
    return tag(
        "svg", tag("title", f"{name}: {said}"),
        tag("line", x1=0, x2=_WIDTH, y1=f"{floor:.1f}", y2=f"{floor:.1f}", stroke="currentColor",
            stroke_dasharray="2 3", opacity="0.5"),
        tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in places), fill="none", stroke="currentColor",
            stroke_width="1.5"),
        tag("circle", cx=f"{places[-1][0] - 3:.1f}", cy=f"{places[-1][1]:.1f}", r="2.5", fill="currentColor"),
        viewBox=f"0 0 {_WIDTH} {_HEIGHT}", role="img", aria_label=said,
    )  # fmt: skip


def _request(request: Payload) -> list[object]:
    window = request["data_window"]
    return [request["id"], ", ".join(request["tasks"]), request["status"], request["reason"], window["from"],
            window["to"]]  # fmt: skip


def _log(log: Payload) -> Markup:
    rows: list[list[object]] = [[name.replace("_", " "), count] for name, count in log["counts"].items()]
    rows += [
        ["labels that wait for their answer", log["labels_waiting"]],
        ["files that came too late", log["too_late"]],
    ]
    bad: list[Any] = [f"{file['name']}: {file['reason']}" for file in log["set_aside"]]
    bad += [f"{gap['kind']} {gap['from']} to {gap['to']} of writer {gap['writer']}: missing" for gap in log["lost"]]
    bad += [f"{name}: not a file of the log" for name in log["strange"]]
    return join((tag("p", value(log["url"])), table(["what", "number"], rows), reasons(bad)))


DRIFT = Page(
    title="Drift",
    about="What production looks like beside what each task was trained and tested on.",
    keys=frozenset({"tasks", "budget", "log"}),
    shown=frozenset({"level", "bundle", "newest_row", "budget", "tasks", "warnings", "log", "requests", "events"}),
    headline=_headline,
    body=lambda payload: list(_body(payload)),
)
