"""The gate's rules, at their edges, and sentences that say what decided."""

import pytest

from mtlops.evaluation.bootstrap import Interval
from mtlops.evaluation.gate import TaskVerdict, decide, judge
from mtlops.evaluation.scores import Scores


def _scores(value: float, low: float, high: float, *, baseline: float = 0.0, floor: float | None = None) -> Scores:
    return Scores(
        kind="binary", rows={"train": 1, "valid": 1, "test": 1200}, groups=9, primary="macro_f1", floor=floor,
        metrics={"macro_f1": Interval(value, low, high)},
        baselines={"frozen": {"macro_f1": Interval(baseline, baseline, baseline)}},
        margins={}, classes={}, confusion=None, calibration=(),
    )  # fmt: skip


@pytest.mark.parametrize(
    "floor, baseline, verdict",
    [
        (None, 0.0, "PROMOTE"),
        (0.8, 0.9, "PROMOTE"),  # exactly at the floor, the baseline exactly at the upper end
        (0.8, 0.9001, "HOLD"),
        (0.8001, 0.0, "REJECT"),
        (0.8001, 0.95, "REJECT"),
    ],
)
def test_a_task_is_judged_by_floor_and_baseline(floor: float | None, baseline: float, verdict: str) -> None:
    found = judge("tone", _scores(0.8, 0.7, 0.9, baseline=baseline, floor=floor), baseline="frozen")
    assert found.verdict == verdict


def test_reasons_name_task_metric_numbers_and_rows() -> None:
    found = judge("tone", _scores(0.8, 0.7, 0.9, baseline=0.95, floor=0.85), baseline="frozen")
    measured = "tone: macro_f1 0.8000 (0.7000 to 0.9000) on 1,200 test rows"
    assert found.reasons == (
        f"{measured} is below its floor, 0.85.",
        f"{measured} is below the frozen baseline, 0.9500, even at its upper end.",
    )


@pytest.mark.parametrize(
    "baseline, words", [(0.85, "is below the frozen baseline, 0.8500, but its interval"), (0.75, "is at or above")]
)
def test_a_passing_task_says_how_it_stands_to_the_baseline(baseline: float, words: str) -> None:
    (reason,) = judge("tone", _scores(0.8, 0.7, 0.9, baseline=baseline), baseline="frozen").reasons
    assert words in reason


def test_without_floor_and_baseline_a_task_passes_and_says_so() -> None:
    found = judge("tone", _scores(0.1, 0.0, 0.2, baseline=0.9), baseline="none")
    assert found.verdict == "PROMOTE"
    assert found.reasons == (
        "tone: macro_f1 0.1000 (0.0000 to 0.2000) on 1,200 test rows; there is no floor and no baseline to reach.",
    )


def test_the_whole_is_as_good_as_its_worst_task() -> None:
    good, held, bad = (TaskVerdict(v, (f"because {v}", "and more")) for v in ("PROMOTE", "HOLD", "REJECT"))
    assert decide({"a": good, "b": good}).reasons == ("All 2 tasks pass the gate.",)
    assert decide({"a": good}).reasons == ("The one task passes the gate.",)
    assert decide({"a": good, "b": held}).verdict == "HOLD"
    decision = decide({"a": good, "b": held, "c": bad, "d": bad})
    assert decision.verdict == "REJECT"
    assert decision.reasons == ("because REJECT", "because REJECT")
