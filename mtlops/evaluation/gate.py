"""The gate: whether a task, and so the suite, is good enough to be promoted."""

from collections.abc import Mapping
from dataclasses import dataclass

from mtlops.evaluation.scores import Scores

VERDICTS = ("PROMOTE", "HOLD", "REJECT")
"""From the best to the worst; a suite gets the worst of its tasks."""


@dataclass(frozen=True)
class TaskVerdict:
    """One task's verdict and the sentences that explain it, the decisive one first."""

    verdict: str
    reasons: tuple[str, ...]


@dataclass(frozen=True)
class Decision:
    """The suite's verdict, why, and the verdict of each task."""

    verdict: str
    reasons: tuple[str, ...]
    tasks: Mapping[str, TaskVerdict]


def judge(name: str, scores: Scores, *, baseline: str) -> TaskVerdict:
    """Returns the verdict of one task.

    REJECT when the primary metric is below the task's floor; HOLD when even the upper end of its interval is
    below the baseline; PROMOTE otherwise.

    Args:
        name: of the task.
        scores: what was measured, with the floor.
        baseline: a name of `scores.baselines`, or `none`.
    """
    metric, ours = scores.primary, scores.metrics[scores.primary]
    interval = f"{ours.value:.4f} ({ours.low:.4f} to {ours.high:.4f})"
    measured = f"{name}: {metric} {interval} on {scores.rows['test']:,} test rows"
    verdict, reasons = "PROMOTE", []
    if baseline != "none":
        theirs = scores.baselines[baseline][metric].value
        if ours.high < theirs:
            verdict = "HOLD"
            reasons.append(f"{measured} is below the {baseline} baseline, {theirs:.4f}, even at its upper end.")
        elif ours.value < theirs:
            reasons.append(f"{measured} is below the {baseline} baseline, {theirs:.4f}, but its interval reaches it.")
        else:
            reasons.append(f"{measured} is at or above the {baseline} baseline, {theirs:.4f}.")
    if scores.floor is not None and ours.value < scores.floor:
        verdict = "REJECT"
        reasons.insert(0, f"{measured} is below its floor, {scores.floor}.")
    elif scores.floor is not None:
        reasons.append(f"{measured} reaches its floor, {scores.floor}.")
    return TaskVerdict(verdict, tuple(reasons) or (f"{measured}; there is no floor and no baseline to reach.",))


def decide(tasks: Mapping[str, TaskVerdict]) -> Decision:
    """Returns the suite's decision: the worst verdict of its tasks, with the decisive reason of each such task."""
    verdict = max((task.verdict for task in tasks.values()), key=VERDICTS.index)
    if verdict == "PROMOTE":
        passed = f"All {len(tasks)} tasks pass the gate." if len(tasks) > 1 else "The one task passes the gate."
        return Decision(verdict, (passed,), tasks)
    return Decision(verdict, tuple(task.reasons[0] for task in tasks.values() if task.verdict == verdict), tasks)
