"""Alarms keep their budget whatever the pace of windows, come soon after a change, and end with it."""

import numpy as np
import pytest

from mtlops.drift.detector import DRIFTED, OK, SUSPECTED, Detector, evidence, threshold

DAY = 1.0 / 30.0


def test_evidence_is_fair_under_no_drift() -> None:
    # The mean of e(p) over uniform p is 1: integrate on a grid that is fine where e is steep.
    edges = np.concatenate([[0.0], np.logspace(-15, 0, 200_001)])
    middle = np.sqrt(np.maximum(edges[:-1], 1e-16) * edges[1:])
    mean = sum(evidence(float(p)) * width for p, width in zip(middle, np.diff(edges), strict=True))
    assert 0.95 < mean < 1.01


def test_evidence_falls_with_p_and_is_smooth_at_its_end() -> None:
    values = [evidence(p) for p in (1e-15, 1e-9, 1e-4, 0.01, 0.2, 0.6, 0.95, 0.9999, 1.0)]
    assert values == sorted(values, reverse=True)
    assert evidence(1.0) == pytest.approx(evidence(0.99999), rel=1e-3) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("windows_a_month", [4, 30, 1000])
def test_false_alarms_keep_the_budget_at_any_pace(windows_a_month: int) -> None:
    rng = np.random.default_rng(windows_a_month)
    months, cells, alarms = 60, 20, 0
    limit = threshold(cells=1, false_alarms_per_month=0.5)
    for _ in range(cells):
        detector = Detector(limit)
        for p in rng.random(months * windows_a_month).tolist():
            before, detector = detector, detector.after(p, months=1.0 / windows_a_month)
            alarms += detector.level == DRIFTED != before.level
    # Stated: at most one in two months of each of 20 cells, 600 in all.
    assert alarms <= months * cells * 0.5


def test_one_clear_window_alarms_and_some_unclear_ones_do() -> None:
    detector = Detector(20.0)
    assert detector.after(1e-9, months=DAY).level == DRIFTED
    for _ in range(8):
        detector = detector.after(0.005, months=DAY)
    assert detector.level == DRIFTED


def test_an_alarm_ends_some_windows_after_the_drift() -> None:
    detector = Detector(20.0).after(1e-15, months=DAY)
    levels = []
    for _ in range(7):
        detector = detector.after(1.0, months=DAY)
        levels.append(detector.level)
    assert levels[0] == DRIFTED and levels[-1] == OK


def test_suspicion_comes_before_the_alarm() -> None:
    detector, seen = Detector(20.0), []
    for _ in range(10):
        detector = detector.after(0.01, months=DAY)
        seen.append(detector.level)
    assert seen == sorted(seen, key=[OK, SUSPECTED, DRIFTED].index) and SUSPECTED in seen


def test_a_window_that_cannot_be_judged_changes_nothing_but_time() -> None:
    assert Detector(20.0, 3.0).after(None, months=DAY).value == 3.0 + DAY
