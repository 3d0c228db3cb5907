"""The pages of reports/evaluation.json and reports/decision.json."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from mtlops.report.document import TONES, Headline, Page, Payload, facts, reasons, verdict_banner, verdict_chip
from mtlops.report.markup import Markup, card, details, join, number, section, table, tag, value
from mtlops.report.measurements import (
    behaviour_sections,
    champion_sections,
    drift_sections,
    note,
    robustness_sections,
    signed,
    slice_sections,
    twin_sections,
)
from mtlops.report.plots import Estimate, affinity, confusion_matrix, forest, reliability, title_case

BASELINES: Mapping[str, str] = {"frozen": "frozen + LR", "tfidf": "TF-IDF + LR", "majority": "majority"}
"""Short name of each baseline, the strongest first."""

REGRESSION_BASELINES: Mapping[str, str] = {"frozen": "frozen + ridge", "tfidf": "TF-IDF + ridge", "majority": "mean"}
"""The same for a regression."""

TERSE: Mapping[str, str] = {"frozen": "frozen", "tfidf": "TF-IDF", "majority": "majority"}
"""The same where there is little room."""

LARGEST_MATRIX = 12
"""Confusion matrices of more classes are shown as a list of the most frequent mistakes."""


def short_names(task: Payload) -> Mapping[str, str]:
    """Returns the short name of each baseline for a task of evaluation.json."""
    return REGRESSION_BASELINES if task.get("kind") == "regression" else BASELINES


def _evaluation_headline(payload: Payload) -> Headline:
    tasks = payload["tasks"]
    words = ", ".join(f"{name} {t['metrics'][t['primary']]['value']:.3f}" for name, t in tasks.items())
    return Headline(f"{len(tasks)} tasks", "plain", f"Primary metric on test rows: {words}.")


def _evaluation_body(payload: Payload) -> Iterator[Markup]:
    tasks: Mapping[str, Any] = payload["tasks"]
    bootstrap = payload["bootstrap"]
    means = payload.get("mean", {})
    yield facts(
        ("mean over tasks", means.get("model")),
        ("mean of frozen + LR", means.get("frozen")),
        ("test rows, all tasks", sum(t["rows"]["test"] for t in tasks.values())),
        ("intervals", f"{bootstrap['confidence']:.0%}"),
        ("bootstrap resamples", bootstrap["resamples"]),
    )
    yield section(
        "Primary metric beside the baselines",
        note(
            "Dot: value on the test rows. Line: its interval, from resampling whole groups of rows. The baselines are "
            "trained and measured on the same rows. Dashed line: the floor below which a task is rejected."
        ),
        _grid(card(_heading(name, task), _forest(task), _gain(task)) for name, task in tasks.items()),
    )
    yield from _update_section(payload)
    yield from champion_sections(payload)
    matrices = {name: t for name, t in tasks.items() if t.get("confusion")}
    yield section(
        "Which class is taken for which",
        note("Rows are labels, columns are predictions; the stronger the colour, the larger the share of the row."),
        _grid(card(name, _confusion(task["confusion"])) for name, task in matrices.items()),
    )
    yield section(
        "Can its confidence be trusted?",
        note("Test rows in bins of equal mass by predicted confidence. On the dashed line the two agree; below it the "
              "task claims too much, above it too little."),
        _grid(
            card(_calibration_heading(name, t), _reliability(t), _fitted(t["calibration"]))
            for name, t in tasks.items() if t["calibration"]["bins"]
        ),
    )  # fmt: skip
    yield from slice_sections(tasks)
    yield from robustness_sections(tasks)
    yield from behaviour_sections(tasks)
    yield from twin_sections(payload)
    yield from _affinity(payload)
    yield from drift_sections(tasks)
    yield section("All metrics", *(_numbers(name, task) for name, task in tasks.items()))


def _affinity(payload: Payload) -> Iterator[Markup]:
    found = payload.get("affinity", {})
    if len(found.get("tasks", {})) < 2 or not all(found["tasks"].values()):
        return
    yield section(
        "Which tasks read alike?",
        note(
            f"How alike the vectors are that two tasks' heads read, on the same {number(found['rows'])} test rows of "
            f"all tasks ({found['measure']}): 1 alike, 0 unrelated. Those that read alike may share more layers."
        ),
        _grid([card("all tasks", affinity(list(found["tasks"]), found["tasks"]))]),
    )


def _update_section(payload: Payload) -> Iterator[Markup]:
    """What an update brought on new rows and cost on known ones, and what it left alone."""
    retrain = payload.get("retrain")
    if not retrain:
        return
    rows: list[list[object]] = []
    for name, task in payload["tasks"].items():
        metric, window = task["primary"], task.get("window")
        sides = [("known rows", task["rows"]["test"], task["metrics"], task["champion"])]
        if window:
            sides.append((f"new rows, window {window['name']}", window["rows"], window["metrics"], window["champion"]))
        rows += [
            [name, which, count, f"{theirs['metrics'][metric]['value']:.3f}", f"{ours[metric]['value']:.3f}",
             signed(theirs["change"])]
            for which, count, ours, theirs in sides
        ]  # fmt: skip
    rows += [
        [name, "taken over", proof["rows"], "the same", "the same", "identical to the bit"]
        for name, proof in retrain["untouched"].items()
    ]
    yield section(
        "What the update brings and costs",
        note(f"Some tasks of {retrain['parent']} were trained again; all others are its own files, and every logit of "
             "theirs on the test rows was compared."),
        table(["task", "test rows of", "rows", "parent", "this model", "change"], rows),
    )  # fmt: skip


def _forest(task: Payload) -> Markup:
    names = short_names(task)
    metric = task["primary"]
    ours = Estimate("this model", **task["metrics"][metric])
    others = [Estimate(names[b], **task["baselines"][b][metric]) for b in names if b in task["baselines"]]
    if task.get("champion"):
        others.insert(0, Estimate("champion", **task["champion"]["metrics"][metric]))
    return forest(ours, others, metric=metric, floor=task.get("floor"))


def _gain(task: Payload) -> Markup:
    margin = task.get("margins", {}).get("frozen")
    if not margin:
        return Markup()
    name = short_names(task)["frozen"]
    return note(f"Gain over {name}: {signed(margin)}.")


def _heading(name: str, task: Payload) -> Markup:
    words = f"{title_case(task['primary'])} · {number(task['rows']['test'])} rows"
    return join((tag("span", name), tag("span", words, class_="soft")))


def _calibration_heading(name: str, task: Payload) -> Markup:
    error = task["metrics"].get("ece")
    words = f"error {error['value']:.3f}" if error else ""
    return join((tag("span", name), tag("span", words, class_="soft")))


def _fitted(calibration: Payload) -> Markup:
    """What was fitted on validation rows, and what it did to the calibration error of the test rows."""
    words = []
    if calibration.get("temperature", 1.0) != 1.0 and calibration.get("ece_before") is not None:
        change = f"{calibration['ece_before']:.3f} to {calibration['ece_after']:.3f}"
        words.append(f"Temperature {calibration['temperature']:.2f}: calibration error from {change}.")
    if calibration.get("thresholds") is not None:
        words.append(f"Decision threshold {value(calibration['thresholds'])}.")
    return note(" ".join(words)) if words else Markup()


def _numbers(name: str, task: Payload) -> Markup:
    """Every metric of a task beside its baselines, and every class, folded."""
    names = {b: words for b, words in short_names(task).items() if b in task["baselines"]}
    rows = (
        [
            title_case(metric),
            _with_interval(ours),
            *(Markup(f"{task['baselines'][b][metric]['value']:.3f}") for b in names),
        ]
        for metric, ours in task["metrics"].items()
    )
    classes = _classes_table(task["classes"]) if task.get("classes") else ""
    return details(name, table(["metric", "this model", *names.values()], rows), classes)


def _with_interval(found: Payload) -> Markup:
    ends = tag("span", f"{found['low']:.3f} to {found['high']:.3f}", class_="ends")
    return join((f"{found['value']:.3f} ", ends))


def _classes_table(classes: Payload) -> Markup:
    rows = ([c, v["rows"], f"{v['precision']:.3f}", f"{v['recall']:.3f}", f"{v['f1']:.3f}"] for c, v in classes.items())
    return table(["class", "rows", "precision", "recall", "F1"], rows)


def _confusion(confusion: Payload) -> Markup:
    classes, counts = confusion["classes"], confusion["counts"]
    if _is_multilabel(counts):
        return _multilabel_table(classes, counts)
    if len(classes) <= LARGEST_MATRIX:
        return confusion_matrix(classes, counts)
    mistakes = sorted(
        ((n, classes[i], classes[j]) for i, row in enumerate(counts) for j, n in enumerate(row) if n and i != j),
        key=lambda mistake: (-mistake[0], mistake[1:]),
    )
    rows = ([label, answer, n] for n, label, answer in mistakes[:20])
    return table(["label", "taken for", "rows"], rows, caption="The most frequent mistakes")


def _is_multilabel(counts: Sequence[Any]) -> bool:
    return bool(counts) and isinstance(counts[0][0], list)


def _multilabel_table(classes: Sequence[str], counts: Sequence[Any]) -> Markup:
    rows = ([c, n[1][1], n[1][0], n[0][1], n[0][0]] for c, n in zip(classes, counts, strict=True))
    return table(["class", "found", "missed", "false alarm", "rightly not"], rows)


def _reliability(task: Payload) -> Markup:
    is_value = task["kind"] == "regression"
    names = ("predicted value", "mean label") if is_value else ("confidence", "share that is right")
    return reliability(task["calibration"]["bins"], names=names)


def _grid(cards: Iterator[Markup] | Any) -> Markup:
    return tag("div", *cards, class_="grid")


def _decision_headline(payload: Payload) -> Headline:
    verdict = payload["verdict"]
    return Headline(verdict, TONES.get(verdict, "plain"), " ".join(payload.get("reasons", [])[:1]))


def _decision_body(payload: Payload) -> Iterator[Markup]:
    yield verdict_banner(payload)
    if "mode" in payload:
        yield facts(
            ("compared with champion", payload.get("champion") or "none yet"),
            ("gate", payload["mode"]),
            ("the rules say", payload["judged"] if payload["judged"] != payload["verdict"] else None),
        )
    yield section(
        "Tasks",
        note("The whole is as good as its worst task. REJECT: below the floor, or significantly worse than the "
             "champion on the same rows. HOLD: below the baseline even at its upper end, or a real loss is not ruled "
             "out. PROMOTE: neither; with a champion, some task must also be significantly better."),
        _grid(
            card(_decided_heading(name, task), reasons([r.removeprefix(f"{name}: ") for r in task["reasons"]]))
            for name, task in payload["tasks"].items()
        ),
    )  # fmt: skip


def _decided_heading(name: str, task: Payload) -> Markup:
    kind = str(task.get("kind") or "").replace("-", " ")
    return join((tag("span", name), tag("span", kind, class_="soft"), verdict_chip(task["verdict"])))


EVALUATION = Page(
    title="Evaluation",
    about="How good each task is on test rows that training never saw, beside three simpler models on the same rows.",
    keys=frozenset({"tasks", "bootstrap"}),
    shown=frozenset({"tasks", "bootstrap", "mean", "champion", "twins", "gate", "affinity", "retrain"}),
    headline=_evaluation_headline,
    body=lambda payload: list(_evaluation_body(payload)),
)

DECISION = Page(
    title="Decision",
    about="Whether this model may replace the one in production, and why.",
    keys=frozenset({"verdict"}),
    shown=frozenset({"verdict", "tasks", "reasons", "champion", "mode", "judged"}),
    headline=_decision_headline,
    body=lambda payload: list(_decision_body(payload)),
)
