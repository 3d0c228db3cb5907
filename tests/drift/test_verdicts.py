"""Correction over columns, kinds and tasks."""

import json

import numpy as np
import pytest

from mtlops.drift.finding import Finding
from mtlops.drift.verdicts import DRIFTED, INSUFFICIENT, STABLE, bonferroni, holm, judge
from tests.drift.test_sketches import SETTINGS


def finding(p: float | None, effect: float = 0.05) -> Finding:
    if p is None:
        return Finding(1000, 3, 0.02, reason="3 rows, 50 are needed")
    return Finding(1000, 500, 0.02, statistic=9.0, effect=effect, low=0.0, high=0.1, p_value=p)


def test_holm_by_hand() -> None:
    adjusted = holm([0.01, 0.04, None, 0.03])
    assert adjusted[2] is None
    assert [adjusted[i] for i in (0, 1, 3)] == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]) == [] and holm([0.9, 0.8]) == [1.0, 1.0]


def test_bonferroni_counts_only_tests_that_were_made() -> None:
    assert bonferroni([0.01, None, 0.5]) == 0.02
    assert bonferroni([None]) is None and bonferroni([0.9, 0.8]) == 1.0


def test_a_cell_drifts_only_when_it_survives_the_correction() -> None:
    cells = judge(
        {
            "topic": {"input": {"a": finding(0.0001, 0.2), "b": finding(0.6, 0.01)}, "label": {"l": finding(0.03)}},
            "mood": {"input": {"a": finding(0.03), "b": finding(None)}, "label": {"l": finding(None)}},
        },
        SETTINGS,
    )
    verdicts = {(cell.task, cell.kind): cell.verdict for cell in cells}
    assert verdicts == {
        ("topic", "input"): DRIFTED, ("topic", "label"): STABLE, ("mood", "input"): STABLE,
        ("mood", "label"): INSUFFICIENT,
    }  # fmt: skip
    drifted, label, *_ = cells
    assert drifted.drifted == ("a",) and drifted.score == pytest.approx(10.0)
    assert (drifted.p_value, drifted.p_adjusted) == pytest.approx((0.0002, 0.0006))
    assert label.p_adjusted == pytest.approx(0.06) and label.drifted == ()
    json.dumps([cell.to_json() for cell in cells], allow_nan=False)


def test_the_level_is_that_of_all_cells_together() -> None:
    """Uniform p-values: any alarm at all in at most the stated share of judgements."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(1000):
        findings = {
            f"t{task}": {kind: {"c": finding(p), "d": finding(q)} for kind, (p, q) in enumerate(rng.random((3, 2)))}
            for task in range(8)
        }
        alarms += any(cell.verdict == DRIFTED for cell in judge(findings, SETTINGS))
    assert 0.03 < alarms / 1000 < 0.067
