"""The page of reports/training.json."""

from collections.abc import Iterator

from mtlops.report.document import Headline, Page, Payload, facts
from mtlops.report.markup import Markup, card, duration, is_number, join, number, section, table, tag, value
from mtlops.report.plots import curves, title_case


def _headline(payload: Payload) -> Headline:
    seconds = payload.get("seconds")
    took = f" in {duration(seconds)}" if is_number(seconds) else ""
    return Headline("trained", "plain", f"{len(payload['tasks'])} tasks{took} on {payload.get('device', 'unknown')}.")


def _body(payload: Payload) -> Iterator[Markup]:
    seconds, rate = payload.get("seconds"), payload.get("rows_per_second")
    yield facts(
        ("took", duration(seconds) if is_number(seconds) else None),
        ("device", payload.get("device")),
        ("rows per second", round(rate) if is_number(rate) else None),
        ("tasks", len(payload["tasks"])),
    )
    note = "The ring marks the epoch whose adapter and head were kept: the best on the validation rows."
    panels = (card(_heading(name, task), *_curves(task)) for name, task in payload["tasks"].items())
    yield section("Learning curves", tag("p", note, class_="soft"), tag("div", *panels, class_="grid"))
    heads = ["task", "epochs", "best epoch", "parameters trained", "best validation metric"]
    yield section("Tasks", table(heads, (_row(name, task, payload) for name, task in payload["tasks"].items())))
    fitted = {name: task["calibration"] for name, task in payload["tasks"].items() if task.get("calibration")}
    if fitted:
        yield section(
            "Calibration",
            tag("p", "Fitted on the validation rows (Guo et al. 2017): logits are divided by the temperature, and a "
                     "class is answered above its threshold.", class_="soft"),
            table(
                ["task", "validation rows", "temperature", "threshold", "log loss before", "after", "note"],
                (_calibration_row(name, found) for name, found in fitted.items()),
            ),
        )  # fmt: skip
    taught = {name: task["distillation"] for name, task in payload["tasks"].items() if "distillation" in task}
    if taught:
        note = (
            "Both answer the validation rows; agreement is the share of equal answers, divergence their mean distance."
        )
        heads = ["task", "rows", "teacher", "student", "change", "agreement", "divergence"]
        rows = ([name, *(found.get(key) for key in ("rows", *heads[2:]))] for name, found in taught.items())
        yield section("Beside the teacher", tag("p", note, class_="soft"), table(heads, rows))
    ignored = [[n, key, why] for n, task in payload["tasks"].items() for key, why in task.get("ignored", {}).items()]
    if ignored:
        yield section("Keys that a task does not use", table(["task", "key", "reason"], ignored))


def _calibration_row(name: str, found: Payload) -> list[object]:
    before, after = found.get("log_loss") or (None, None)
    notes = " ".join(found.get("notes") or ()) or None
    return [name, found["rows"], found["temperature"], found["threshold"], before, after, notes]


def _heading(name: str, task: Payload) -> Markup:
    best = f"best epoch {value(task.get('best_epoch'))}"
    return join((tag("span", name), tag("span", best, class_="soft")))


def _curves(task: Payload) -> Iterator[Markup]:
    rows, best = task["epochs"], task.get("best_epoch")
    if not rows:
        return
    epochs = [row.get("epoch", i + 1) for i, row in enumerate(rows)]
    groups = ({"train_loss": "training", "valid_loss": "validation"}, {task["primary"]: "validation"})
    for names, words in zip(groups, ("Loss", title_case(task["primary"])), strict=True):
        lines = {text: [row[key] for row in rows] for key, text in names.items() if all(key in row for row in rows)}
        if lines:
            yield tag("p", words, class_="soft")
            yield curves(lines, epochs=epochs, mark=best)


def _row(name: str, task: Payload, payload: Payload) -> list[object]:
    primary = task["primary"]
    best = max((row[primary] for row in task["epochs"] if primary in row), default=None)
    words = f"{title_case(primary)} {number(best)}" if best is not None else None
    parameters = payload.get("parameters", {}).get("per_task", {}).get(name)
    return [name, len(task["epochs"]), task.get("best_epoch"), parameters, words]


TRAINING = Page(
    title="Training",
    about="How each task's adapter and head learned, epoch by epoch.",
    keys=frozenset({"tasks", "device"}),
    shown=frozenset({"tasks", "device", "seconds", "rows_per_second"}),
    headline=_headline,
    body=lambda payload: list(_body(payload)),
)
