"""The test of means: exact on large samples, with its floor inside."""

import numpy as np
import pytest
from scipy.stats import ttest_ind

from mtlops.drift.finding import Settings
from mtlops.drift.mean import Mean

PLAIN = Settings(0.05, 0.02, 0.002, 10, 50, metric_floor=1e-12)
FLOOR = Settings(0.05, 0.02, 0.002, 10, 50, metric_floor=0.05)


def test_without_a_floor_it_is_the_usual_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.8, 0.2, 3000), rng.normal(0.81, 0.2, 1000)
    expected = ttest_ind(a, b, equal_var=False).pvalue
    found = Mean().of(a).compare(Mean().of(b), PLAIN)
    assert found.p_value == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(
    "shift, rate", [(0.0, (0.0, 0.01)), (0.05, (0.01, 0.12)), (-0.05, (0.01, 0.12)), (0.1, (0.95, 1.0))]
)
def test_only_changes_beyond_the_floor_are_found(shift: float, rate: tuple[float, float]) -> None:
    rng = np.random.default_rng(1)
    reference = Mean().of(rng.normal(0.8, 0.2, 50_000))
    alarms = [
        reference.compare(Mean().of(rng.normal(0.8 + shift, 0.2, 1000)), FLOOR).p_value <= 0.05 for _ in range(200)
    ]
    assert rate[0] <= np.mean(alarms) <= rate[1]


def test_missing_values_are_left_out() -> None:
    assert Mean().of([1.0, float("nan"), 3.0]) == Mean().of([1.0, 3.0])
