"""Two models of one task on the same rows: how far apart they are, and whether that is more than chance.

Both are measured on the same bootstrap samples, so what makes a row hard for both cancels in the difference.

Two kinds of chance are told apart. The test rows are one draw of many: the bootstrap redraws them. A training is one
draw of many too: with another seed the same recipe gives another model, truly better or worse on a task by more than
the rows can hide (Bouthillier et al. 2021, "Accounting for Variance in Machine Learning Benchmarks",
arXiv:2103.03098). So whether a task got better or worse is asked of both, by adding the seeds' variance to the
bootstrap's; whether a loss is ruled out is asked of the rows alone, since it is this very model that would be promoted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops import catalog
from mtlops.decoding import Outputs
from mtlops.evaluation.bootstrap import Floats, Interval, Resamples, interval, p_value
from mtlops.evaluation.metrics import Metrics
from mtlops.params import Gates
from mtlops.tasks import Task

BIASED = frozenset({"ece"})
"""Metrics that chance alone makes larger: an absolute gap in a bin of few rows is never negative. A resample adds
that chance a second time, so its values are moved back by their mean's distance from the plain value (bootstrap
estimate of bias, Efron and Tibshirani 1993, chapter 10). The interval then says how much the plain value varies;
it does not say that a calibration error of 0 is excluded."""

SAME = 1e-4
"""Answers that differ by no more than this are the same answer, computed by PyTorch and by ONNX Runtime: largest
difference of a probability, or of a regression's value in standard deviations of the labels."""


@dataclass(frozen=True)
class Measured:
    """Metrics of one model on some rows: plain values, and values (B,) on the resamples."""

    values: Mapping[str, float]
    resampled: Mapping[str, Floats]

    def intervals(self, confidence: float) -> dict[str, Interval]:
        """Returns each metric with its interval."""
        return {m: interval(value, self._unbiased(m), confidence=confidence) for m, value in self.values.items()}

    def minus(self, other: "Measured", metric: str, confidence: float) -> Interval:
        """Returns this model's metric minus the other's, resampled together."""
        difference = self.resampled[metric] - other.resampled[metric]
        return interval(self.values[metric] - other.values[metric], difference, confidence=confidence)

    def _unbiased(self, metric: str) -> Floats:
        resampled = self.resampled[metric]
        if metric not in BIASED:
            return resampled
        moved: Floats = (resampled - resampled.mean() + self.values[metric]).clip(min=0.0)
        return moved


def measure(task: Task, labels: NDArray[Any], outputs: Outputs, samples: Resamples) -> Measured:
    """Returns the metrics of the task's kind on all rows and on each sample of them."""
    metrics: Metrics = catalog.load(catalog.KINDS[task.kind].metrics)
    return Measured(metrics(task, labels, outputs), metrics.over(samples, task, labels, outputs))


@dataclass(frozen=True)
class Change:
    """A model's primary metric minus another's on the same rows.

    Attributes:
        metrics: of the other model.
        change: of the primary metric; above 0 this model is better.
        p_better: p-value of "rows and seeds alone": small when it is better.
        p_worse: the same, small when it is worse.
        p_drop: p-value of "worse by `gates.max_drop` or more": small when the rows rule out such a loss; None
            without that rule.
        is_identical: the two give the same answer to every row; then the change is exactly 0.
    """

    metrics: Mapping[str, Interval]
    change: Interval
    p_better: float
    p_worse: float
    p_drop: float | None
    is_identical: bool


def compare(
    task: Task, labels: NDArray[Any], ours: Outputs, theirs: Outputs, *, samples: Resamples, gates: Gates
) -> Change:
    """Returns how two models' answers to the same rows differ; identical ones by exactly 0.

    Shapes: labels: (N,) or (N, C) as `Task.encode` returns them; ours, theirs, samples: of the same N rows.
    """
    is_identical = are_identical(ours, theirs, labels)
    mine = measure(task, labels, ours, samples)
    other = mine if is_identical else measure(task, labels, theirs, samples)
    metric = task.primary
    noise = 0.0 if is_identical else seed_noise(task, gates, samples.num_samples)
    value, resampled = mine.values[metric] - other.values[metric], mine.resampled[metric] - other.resampled[metric]
    return Change(
        metrics=other.intervals(gates.confidence),
        change=interval(value, resampled, confidence=gates.confidence),
        p_better=p_value(value, resampled + noise, beyond=0.0),
        p_worse=p_value(-value, -resampled - noise, beyond=0.0),
        p_drop=None if gates.max_drop is None else p_value(value, resampled, beyond=-gates.max_drop),
        is_identical=is_identical,
    )


def seed_noise(task: Task, gates: Gates, num_samples: int, *, share: float = 1.0) -> Floats:
    """Returns what another pair of seeds adds to a difference, (B,), whatever the rows are.

    Args:
        task: whose metric it is.
        gates: the seeds' standard deviation of it on all test rows.
        num_samples: B.
        share: of the test rows that the metric is taken on. Seeds move a part more than the whole; as if they moved
            the parts independently, by the square root of 1 / share, which is about the most that was seen
            (docs/benchmarks.md).
    """
    random = np.random.default_rng([gates.seed, 1])
    deviation = gates.seed_noise_of(task.name) * np.sqrt(2.0 / share)
    noise: Floats = deviation * random.standard_normal(num_samples)
    return noise


def are_identical(ours: Outputs, theirs: Outputs, labels: NDArray[Any]) -> bool:
    """Returns whether two models give the same answer to every row, but for the rounding of two runtimes."""
    if ours.values is not None and theirs.values is not None:
        scale = float(np.std(labels.astype(np.float64))) or 1.0
        return bool(np.abs(ours.values - theirs.values).max() <= SAME * scale)
    assert ours.probabilities is not None and theirs.probabilities is not None
    assert ours.labels is not None and theirs.labels is not None
    near = bool(np.allclose(ours.probabilities, theirs.probabilities, rtol=0.0, atol=SAME, equal_nan=True))
    return near and bool(np.array_equal(ours.labels, theirs.labels))
