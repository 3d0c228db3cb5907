"""What is measured of one task: the model and the baselines on the same rows and the same resamples."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.decoding import Outputs
from mtlops.evaluation.bootstrap import Interval, resample_groups
from mtlops.evaluation.comparison import Change, compare, measure
from mtlops.evaluation.metrics import Bin, confusion, reliability
from mtlops.params import Gates
from mtlops.tasks import Task

Intervals = Mapping[str, Interval]


@dataclass(frozen=True)
class ClassScores:
    """How one class is found: rows (of tags: words) that carry it, and precision, recall and F1 (0 where undefined)."""

    rows: int
    precision: float
    recall: float
    f1: float


@dataclass(frozen=True)
class Scores:
    """Everything measured of one task.

    Attributes:
        kind: of the task.
        rows: rows of each split.
        groups: groups among the test rows; intervals rest on their number.
        primary: the metric that the gate looks at; higher is better.
        floor: least value of it, or None.
        metrics: of the trained model.
        baselines: the same metrics of each baseline.
        margins: the model's primary metric minus each baseline's, resampled together.
        classes: each class, empty for a regression.
        confusion: counts (see `metrics.confusion`), or None for a regression.
        calibration: bins of the reliability diagram.
        champion: this model against the champion on the same rows, or None without one that does this task.
        twin: this model against the same task trained alone, or None where that was not done.
    """

    kind: str
    rows: Mapping[str, int]
    groups: int
    primary: str
    floor: float | None
    metrics: Intervals
    baselines: Mapping[str, Intervals]
    margins: Mapping[str, Interval]
    classes: Mapping[str, ClassScores]
    confusion: NDArray[np.int64] | None
    calibration: Sequence[Bin]
    champion: Change | None = None
    twin: Change | None = None


def score(
    task: Task,
    labels: NDArray[Any],
    *,
    groups: Sequence[str],
    model: Outputs,
    baselines: Mapping[str, Outputs],
    rows: Mapping[str, int],
    gates: Gates,
    champion: Outputs | None = None,
    twin: Outputs | None = None,
) -> Scores:
    """Returns what the test rows say about one task.

    Shapes: labels: (N,) or (N, C) as `Task.encode` returns them; groups: N names; every Outputs: N rows.

    Args:
        task: what is measured.
        labels: of the test rows.
        groups: which test rows belong together.
        model: answers of the trained model.
        baselines: answers of each baseline.
        rows: rows of each split, as they are reported.
        gates: level, number and seed of the resamples, the margins, and the floors.
        champion: answers of the champion, where it does this task.
        twin: answers of the task's own model, trained alone.
    """
    samples = resample_groups(groups, num_samples=gates.resamples, seed=gates.seed)
    ours = measure(task, labels, model, samples)
    theirs = {name: measure(task, labels, outputs, samples) for name, outputs in baselines.items()}
    against = {
        name: compare(task, labels, model, other, samples=samples, gates=gates)
        for name, other in {"champion": champion, "twin": twin}.items()
        if other is not None
    }
    counts = None if task.kind == "regression" else confusion(task, labels, model)
    return Scores(
        kind=task.kind, rows=rows, groups=samples.num_groups, primary=task.primary, floor=gates.floor.get(task.name),
        metrics=ours.intervals(gates.confidence),
        baselines={name: measured.intervals(gates.confidence) for name, measured in theirs.items()},
        margins={name: ours.minus(measured, task.primary, gates.confidence) for name, measured in theirs.items()},
        classes={} if counts is None else _classes(task, counts), confusion=counts,
        calibration=reliability(task, labels, model), **against,
    )  # fmt: skip


def mean_primary(scores: Mapping[str, Scores], *, weights: Mapping[str, float]) -> dict[str, float]:
    """Returns the mean of the tasks' primary metrics, weighted, of the `model` and of each baseline by name."""
    found = list(scores.values())
    values = {"model": [s.metrics[s.primary].value for s in found]}
    values |= {b: [s.baselines[b][s.primary].value for s in found] for b in found[0].baselines}
    return {name: float(np.average(v, weights=[weights[task] for task in scores])) for name, v in values.items()}


def _classes(task: Task, counts: NDArray[np.int64]) -> dict[str, ClassScores]:
    if task.kind == "multilabel":
        hit, labelled, answered = counts[:, 1, 1], counts[:, 1, :].sum(axis=1), counts[:, :, 1].sum(axis=1)
    else:
        hit, labelled, answered = counts.diagonal(), counts.sum(axis=1), counts.sum(axis=0)
    columns = (hit, answered), (hit, labelled), (2 * hit, labelled + answered)
    shares = [above / np.maximum(below, 1) for above, below in columns]
    found = zip(task.classes, labelled, *shares, strict=True)
    return {name: ClassScores(int(n), float(p), float(r), float(f)) for name, n, p, r, f in found}
