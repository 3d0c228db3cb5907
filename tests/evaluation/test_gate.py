"""The gate's rules, at their edges, and sentences that say what decided."""

from typing import Any

import pytest

from mtlops.evaluation.gate import Decision, TaskVerdict, decide

GATE = {
    "mode": "enforced", "baseline": "frozen", "promote_when": "better", "alpha": 0.05, "seed_noise": 0.01,
    "max_drop": 0.03, "allow_removed": False, "slice_rows": 50, "behaviour_pass_rate": None,
}  # fmt: skip
CHAMPION = {"bundle_id": "c0ffee", "url": "registry", "removed": []}


def _interval(value: float, *, around: float = 0.1) -> dict[str, float]:
    return {"value": value, "low": value - around, "high": value + around}


def _change(
    value: float = 0.0, *, better: float = 1.0, worse: float = 1.0, drop: float = 0.001, is_identical: bool = False
) -> dict[str, Any]:
    return {
        "metrics": {"macro_f1": _interval(0.8 - value)}, "change": _interval(value, around=0.01),
        "p_better": better, "p_worse": worse, "p_drop": drop, "is_identical": is_identical,
    }  # fmt: skip


def _task(
    *, baseline: float = 0.0, floor: float | None = None, champion: dict[str, Any] | None = None, **more: Any
) -> dict[str, Any]:
    """A task of evaluation.json whose macro_f1 is 0.8 (0.7 to 0.9)."""
    return {
        "kind": "binary", "rows": {"train": 1, "valid": 1, "test": 1200}, "primary": "macro_f1", "floor": floor,
        "metrics": {"macro_f1": _interval(0.8)},
        "baselines": {"frozen": {"macro_f1": _interval(baseline, around=0)}},
        "champion": champion, "comparison": "new" if champion is None else "compared", "twin": None, **more,
    }  # fmt: skip


def _decide(champion: dict[str, Any] | None = None, *, gate: dict[str, Any] | None = None, **tasks: Any) -> Decision:
    twins = {"mode": "never", "said": "not measured: gates.twins is never"}
    return decide({"gate": GATE | (gate or {}), "champion": champion, "twins": twins, "tasks": tasks})


def _judge(task: dict[str, Any], *, gate: dict[str, Any] | None = None, champion: Any = None) -> TaskVerdict:
    return _decide(champion, gate=gate, tone=task).tasks["tone"]


def _slice(worse: float | None, *, value: str = "mail", drop: float = -0.2) -> dict[str, Any]:
    return {
        "column": "source", "value": value, "rows": 90, "metrics": {"macro_f1": _interval(0.6)},
        "champion": {"macro_f1": _interval(0.6 - drop)}, "change": _interval(drop, around=0.05), "p_worse": worse,
    }  # fmt: skip


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
@pytest.mark.parametrize("champion", [None, _change(0.05, better=0.001)])
def test_floor_and_baseline_are_judged_with_and_without_a_champion(
    floor: float | None, baseline: float, verdict: str, champion: Any
) -> None:
    task = _task(baseline=baseline, floor=floor, champion=champion)
    assert _judge(task, champion=CHAMPION if champion else None).verdict == verdict


def test_reasons_name_task_metric_numbers_and_rows() -> None:
    found = _judge(_task(baseline=0.95, floor=0.85))
    measured = "tone: macro_f1 0.8000 (0.7000 to 0.9000) on 1,200 test rows"
    assert found.reasons == (
        f"{measured} is below its floor, 0.85.",
        f"{measured} is below the frozen baseline, 0.9500, even at its upper end.",
        "tone: negative transfer not measured: gates.twins is never.",
    )


@pytest.mark.parametrize(
    "baseline, words", [(0.85, "is below the frozen baseline, 0.8500, but its interval"), (0.75, "is at or above")]
)
def test_a_passing_task_says_how_it_stands_to_the_baseline(baseline: float, words: str) -> None:
    assert words in _judge(_task(baseline=baseline)).reasons[0]


def test_without_floor_and_baseline_a_task_passes_and_says_so() -> None:
    found = _judge(_task(baseline=0.9), gate={"baseline": "none"})
    assert found.verdict == "PROMOTE"
    assert found.reasons[0] == (
        "tone: macro_f1 0.8000 (0.7000 to 0.9000) on 1,200 test rows; there is no floor, no baseline and no "
        "champion to reach."
    )


def test_the_whole_is_as_good_as_its_worst_task() -> None:
    good, held, bad = _task(), _task(baseline=0.95), _task(floor=0.9)
    assert _decide(a=good, b=good).reasons == ("All 2 tasks pass the gate.",)
    assert _decide(a=good).reasons == ("The one task passes the gate.",)
    assert _decide(a=good, b=held).verdict == "HOLD"
    found = _decide(a=good, b=held, c=bad, d=bad)
    assert found.verdict == found.judged == "REJECT"
    assert [reason.split(":")[0] for reason in found.reasons] == ["c", "d"]


def test_a_better_task_promotes_and_the_reason_has_both_numbers() -> None:
    found = _decide(CHAMPION, a=_task(champion=_change(0.05, better=0.02)), b=_task(champion=_change()))
    assert (found.verdict, found.champion) == ("PROMOTE", "c0ffee")
    assert found.reasons == ("Against the champion c0ffee: significantly better: a; nothing is worse (2 comparisons).",)
    assert found.tasks["a"].reasons[0] == (
        "a: macro_f1 0.8000 against the champion's 0.7500 on the same 1,200 test rows: +0.0500 (+0.0400 to +0.0600) is "
        "significantly better (p 0.0400 corrected over 2 comparisons, alpha 0.05)."
    )
    assert "is no significant change (corrected p: better" in found.tasks["b"].reasons[0]


def test_p_values_are_corrected_over_the_tasks() -> None:
    enough, too_many = ({f"t{i}": _task(champion=_change()) for i in range(n - 1)} for n in (2, 3))
    better = _task(champion=_change(0.05, better=0.02))
    assert _decide(CHAMPION, a=better, **enough).verdict == "PROMOTE"
    assert _decide(CHAMPION, a=better, **too_many).verdict == "HOLD"
    worse = _task(champion=_change(-0.05, worse=0.02))
    assert _decide(CHAMPION, a=worse, **enough).verdict == "REJECT"
    assert _decide(CHAMPION, a=worse, **too_many).verdict == "HOLD"


def test_nothing_better_is_held_unless_as_good_is_enough() -> None:
    tasks = {"a": _task(champion=_change(0.01, better=0.3)), "b": _task(champion=_change(better=0.9))}
    held = _decide(CHAMPION, **tasks)
    assert held.verdict == "HOLD"
    assert held.reasons[0].startswith(
        "No task is significantly better than the champion c0ffee; the nearest is a (corrected p 0.6000)."
    )
    assert [task.verdict for task in held.tasks.values()] == ["PROMOTE", "PROMOTE"]
    assert _decide(CHAMPION, gate={"promote_when": "not-worse"}, **tasks).verdict == "PROMOTE"


@pytest.mark.parametrize("promote_when", ["better", "not-worse"])
def test_one_better_task_does_not_buy_another_s_loss(promote_when: str) -> None:
    better = _task(champion=_change(0.2, better=0.0005))
    worse = _task(champion=_change(-0.05, worse=0.01, drop=0.9))
    unclear = _task(champion=_change(-0.01, worse=0.2, drop=0.06))
    gate = {"promote_when": promote_when}
    assert _decide(CHAMPION, gate=gate, a=better, b=worse).verdict == "REJECT"
    held = _decide(CHAMPION, gate=gate, a=better, b=unclear)
    assert held.verdict == "HOLD"
    assert "does not rule out a loss of gates.max_drop, 0.03 (p 0.0600, must be at most 0.05)" in held.reasons[0]
    off = unclear | {"champion": unclear["champion"] | {"p_drop": None}}
    assert _decide(CHAMPION, gate=gate | {"max_drop": None}, a=better, b=off).verdict == "PROMOTE"


def test_identical_tasks_are_said_to_be_so_and_take_no_part_in_the_correction() -> None:
    same = {f"t{i}": _task(champion=_change(is_identical=True)) for i in range(9)}
    found = _decide(CHAMPION, a=_task(champion=_change(0.04, better=0.04)), **same)
    assert found.verdict == "PROMOTE"
    assert found.tasks["t0"].reasons[0] == (
        "t0: identical: the champion answers each of the 1,200 test rows the same (macro_f1 0.8000)."
    )
    held = _decide(CHAMPION, **same)
    assert held.verdict == "HOLD"
    assert held.reasons == ("Every task is identical to the champion c0ffee: there is nothing to promote.",)


def test_a_worse_slice_rejects_its_task_and_is_named() -> None:
    task = _task(champion=_change(0.05, better=0.001), slices=[_slice(0.01), _slice(None, value="web")])
    found = _decide(CHAMPION, a=task)
    assert found.verdict == "REJECT"
    assert found.reasons[0] == (
        "a, source=mail: macro_f1 0.6000 against the champion's 0.8000 on the same 90 test rows: -0.2000 "
        "(-0.2500 to -0.1500) is significantly worse (p 0.0200 corrected over 2 "
        "comparisons, alpha 0.05)."
    )
    several = [_slice(0.01, value=str(i)) for i in range(5)]
    assert _decide(CHAMPION, a=task | {"slices": several}).verdict == "PROMOTE"


@pytest.mark.parametrize("comparison, words", [("new", "does not have it"), ("classes-changed", "other classes")])
def test_a_task_that_cannot_be_compared_is_judged_without_the_champion(comparison: str, words: str) -> None:
    same = _task(champion=_change(is_identical=True))
    found = _decide(CHAMPION, a=same, b=_task(comparison=comparison))
    assert (found.verdict, found.tasks["b"].kind) == ("PROMOTE", comparison)
    assert any(words in reason for reason in found.tasks["b"].reasons)
    assert "new to it: b" in found.reasons[0]
    assert _decide(CHAMPION, a=same, b=_task(comparison=comparison, floor=0.9)).verdict == "REJECT"
    assert _decide(CHAMPION, a=same, b=_task(comparison=comparison, baseline=0.95)).verdict == "HOLD"


def test_a_removed_task_holds_unless_that_is_allowed() -> None:
    champion, better = CHAMPION | {"removed": ["b"]}, _task(champion=_change(0.05, better=0.001))
    held = _decide(champion, a=better)
    assert (held.verdict, held.tasks["b"].kind) == ("HOLD", "removed")
    assert held.reasons[0].startswith("b: the champion c0ffee does this task, this model does not.")
    assert _decide(champion, gate={"allow_removed": True}, a=better).verdict == "PROMOTE"


def test_behavioural_cases_can_be_required() -> None:
    checks = [{"name": "negation", "cases": 10, "failed": 3}, {"name": "names", "cases": 10, "failed": 0}]
    task = _task(behaviour=checks)
    assert _judge(task).verdict == "PROMOTE"
    assert _judge(task, gate={"behaviour_pass_rate": 0.85}).verdict == "PROMOTE"
    found = _judge(task, gate={"behaviour_pass_rate": 0.86})
    assert found.verdict == "REJECT"
    assert found.reasons[0] == ("tone: 17 of 20 behavioural cases pass (85.0%), 86.0% must; most fail in 'negation'.")


def test_modes_that_do_not_enforce_say_what_the_rules_say() -> None:
    bad = _task(floor=0.9)
    dry = _decide(gate={"mode": "dry-run"}, a=bad)
    assert (dry.verdict, dry.judged, dry.tasks["a"].verdict) == ("PROMOTE", "REJECT", "REJECT")
    assert "the rules say REJECT" in dry.reasons[0] and "below its floor" in dry.reasons[1]
    disabled = _decide(CHAMPION, gate={"mode": "disabled"}, a=bad)
    assert (disabled.verdict, disabled.tasks["a"].verdict) == ("PROMOTE", "PROMOTE")
    assert disabled.champion == "c0ffee"
    assert disabled.reasons == ("The gate is disabled (gates.mode): nothing was judged.",)


@pytest.mark.parametrize(
    "twin, words",
    [
        (_change(-0.05, worse=0.001), "negative transfer: macro_f1 0.8500 of its twin"),
        (_change(0.05, better=0.001), "positive transfer: macro_f1 0.7500 of its twin"),
        (_change(0.01, better=0.4), "no significant transfer: macro_f1 0.7900 of its twin"),
        (_change(is_identical=True), "no transfer: its twin, trained alone, gives the same answer"),
    ],
)
def test_transfer_is_said_and_decides_nothing(twin: dict[str, Any], words: str) -> None:
    found = _judge(_task(twin=twin))
    assert found.verdict == "PROMOTE"
    assert words in found.reasons[-1]


def _update(known: dict[str, Any], window: dict[str, Any], *, gate: dict[str, Any] | None = None) -> Decision:
    """The decision on an update of task `tone` that took `mail` over."""
    found = {"name": "spring", "rows": 80, "metrics": {"macro_f1": _interval(0.8)}, "champion": window}
    return decide({
        "gate": GATE | (gate or {}), "champion": CHAMPION, "twins": {"mode": "never", "said": "not measured"},
        "tasks": {"tone": _task(champion=known, window=found)},
        "retrain": {"parent": "c0ffee", "untouched": {"mail": {"rows": 900, "logits_sha256": "0"}}},
    })  # fmt: skip


def test_an_update_is_promoted_for_its_new_rows_and_keeps_the_other_tasks() -> None:
    found = _update(_change(-0.004, worse=0.4), _change(0.2, better=0.001))
    assert (found.verdict, found.champion) == ("PROMOTE", "c0ffee")
    assert "significantly better: tone, window spring" in found.reasons[0]
    assert (found.tasks["mail"].verdict, found.tasks["mail"].kind) == ("PROMOTE", "untouched")
    assert "same logits to the bit of each of 900 test rows" in found.tasks["mail"].reasons[0]


@pytest.mark.parametrize(
    "known, window, verdict, said",
    [
        (_change(-0.004), _change(0.02, better=0.2), "HOLD", "window spring: macro_f1"),
        (_change(0.05, better=0.001), _change(0.02, better=0.2), "HOLD", "is not significantly better"),
        (_change(-0.1, worse=0.001), _change(0.2, better=0.001), "REJECT", "is significantly worse"),
        (_change(-0.02, drop=0.3), _change(0.2, better=0.001), "HOLD", "does not rule out a loss"),
        (_change(0.01), _change(-0.2, worse=0.001), "REJECT", "window spring"),
        (_change(0.0, is_identical=True), _change(0.0, is_identical=True), "HOLD", "the same"),
    ],
)
def test_an_update_is_judged_on_old_and_on_new_rows(known: Any, window: Any, verdict: str, said: str) -> None:
    found = _update(known, window)
    assert found.verdict == verdict
    assert said in found.reasons[0]


def test_new_rows_need_not_be_better_where_not_worse_is_enough() -> None:
    gate = {"promote_when": "not-worse"}
    assert _update(_change(0.0), _change(0.02, better=0.2), gate=gate).verdict == "PROMOTE"
