"""The measured part of docs/methods.md, made from what `tests.benchmarks.methods` wrote."""

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.benchmarks.page import machine, table

METHODS_PAGE = Path(__file__).parents[2] / "docs/methods.md"
_LAYERS, _TASKS = 6, 4
_ALL_LAYERS = "pfeiffer, n = 0"
_GROUPS = ("drop", "distilled", "kinds", "sharing", "robust")

Found = Mapping[str, Sequence[Mapping[str, Any]]]
"""By method, what was measured with each seed."""


def part(results: Path, *, methods: Iterable[str]) -> list[str]:
    """Returns the part that all result files of a folder make, and which of the methods are not in it yet."""
    found = read_results(results)
    missing = [name for name in methods if name not in found]
    unmeasured = [f"Not measured yet: {'; '.join(missing)}.", ""] if missing else []
    about = json.loads((results / "about.json").read_text(encoding="utf-8"))
    return [
        "## Measured", "", *_about(about, found), "", *unmeasured, "### Quality", "", *_quality(found), "",
        "### Cost", "", *_cost(found), "", "### AdapterDrop", "", *_drop(found),
    ]  # fmt: skip


def read_results(folder: Path) -> Found:
    """Returns what was measured, by method in order of the seeds."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for path in sorted(folder.glob("*-[0-9]*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        found.setdefault(result["method"], []).append(result)
    return {name: sorted(of, key=lambda result: result["seed"]) for name, of in found.items()}


def mean_f1(result: Mapping[str, Any]) -> float:
    """Returns the mean over the tasks."""
    return statistics.mean(result["f1"].values())


def spread(values: Iterable[float], *, digits: int = 3) -> str:
    """Returns a mean, with the standard deviation where there are several values."""
    found = list(values)
    mean = f"{statistics.mean(found):.{digits}f}"
    return mean if len(found) == 1 else f"{mean} ± {statistics.stdev(found):.{digits}f}"


def relative_cost(n: int, *, layers: int = _LAYERS, tasks: int = _TASKS) -> float:
    """Returns the cost of one text for all tasks with the lowest n layers shared, over that with n = 0.

    In layers that are passed: (n + 1) + T (L - n - 1). The lowest adapted layer is shared up to its adapter.
    Source: Rücklé et al. 2021, "AdapterDrop", section 2, arXiv:2010.11918.
    """
    return ((n + 1) + tasks * (layers - n - 1)) / (1 + tasks * (layers - 1))


def _about(about: Mapping[str, Any], found: Found) -> list[str]:
    seeds = sorted({result["seed"] for of in found.values() for result in of})
    encoder = [result["encoder_ms"] for of in found.values() for result in of if "encoder_ms" in result]
    command = f"python -m tests.benchmarks.methods --rows {about['rows']} --seeds {','.join(map(str, seeds))}"
    command += "".join(f" --set {override}" for override in about["set"])
    text = (
        f"`{command}` on {machine()}, one core: the default suite cut to {about['rows']:,} rows a task. Of the tasks' "
        f"rows together {about['train']:,} are trained on, {about['valid']:,} choose the epoch and {about['test']:,} "
        f"are tested on. {about['epochs']} epochs, batches of {about['batch_size']}, all else as in params.yaml. "
        "Macro-F1 on test rows; ± is the standard deviation over seeds, and a line without it is one seed. On so few "
        f"rows the test itself is uncertain by about {about['noise']:.3f} in the mean of the tasks; differences of "
        "methods less, because they see the same rows. CPU seconds of one process; the machine was busy with other "
        f"work: the same pass of the bare encoder took {min(encoder):.1f} to {max(encoder):.1f} ms a text."
    )
    return [text]


def _in_order(found: Found, group: str) -> list[str]:
    names = [name for name, of in found.items() if of[0]["group"] == group]
    return sorted(names, key=lambda name: -statistics.mean(map(mean_f1, found[name]))) if group == "kinds" else names


def _quality(found: Found) -> list[str]:
    tasks = list(found[_ALL_LAYERS][0]["f1"])
    best = statistics.mean(map(mean_f1, found[_ALL_LAYERS]))
    rows: list[list[object]] = []
    for group in _GROUPS:
        for name in _in_order(found, group):
            of = found[name]
            values = [spread(result["f1"][task] for result in of) for task in tasks]
            change = 100 * (statistics.mean(map(mean_f1, of)) - best)
            rows.append([name, len(of), *values, spread(map(mean_f1, of)), f"{change:+.1f}"])
    head = ["method", "seeds", *tasks, "mean", "points to adapters in every layer"]
    return table(head, rows)


def _cost(found: Found) -> list[str]:
    plain = found.get("plain loop, adapters in every layer")
    reference = statistics.mean(result["train_seconds"] for result in plain) if plain else None
    rows: list[list[object]] = []
    for group in _GROUPS:
        rows += [_cost_row(name, found[name], reference) for name in _in_order(found, group)]
    for name in (name for name, of in found.items() if of[0]["group"] == "plain"):
        seconds = statistics.mean(result["train_seconds"] for result in found[name])
        ratio = f"{reference / seconds:.1f}x" if reference else ""
        rows.append([name, "", "", "", f"{seconds:.0f}", ratio, "", f"{found[name][0]['peak_mb']:.0f}", ""])
    head = ["method", "trained parameters", "% of the trunk", "kB a task", "training, CPU s",
            "faster than the plain loop", "trunk cache, CPU s", "peak MB", "serving, CPU ms a text"]  # fmt: skip
    return table(head, rows)


def _cost_row(name: str, of: Sequence[Mapping[str, Any]], reference: float | None) -> list[object]:
    first = of[0]
    parameters = first["own_parameters"] + first["shared_parameters"]
    seconds = statistics.mean(result["train_seconds"] for result in of)
    filled = [result["fill_seconds"] for result in of if result["fill_rows"]]
    shared = f" + {first['shared_bytes'] / 1e3:,.0f} together" if first["shared_bytes"] else ""
    return [
        name,
        f"{parameters:,}",
        f"{100 * parameters / first['trunk_parameters']:.2f}",
        f"{first['bytes_per_task'] / 1e3:,.0f}{shared}",
        f"{seconds:.0f}",
        f"{reference / seconds:.1f}x" if reference else "",
        f"{filled[0]:.0f}" if filled else "as above",
        f"{max(result['peak_mb'] for result in of):.0f}",
        f"{first['serve_ms']:.1f}" if "serve_ms" in first else "",
    ]


def _drop(found: Found) -> list[str]:
    curve = {n: found[name] for n in range(_LAYERS) if (name := f"pfeiffer, n = {n}") in found}
    robust = found.get("robust", [])
    trained = {n: statistics.mean(result["train_seconds"] for result in of) for n, of in curve.items()}
    rows: list[list[object]] = []
    for n, of in curve.items():
        taken = [statistics.mean(result["f1_by_drop"][str(n)].values()) for result in robust]
        rows.append([
            n,
            spread(map(mean_f1, of)),
            spread(taken) if taken else "",
            f"{relative_cost(n):.2f}",
            f"{of[0]['serve_ms'] / curve[0][0]['serve_ms']:.2f}",
            f"{trained[n] / trained[0]:.2f}",
        ])  # fmt: skip
    head = ["n", "trained with n", "robust, n left out", "cost of a text by the formula", "measured in serving",
            "measured in training"]  # fmt: skip
    text = (
        f"Mean macro-F1 of the tasks. The formula counts layers that a text passes through for T = {_TASKS} tasks and "
        f"L = {_LAYERS} layers: (n + 1) + T (L - n - 1), over its value at n = 0. With `pooling: cls` the last layer "
        "costs keys and values only, so the measured ratio falls faster; training reads all below the cut from the "
        "cache. “Robust” is one training that draws n for each batch (`train.adapter_drop: robust`); the lowest n "
        "adapters of its model are then left out. n = 5 pools the mean."
    )
    return [text, "", *table(head, rows)]
