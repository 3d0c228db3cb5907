"""What is said to be behind an alarm, for each way in which things can move."""

import numpy as np
import pytest

from mtlops.drift.causes import diagnose
from mtlops.drift.priors import PriorShift, prior_shift

MOVED = prior_shift(("bad", "good"), reference=np.asarray([0.5, 0.5]), current=np.asarray([0.8, 0.2]))


def causes(levels: dict[str, str], *, priors: PriorShift | None = None, is_labelled: bool = True) -> list[str]:
    found = diagnose(levels, priors=priors, floor=0.02, faults="", is_labelled=is_labelled)
    return [cause for cause, _ in found.causes] if found else []


@pytest.mark.parametrize(
    "drifted, priors, expected",
    [
        ((), None, []),
        (("quality",), None, ["concept shift"]),
        (("label",), MOVED, ["concept shift", "prior shift"]),
        (("input",), None, ["covariate shift"]),
        (("embedding", "prediction", "estimate"), None, ["covariate shift"]),
        (("prediction",), None, ["covariate shift"]),
        (("label", "prediction"), MOVED, ["prior shift"]),
        (("label", "prediction", "quality"), MOVED, ["covariate shift", "prior shift"]),
        (("input", "label", "prediction"), MOVED, ["covariate shift", "prior shift"]),
        (("data", "quality", "input"), MOVED, ["data fault"]),
    ],
)
def test_causes(drifted: tuple[str, ...], priors: PriorShift | None, expected: list[str]) -> None:
    assert causes(dict.fromkeys(drifted, "drifted"), priors=priors) == expected


def test_a_suspicion_of_the_texts_explains_answers_but_is_no_alarm() -> None:
    assert causes({"embedding": "suspected"}) == []
    assert causes({"embedding": "suspected", "prediction": "drifted"}) == ["covariate shift"]


def test_retraining_helps_but_for_a_data_fault() -> None:
    fault = diagnose({"data": "drifted"}, priors=None, floor=0.02, faults="5 rows: no value", is_labelled=False)
    assert fault and not fault.retraining_helps and "Retraining will not help" in fault.action
    shift = diagnose({"input": "drifted"}, priors=None, floor=0.02, faults="", is_labelled=False)
    assert shift and shift.retraining_helps and "/v2/feedback" in shift.action


def test_prior_shift_in_words() -> None:
    assert MOVED.describe() == "bad from 50% to 80%" and MOVED.effect > 0.02
