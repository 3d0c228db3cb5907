"""The table at the end of `make run`: plain text that fits a terminal of 100 columns."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mtlops.files import read_json
from mtlops.report.evaluation import TERSE
from mtlops.report.markup import duration, number, size

WIDTH = 100
"""No line is longer."""

_LABEL = 11
_MEAN = "mean of tasks"


def summary(folder: Path) -> str:
    """Returns what the reports in `folder` say: a table of the tasks, then verdict, training, bundle and places.

    Raises:
        ArtefactError: there is no evaluation.json, or a report is not JSON.
    """
    evaluation = read_json(folder / "evaluation.json", made_by="mtlops evaluate")
    decision, training, export, validation = (
        _optional(folder / f"{name}.json") for name in ("decision", "training", "export", "validation")
    )
    confidence = evaluation["bootstrap"]["confidence"]
    title = f"Test rows; {confidence:.0%} interval in brackets; the baselines learned from the same rows"
    lines = ["", title, "", *_aligned(list(_rows(evaluation, decision))), ""]
    lines += _facts({
        "Verdict": _verdict(decision),
        "Data": _data(validation),
        "Training": _training(training),
        "Parity": _parity(export),
        "Bundle": _bundle(export),
        "Latency": _latency(export),
        "Variants": "; ".join(_variant(name, found) for name, found in export.get("variants", {}).items()),
        "Reports": (folder / "index.html").as_posix(),
    })  # fmt: skip
    return "\n".join(lines)


def _optional(path: Path) -> Mapping[str, Any]:
    content: Mapping[str, Any] = read_json(path, made_by="make run") if path.exists() else {}
    return content


def _rows(evaluation: Mapping[str, Any], decision: Mapping[str, Any]) -> Iterator[Sequence[str]]:
    yield ["task", "rows", "metric", "this model", *TERSE.values(), "verdict"]
    verdicts = decision.get("tasks", {})
    for name, task in evaluation["tasks"].items():
        primary = task["primary"]
        ours = task["metrics"][primary]
        yield [
            name,
            f"{task['rows']['test']:,}",
            primary,
            f"{ours['value']:.3f} [{ours['low']:.3f}, {ours['high']:.3f}]",
            *(f"{task['baselines'][b][primary]['value']:.3f}" if b in task["baselines"] else "-" for b in TERSE),
            verdicts.get(name, {}).get("verdict", "-"),
        ]
    if means := evaluation.get("mean"):
        ours = f"{means['model']:.3f}" + " " * len(" [0.000, 0.000]")
        yield [_MEAN, "", "", ours, *(f"{means[b]:.3f}" if b in means else "-" for b in TERSE), ""]


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """Columns of equal width, numbers to the right, a rule under the heads; long names are cut to fit."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)
    if widths[0] > room:
        rows = [[name if len(name) <= room else name[: room - 1] + "…", *cells] for name, *cells in rows]
        widths[0] = room
    is_left = [head in {"task", "metric", "verdict"} for head in rows[0]]

    def line(cells: Sequence[str]) -> str:
        placed = (c.ljust(w) if left else c.rjust(w) for c, w, left in zip(cells, widths, is_left, strict=True))
        return "  ".join(placed).rstrip()

    head, *body = map(line, rows)
    rule = "-" * max(map(len, (head, *body)))
    return [head, rule, *body[:-1], rule, body[-1]] if rows[-1][0] == _MEAN else [head, rule, *body]


def _facts(facts: Mapping[str, str]) -> Iterator[str]:
    for label, text in facts.items():
        if text:
            indent = " " * _LABEL
            yield from textwrap.wrap(
                text, WIDTH, initial_indent=label.ljust(_LABEL), subsequent_indent=indent, break_long_words=False,
                break_on_hyphens=False,
            )  # fmt: skip


def _verdict(decision: Mapping[str, Any]) -> str:
    return f"{decision['verdict']}. {' '.join(decision['reasons'])}" if decision else ""


def _data(validation: Mapping[str, Any]) -> str:
    if not validation:
        return ""
    checks = validation["checks"]
    broken = [check for check in checks if not check["passed"]]
    errors = sum(check["severity"] == "error" for check in broken)
    counts = {"failed": errors, "with a warning": len(broken) - errors}
    found = "".join(f", {count} {words}" for words, count in counts.items() if count)
    return f"{len(checks) - len(broken):,} of {len(checks):,} checks passed{found}"


def _training(training: Mapping[str, Any]) -> str:
    if not training:
        return ""
    rate = f", {training['rows_per_second']:,.0f} rows a second" if training.get("rows_per_second") else ""
    return f"{duration(training['seconds'])} on {training['device']}{rate}"


def _parity(export: Mapping[str, Any]) -> str:
    parity = export.get("parity")
    if not parity:
        return ""
    allowed = f" ({number(parity['tolerance'])} allowed)" if "tolerance" in parity else ""
    return f"ONNX Runtime's logits differ from PyTorch's by at most {number(parity['max_error'])}{allowed}"


def _bundle(export: Mapping[str, Any]) -> str:
    if not export:
        return ""
    files: Mapping[str, int] = export["files"]
    place = f"{export['bundle']['path']}: " if "bundle" in export else ""
    per_task = [sum(n for f, n in files.items() if f.startswith(f"tasks/{task}/")) for task in _tasks_of(files)]
    parts = {"model.onnx": files.get("model.onnx", 0), "each task": max(per_task, default=0)}
    shown = ", ".join(f"{name} {size(amount)}" for name, amount in parts.items() if amount)
    return f"{place}{size(sum(files.values()))} ({shown})"


def _tasks_of(files: Mapping[str, int]) -> list[str]:
    return sorted({name.split("/")[1] for name in files if name.startswith("tasks/")})


def _latency(export: Mapping[str, Any]) -> str:
    latency: Mapping[str, float] = export.get("latency_ms", {})
    return ", ".join(f"{name.replace('_', ' ')}: {value:.1f} ms" for name, value in latency.items())


def _variant(name: str, found: Mapping[str, Any]) -> str:
    """What a variant of the graph costs and loses."""
    if not found["kept"]:
        return f"{name} was left out: {' '.join(found['reasons'])}"
    losses = {task: part["fp32"] - part["value"] for task, part in found["tasks"].items()}
    worst = max(losses, key=lambda task: losses[task])
    return f"{name} {size(found['bytes'])}, {_latency(found)}; loses at most {max(losses[worst], 0):.3f} ({worst})"
