"""Checks against answers that are known: what passes, what fails, and what is shown of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mtlops.data.checks import Check, Directional, Invariance, Minimum
from mtlops.decoding import UNCALIBRATED, Calibration
from mtlops.evaluation.behaviour import MOST_EXAMPLES, CheckResult, run_checks
from mtlops.tasks import Task

MOOD = Task("mood", "multiclass", ("bad", "good"))


def _logits(texts: Sequence[str]) -> NDArray[np.float32]:
    """The more often a text says "good", the better."""
    good = np.asarray([text.count("good") - 0.5 for text in texts])
    return np.stack([-good, good], axis=1).astype(np.float32)


def _run(
    check: Check, task: Task = MOOD, calibration: Calibration = UNCALIBRATED, answer: Any = _logits
) -> CheckResult:
    (result,) = run_checks(task, [check], answer=answer, calibration=calibration)
    return result


def test_minimum_wants_the_label() -> None:
    result = _run(Minimum(name="n", task="mood", type="minimum", label="good", cases=["good", "plain"]))
    assert (result.cases, result.failed) == (2, 1)
    (example,) = result.examples
    assert (example.texts, example.expected) == (("plain",), "good")
    assert example.answered == "bad (bad 0.731, good 0.269)"


def test_invariance_without_tolerance_wants_the_same_label() -> None:
    cases = [("good", "good good"), ("good", "plain")]
    result = _run(Invariance(name="n", task="mood", type="invariance", cases=cases))
    assert [example.texts for example in result.examples] == [("good", "plain")]
    assert result.examples[0].answered.count(" -> ") == 1


@pytest.mark.parametrize(("tolerance", "failed"), [(0.21, 1), (0.23, 0)])
def test_invariance_with_tolerance_looks_at_probabilities(tolerance: float, failed: int) -> None:
    cases = [("good", "good good")]  # 0.731 and 0.953
    assert _run(Invariance(name="n", task="mood", type="invariance", tolerance=tolerance, cases=cases)).failed == failed


@pytest.mark.parametrize(
    ("direction", "delta", "failed"), [("rise", 0.0, 0), ("rise", 0.2, 0), ("rise", 0.3, 1), ("fall", 0.0, 1)]
)
def test_directional_wants_a_move_of_delta(direction: Any, delta: float, failed: int) -> None:
    check = Directional.model_validate({
        "name": "n", "task": "mood", "type": "directional", "class": "good", "direction": direction, "delta": delta,
        "cases": [("good", "good good")],
    })  # fmt: skip
    assert _run(check).failed == failed


def test_no_move_at_all_is_no_rise() -> None:
    check = Directional.model_validate({
        "name": "n", "task": "mood", "type": "directional", "class": "good", "direction": "rise", "cases": [("a", "b")],
    })  # fmt: skip
    assert _run(check).failed == 1


def test_a_regression_is_checked_by_its_value() -> None:
    task = Task("stars", "regression", range=(0, 5))

    def answer(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.float32([[text.count("good")] for text in texts])

    near = Minimum(name="n", task="stars", type="minimum", label=2.0, tolerance=0.5, cases=["good good", "good"])
    steady = Invariance(name="i", task="stars", type="invariance", tolerance=0.5, cases=[("good", "a good one")])
    rise = Directional.model_validate({
        "name": "d", "task": "stars", "type": "directional", "direction": "rise", "delta": 1, "cases": [("a", "good")],
    })  # fmt: skip
    found = run_checks(task, [near, steady, rise], answer=answer, calibration=UNCALIBRATED)
    assert [(result.name, result.failed) for result in found] == [("n", 1), ("i", 0), ("d", 0)]
    assert found[0].examples[0].expected == "2, at most 0.5 away"


def test_a_multilabel_answer_must_hold_all_classes_and_no_other() -> None:
    task = Task("about", "multilabel", ("price", "parts"))

    def answer(texts: Sequence[str]) -> NDArray[np.float32]:
        return np.float32([[4 * (name in text) - 2 for name in task.classes] for text in texts])

    check = Minimum(name="n", task="about", type="minimum", label=["price"], cases=["price", "price parts", "none"])
    result = _run(check, task, answer=answer)
    assert [example.texts[0] for example in result.examples] == ["price parts", "none"]
    assert result.examples[1].answered.startswith("(none) (price 0.119")
    nothing = Minimum(name="n", task="about", type="minimum", label=[], cases=["none"])
    assert _run(nothing, task, answer=answer).failed == 0


def test_the_calibration_decides_too() -> None:
    check = Minimum(name="n", task="tone", type="minimum", label="good", cases=["plain"])
    task = Task("tone", "binary", ("bad", "good"))
    assert _run(check, task).failed == 1
    assert _run(check, task, Calibration(thresholds=(0.2,))).failed == 0


def test_every_failure_is_counted_and_the_first_ones_shown() -> None:
    cases = [f"text {i}" for i in range(MOST_EXAMPLES + 3)]
    result = _run(Minimum(name="n", task="mood", type="minimum", label="good", cases=cases))
    assert result.failed == MOST_EXAMPLES + 3
    assert [example.texts[0] for example in result.examples] == cases[:MOST_EXAMPLES]


def test_checks_of_other_tasks_are_not_run() -> None:
    check = Minimum(name="n", task="other", type="minimum", label="good", cases=["plain"])
    assert run_checks(MOOD, [check], answer=_logits, calibration=UNCALIBRATED) == []
