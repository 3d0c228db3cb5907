"""What the evaluation page shows beyond a task's scores: champion, slices, robustness, behaviour, twin, drift."""

from collections.abc import Iterator, Mapping
from typing import Any

from mtlops.report.document import Payload
from mtlops.report.markup import Markup, card, chip, details, join, number, section, table, tag
from mtlops.report.plots import Estimate, forest, title_case

Tasks = Mapping[str, Any]

_MOST_SLICES = 12
_DRIFT_TONES = {"drifted": "careful", "stable": "good", "insufficient data": "plain"}
_DRIFT_SIDES = {"train": "against the training rows", "reference": "against the champion's reference profile"}


def champion_sections(payload: Payload) -> Iterator[Markup]:
    """Yields what became better or worse than the champion, on the same rows; nothing without a champion."""
    champion = payload.get("champion")
    if not champion:
        return
    tasks = {name: t for name, t in payload["tasks"].items() if t.get("champion")}
    gate = payload["gate"]
    yield section(
        "Against the champion",
        note(
            f"The champion, bundle {champion['bundle_id']}, answered the same test rows with its own graph. Both were "
            f"resampled together, so the interval of the change is that of the difference. Level {gate['alpha']}, "
            f"corrected over all comparisons (Holm)."
        ),
        table(
            ["task", "metric", "champion", "this model", "change", "p better", "p worse", ""],
            (_change_row(name, task) for name, task in tasks.items()),
        ),
        note(f"Not in this model: {', '.join(champion['removed'])}.") if champion.get("removed") else "",
    )


def _change_row(name: str, task: Payload) -> list[object]:
    found, metric = task["champion"], task["primary"]
    if found["is_identical"]:
        said = chip("identical", "plain")
    elif found["change"]["low"] > 0:
        said = chip("higher", "good")
    else:
        said = chip("lower", "careful") if found["change"]["high"] < 0 else chip("within the interval", "plain")
    return [
        name, title_case(metric), found["metrics"][metric]["value"], task["metrics"][metric]["value"],
        signed(found["change"]), found["p_better"], found["p_worse"], said,
    ]  # fmt: skip


def slice_sections(tasks: Tasks) -> Iterator[Markup]:
    """Yields each task's slices: those that can be judged as a plot, the weakest first, all as a folded table."""
    cards = []
    for name, task in tasks.items():
        if not task.get("slices"):
            continue
        metric = task["primary"]
        judged = [s for s in task["slices"] if s["note"] is None and metric in s["metrics"]]
        judged.sort(key=lambda s: (s["metrics"][metric]["value"], s["column"], s["value"]))
        whole = Estimate("all rows", **task["metrics"][metric])
        shown = [Estimate(f"{s['value']} ({number(s['rows'])})", **s["metrics"][metric]) for s in judged[:_MOST_SLICES]]
        plot = forest(whole, shown, metric=metric, floor=None, name="by slice") if shown else ""
        cards.append(card(_heading(name, task), plot, details("All slices", _slice_table(task))))
    if cards:
        yield section(
            "By slice",
            note("The weakest slices first, with their test rows. Those of too few rows are only in the tables."),
            tag("div", *cards, class_="grid"),
        )


def _slice_table(task: Payload) -> Markup:
    metric = task["primary"]
    return table(
        ["column", "value", "rows", title_case(metric), "champion", "change", "note"],
        (
            [
                s["column"], s["value"], s["rows"], _value(s["metrics"].get(metric)),
                _value((s["champion"] or {}).get(metric)), signed(s["change"]) if s["change"] else None, s["note"],
            ]
            for s in task["slices"]
        ),
    )  # fmt: skip


def robustness_sections(tasks: Tasks) -> Iterator[Markup]:
    """Yields how much each task loses when its texts are changed a little."""
    cards = []
    for name, task in tasks.items():
        found = task.get("robustness") or {}
        if not found:
            continue
        shown = [Estimate(kind.replace("_", " "), **part["value"]) for kind, part in found.items()]
        rows = next(iter(found.values()))["rows"]
        words = join(
            (tag("span", name), tag("span", f"{title_case(task['primary'])} · {number(rows)} rows", class_="soft"))
        )
        whole = Estimate("as it is", **_as_it_is(found))
        cards.append(card(words, forest(whole, shown, metric=task["primary"], floor=None, name="of changed texts")))
    if cards:
        yield section(
            "Robust to small changes of the text?",
            note("The same test rows with typing errors, in upper case, without punctuation, with words left out."),
            tag("div", *cards, class_="grid"),
        )


def _as_it_is(found: Mapping[str, Any]) -> dict[str, float]:
    """The metric on the unchanged texts of the same rows, as a point: value minus change of any perturbation."""
    first = next(iter(found.values()))
    value = first["value"]["value"] - first["change"]["value"]
    return {"value": value, "low": value, "high": value}


def behaviour_sections(tasks: Tasks) -> Iterator[Markup]:
    """Yields the behavioural checks and the cases that fail."""
    rows = [
        [name, check["name"], check["type"], check["cases"], check["cases"] - check["failed"], _passed(check)]
        for name, task in tasks.items()
        for check in task.get("behaviour") or ()
    ]
    examples = [
        [name, check["name"], " → ".join(example["texts"]), example["expected"], example["answered"]]
        for name, task in tasks.items()
        for check in task.get("behaviour") or ()
        for example in check["examples"]
    ]
    if rows:
        yield section(
            "Does it behave as written down?",
            note("Checks written as data (Ribeiro et al. 2020): what must be answered, what must not change an answer, "
                 "and what must move it in one direction."),
            table(["task", "check", "type", "cases", "pass", ""], rows),
            details(
                f"{len(examples)} examples that fail",
                table(["task", "check", "text", "expected", "answered"], examples),
            ) if examples else "",
        )  # fmt: skip


def _passed(check: Payload) -> Markup:
    if not check["failed"]:
        return chip("all pass", "good")
    return chip("none passes", "bad") if check["failed"] == check["cases"] else chip("some fail", "careful")


def twin_sections(payload: Payload) -> Iterator[Markup]:
    """Yields what sharing the encoder with other tasks did to each task."""
    twins = payload.get("twins")
    if not twins:
        return
    tasks = {name: t for name, t in payload["tasks"].items() if t.get("twin")}
    rows = ([name, *_twin_row(task)] for name, task in tasks.items())
    yield section(
        "Does sharing hurt a task?",
        note(f"Negative transfer {twins['said']}."),
        table(["task", "metric", "trained alone", "trained together", "change by sharing"], rows) if tasks else "",
    )


def _twin_row(task: Payload) -> list[object]:
    twin, metric = task["twin"], task["primary"]
    change = "identical" if twin["is_identical"] else signed(twin["change"])
    return [title_case(metric), twin["metrics"][metric]["value"], task["metrics"][metric]["value"], change]


def drift_sections(tasks: Tasks) -> Iterator[Markup]:
    """Yields how far the test rows are from the training rows and from the champion's reference."""
    for side, words in _DRIFT_SIDES.items():
        rows = [
            [
                name, cell["kind"], chip(cell["verdict"], _DRIFT_TONES.get(cell["verdict"], "plain")), cell["score"],
                cell["p_adjusted"], cell["rows"], cell["reference_rows"], ", ".join(cell["drifted"]) or None,
            ]
            for name, task in tasks.items()
            for cell in (task.get("drift") or {}).get(side) or ()
        ]  # fmt: skip
        if rows:
            yield section(
                f"Drift of the test rows {words}",
                note("Score: the largest effect in units of its floor, so that a shift too small to matter stays below "
                     "1 whatever the number of rows. p: corrected over all tasks and kinds (Holm)."),
                table(["task", "kind", "", "score", "p", "rows", "reference rows", "what moved"], rows),
            )  # fmt: skip


def note(text: str) -> Markup:
    """Returns a soft paragraph."""
    return tag("p", text, class_="soft")


def signed(interval: Payload) -> str:
    """Returns a change with its interval: +0.012 (-0.003 to +0.027)."""
    value, low, high = (f"{round(interval[end], 3) + 0.0:+.3f}" for end in ("value", "low", "high"))
    return f"{value} ({low} to {high})"


def _value(interval: Payload | None) -> float | None:
    return interval["value"] if interval else None


def _heading(name: str, task: Payload) -> Markup:
    return join((tag("span", name), tag("span", title_case(task["primary"]), class_="soft")))
