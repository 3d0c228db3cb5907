"""What the evaluation page shows beyond a task's scores: champion, slices, robustness, behaviour, twin, drift."""

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from mtlops.report.document import Payload
from mtlops.report.markup import Markup, card, chip, details, join, number, section, table, tag
from mtlops.report.plots import Estimate, changes, forest, scores, title_case

Tasks = Mapping[str, Any]

_MOST_SLICES = 12
_LENGTH = "words in the text"
"""The column of slices by length, as `evaluation.slices.LENGTH`; its values alone do not say what they count."""
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
        _changes({name: t["champion"] for name, t in tasks.items()}, "Change against the champion"),
        table(
            ["task", "metric", "champion", "this model", "change", "p better", "p worse", ""],
            (_change_row(name, task) for name, task in tasks.items()),
        ),
        note(f"Not in this model: {', '.join(champion['removed'])}.") if champion.get("removed") else "",
    )


def _changes(found: Mapping[str, Payload], name: str) -> Markup:
    """A plot of each task's change with its interval; nothing when every task is identical."""
    rows = [Estimate(task, **part["change"]) for task, part in found.items() if not part["is_identical"]]
    return changes(rows, name=name) if rows else Markup()


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
    """Yields each task's slices as a plot, the weakest first and those that are not judged last; all in a table."""
    cards = []
    for name, task in tasks.items():
        if not task.get("slices"):
            continue
        metric = task["primary"]
        shown = [_slice(part, metric) for part in task["slices"] if metric in part["metrics"]]
        shown.sort(key=lambda row: (row.is_faint, row.value, row.name))
        whole = Estimate("all rows", **task["metrics"][metric])
        plot = Markup()
        if shown:
            plot = forest(whole, shown[:_MOST_SLICES], metric=metric, floor=None, name="by slice", has_guide=True)
        words = f"All {len(task['slices'])} slices"
        cards.append(card(_heading(name, task), plot, details(words, _slice_table(task))))
    has_champion = any(part["champion"] for task in tasks.values() for part in task.get("slices") or ())
    diamond = " Diamond: the champion on the same rows." if has_champion else ""
    if cards:
        yield section(
            "By slice",
            note(f"The weakest slices first, beside the whole task (dashed line). Slices with a dashed interval hold "
                 f"too few rows to be judged.{diamond}"),
            tag("div", *cards, class_="grid"),
        )  # fmt: skip


def _slice(part: Payload, metric: str) -> Estimate:
    theirs = (part["champion"] or {}).get(metric)
    champion = theirs["value"] if theirs else None
    name = f"{part['value']} words" if part["column"] == _LENGTH else part["value"]
    return Estimate(name, **part["metrics"][metric], champion=champion, is_faint=part["note"] is not None)


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
        value, metric = _as_it_is(found), task["primary"]
        whole = Estimate("as it is", value, low=value, high=value)
        plot = forest(whole, shown, metric=metric, floor=None, name="of changed texts", has_guide=True)
        losses = ([kind.replace("_", " "), signed(part["change"])] for kind, part in found.items())
        cards.append(card(words, plot, details("Changes", table(["change of the text", title_case(metric)], losses))))
    if cards:
        yield section(
            "Robust to small changes of the text?",
            note("The same test rows with typing errors, in upper case, without punctuation, with words left out."),
            tag("div", *cards, class_="grid"),
        )


def _as_it_is(found: Mapping[str, Any]) -> float:
    """The metric on the unchanged texts of the same rows: value minus change of any perturbation."""
    first = next(iter(found.values()))
    value: float = first["value"]["value"] - first["change"]["value"]
    return value


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
                f"Examples that fail: {len(examples)}",
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
    plot = _changes({name: t["twin"] for name, t in tasks.items()}, "Change by sharing the encoder") if tasks else ""
    yield section(
        "Does sharing hurt a task?",
        note(f"Negative transfer {twins['said']}."),
        plot,
        table(["task", "metric", "trained alone", "trained together", "change by sharing"], rows) if tasks else "",
    )


def _twin_row(task: Payload) -> list[object]:
    twin, metric = task["twin"], task["primary"]
    change = "identical" if twin["is_identical"] else signed(twin["change"])
    return [title_case(metric), twin["metrics"][metric]["value"], task["metrics"][metric]["value"], change]


def drift_sections(tasks: Tasks) -> Iterator[Markup]:
    """Yields how far the test rows are from the training rows and from the champion's reference."""
    for side, words in _DRIFT_SIDES.items():
        cells = [(name, c) for name, t in tasks.items() for c in (t.get("drift") or {}).get(side) or ()]
        rows = (
            [
                name, cell["kind"], chip(cell["verdict"], _DRIFT_TONES.get(cell["verdict"], "plain")), cell["score"],
                cell["p_adjusted"], cell["rows"], cell["reference_rows"],
            ]
            for name, cell in cells
        )  # fmt: skip
        found = {f"{name} {cell['kind']}": cell["score"] for name, cell in cells if cell["score"] is not None}
        moved = [[name, cell["kind"], *_moved(cell, column)] for name, cell in cells for column in cell["drifted"]]
        heads = ["task", "kind", "", "score", "p", "rows", "reference rows"]
        if cells:
            yield section(
                f"Drift of the test rows {words}",
                note("Score: the largest effect in units of its floor, so that a shift too small to matter stays below "
                     "1 whatever the number of rows. p: corrected over all tasks and kinds (Holm)."),
                tag("p", *_counted(Counter(cell["verdict"] for _, cell in cells))),
                scores(found, name=f"Drift {words}", limit=1.0, limit_name="floor") if found else "",
                table(["task", "kind", "column", "what moved", "before", "now"], moved, caption="What moved")
                if moved else "",
                details("Verdicts and p-values", table(heads, rows)),
            )  # fmt: skip


def _counted(verdicts: Mapping[str, int]) -> list[object]:
    """How many comparisons have each verdict, as pills."""
    return [join((chip(f"{n} {verdict}", _DRIFT_TONES.get(verdict, "plain")), " ")) for verdict, n in verdicts.items()]


def _moved(cell: Payload, column: str) -> list[object]:
    """The column, and the part of it whose share of the rows moved most, with its shares before and now."""
    moved = (cell.get("columns") or {}).get(column, {}).get("moved")
    return [column, moved["part"], moved["reference"], moved["current"]] if moved else [column, None, None, None]


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
