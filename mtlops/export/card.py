"""The model card of a bundle, in Markdown."""

from collections.abc import Mapping, Sequence
from typing import Any

from mtlops import catalog
from mtlops.params import Params

Evaluation = Mapping[str, Any]
"""The content of evaluation.json, or its tasks."""

_USE = (
    "For texts like those of the sources below, each task on its own kind of text. An answer is a suggestion with a "
    "probability: decisions about people need a person. Not for texts of another language or domain before it was "
    "measured there."
)

_LIMITS = (
    "Measured on rows of the same sources as the training rows. Quality on other sources, languages and times is "
    "unknown until it is measured there."
)

_REFERENCE = (
    "`reference/` holds a profile of each task's rows, vectors and answers: what production is compared with. The same "
    "tests, of the test rows against the training rows, say:"
)

_WEAKEST = 3


def write_card(
    params: Params,
    *,
    evaluation: Mapping[str, Any],
    decision: Mapping[str, Any],
    encoder: Mapping[str, Any],
    parent: Mapping[str, Any] | None = None,
    variants: Mapping[str, Any] | None = None,
) -> str:
    """Returns the model card: what the bundle is for, how each task does on which rows, and what it was made of.

    `parent` is the manifest of the bundle that an update took its other tasks from; `variants` is what this bundle's
    manifest says of the variants of its graph.
    """
    tasks = evaluation["tasks"]
    sections = [
        f"# {params.suite.name}",
        _what_it_is(params, encoder),
        "## Intended use",
        _USE,
        "## Quality on held-out rows",
        _quality(evaluation, decision),
        f"Intervals: {params.gates.confidence:.0%} bootstrap over groups. The gate says: **{decision['verdict']}**.",
        *_titled("Why", [f"- {reason}" for reason in decision["reasons"]]),
        *_titled("Against the champion", _champion(evaluation)),
        *_titled("Update", _update(evaluation, parent) if parent else []),
        *_titled("Variants of the graph", _variants(variants or {})),
        *_titled("Weakest slices", _slices(tasks)),
        *_titled("Calibration", _calibration(tasks)),
        *_titled("Robustness and behaviour", [*_robustness(tasks), *_behaviour(tasks)]),
        *_titled("Reference for drift", _drift(tasks)),
        "## Data",
        "\n".join(
            f"- {name}: source `{spec.source}`, classes {', '.join(spec.classes) or 'none'}"
            for name, spec in params.suite.tasks.items()
        ),
        "## Limits",
        _LIMITS,
    ]
    return "\n\n".join(sections) + "\n"


def _titled(title: str, lines: Sequence[str]) -> list[str]:
    """A section of lines; nothing when there are none."""
    return [f"## {title}", "\n".join(lines)] if lines else []


def _what_it_is(params: Params, encoder: Mapping[str, Any]) -> str:
    model = params.model
    if model.sharing != "adapters":
        return (
            f"{len(params.suite.tasks)} tasks on one encoder ({encoder['name']}, licence {encoder['licence']}). "
            f"Sharing: {model.sharing}, {catalog.SHARING[model.sharing].summary}. "
            f"Texts are cut to {params.encoder.max_tokens} tokens."
        )
    return (
        f"{len(params.suite.tasks)} tasks on one frozen encoder ({encoder['name']}, licence {encoder['licence']}). "
        f"Each task has its own {model.adapter} adapters (none in the lowest {model.adapter_drop} layers) and head. "
        f"Texts are cut to {params.encoder.max_tokens} tokens."
    )


def _quality(evaluation: Mapping[str, Any], decision: Mapping[str, Any]) -> str:
    rows = [
        "| task | kind | test rows | metric | value | interval | frozen trunk + linear model | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, facts in evaluation["tasks"].items():
        value, frozen = (m[facts["primary"]] for m in (facts["metrics"], facts["baselines"]["frozen"]))
        rows.append(
            f"| {name} | {facts['kind']} | {facts['rows']['test']} | {facts['primary']} | {value['value']:.3f} "
            f"| {value['low']:.3f} to {value['high']:.3f} | {frozen['value']:.3f} "
            f"| {decision['tasks'][name]['verdict']} |"
        )
    return "\n".join(rows)


def _champion(evaluation: Evaluation) -> list[str]:
    compared = {name: facts for name, facts in evaluation["tasks"].items() if facts.get("champion")}
    if not compared:
        return []
    lines = [
        f"Bundle `{evaluation['champion']['bundle_id']}`, on the same test rows:",
        "",
        "| task | metric | champion | this model | change | interval |",
        "|---|---|---|---|---|---|",
    ]
    for name, facts in compared.items():
        metric, found = facts["primary"], facts["champion"]
        theirs, ours, change = found["metrics"][metric]["value"], facts["metrics"][metric]["value"], found["change"]
        said = "identical" if found["is_identical"] else f"{change['value']:+.3f}"
        ends = f"{change['low']:+.3f} to {change['high']:+.3f}"
        lines.append(f"| {name} | {metric} | {theirs:.3f} | {ours:.3f} | {said} | {ends} |")
    return lines


def _update(evaluation: Evaluation, parent: Mapping[str, Any]) -> list[str]:
    """What was retrained on which rows, what it brought and cost, and what was taken over."""
    retrain = evaluation["retrain"]
    lines = [
        f"Retrained: {', '.join(retrain['retrained'])}; start `{retrain['start']}`, old rows `{retrain['mix']}`.",
        f"All else was taken over, to the bit, from bundle `{retrain['parent']}`.",
        "",
        "| task | test rows | metric | parent | this model | change |",
        "|---|---|---|---|---|---|",
    ]
    for name, facts in evaluation["tasks"].items():
        metric = facts["primary"]
        sides = [("known", facts["rows"]["test"], facts["metrics"], facts["champion"])]
        if window := facts.get("window"):
            sides.append((f"new, window {window['name']}", window["rows"], window["metrics"], window["champion"]))
        lines += [
            f"| {name} | {rows} {which} | {metric} | {theirs['metrics'][metric]['value']:.3f} "
            f"| {ours[metric]['value']:.3f} | {theirs['change']['value']:+.3f} |"
            for which, rows, ours, theirs in sides
        ]
    for name in retrain["untouched"]:
        facts = parent["tasks"][name]
        value = facts["metrics"][facts["primary"]]["value"]
        lines.append(f"| {name} | taken over | {facts['primary']} | {value:.3f} | {value:.3f} | identical |")
    return lines


def _variants(variants: Mapping[str, Any]) -> list[str]:
    """What each variant of the graph is, and what it loses."""
    if not variants:
        return []
    lines = [
        "| variant | what it is | MB | task | test rows | metric | fp32 | variant |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, facts in variants.items():
        for task, rows in facts["tasks"].items():
            lines.append(
                f"| {name} | {catalog.VARIANTS[name].summary} | {facts['bytes'] / 1e6:.1f} | {task} "
                f"| {rows['rows']} | {rows['metric']} | {rows['fp32']:.3f} | {rows['value']:.3f} |"
            )
    return lines


def _slices(tasks: Evaluation) -> list[str]:
    """The slices of each task with the lowest primary metric, of those with rows enough to be judged."""
    lines = []
    for name, facts in tasks.items():
        metric = facts["primary"]
        judged = [part for part in facts.get("slices") or () if part["note"] is None and metric in part["metrics"]]
        judged.sort(key=lambda part: (part["metrics"][metric]["value"], part["column"], part["value"]))
        lines += [
            f"- {name}, {part['column']} {part['value']}: {metric} {_with_ends(part['metrics'][metric])} "
            f"on {part['rows']} rows (all rows: {facts['metrics'][metric]['value']:.3f})"
            for part in judged[:_WEAKEST]
        ]
    return lines


def _calibration(tasks: Evaluation) -> list[str]:
    lines = []
    for name, facts in tasks.items():
        found = facts.get("calibration") or {}
        if found.get("ece_after") is not None:
            before, after, thresholds = (found.get(key) for key in ("ece_before", "ece_after", "thresholds"))
            lines.append(
                f"- {name}: temperature {found['temperature']:.3f}, calibration error {before:.3f} without it and "
                f"{after:.3f} with it on the test rows{_thresholds(thresholds)}"
            )
    return lines


def _thresholds(found: float | Sequence[float] | None) -> str:
    if found is None:
        return ""
    each = [found] if isinstance(found, float | int) else found
    return f"; decision threshold {', '.join(f'{threshold:.3f}' for threshold in each)}"


def _robustness(tasks: Evaluation) -> list[str]:
    """The change of the text that costs each task most."""
    lines = []
    for name, facts in tasks.items():
        found = facts.get("robustness") or {}
        if found:
            kind, part = min(found.items(), key=lambda item: (item[1]["change"]["value"], item[0]))
            if part["change"]["value"] >= 0:
                lines.append(f"- {name}: none of {len(found)} small changes of the text costs anything "
                             f"on {part['rows']} rows")  # fmt: skip
                continue
            lines.append(
                f"- {name}: of {len(found)} small changes of the text, {kind.replace('_', ' ')} costs most: "
                f"{facts['primary']} {part['change']['value']:+.3f} "
                f"({part['change']['low']:+.3f} to {part['change']['high']:+.3f}) on {part['rows']} rows"
            )
    return lines


def _behaviour(tasks: Evaluation) -> list[str]:
    """How many of the behavioural cases each task passes, and the checks that fail."""
    lines = []
    for name, facts in tasks.items():
        checks = facts.get("behaviour") or ()
        cases, failed = (sum(check[key] for check in checks) for key in ("cases", "failed"))
        failing = ", ".join(f"{check['name']} ({check['failed']} of {check['cases']})" for check in checks
                            if check["failed"])  # fmt: skip
        if checks:
            words = f"; failing: {failing}" if failing else ""
            lines.append(f"- {name}: {cases - failed} of {cases} behavioural cases pass{words}")
    return lines


def _drift(tasks: Evaluation) -> list[str]:
    lines = []
    for name, facts in tasks.items():
        cells = (facts.get("drift") or {}).get("train") or ()
        if cells:
            lines.append(f"- {name}: " + ", ".join(f"{cell['kind']} {cell['verdict']}" for cell in cells))
    return [_REFERENCE, "", *lines] if lines else []


def _with_ends(interval: Mapping[str, float]) -> str:
    return f"{interval['value']:.3f} ({interval['low']:.3f} to {interval['high']:.3f})"
