"""Rows in an hour: silent on habits of any kind, loud on silence and floods, and never learnt from an alarm."""

from collections.abc import Callable

import numpy as np
import pytest
from scipy.stats import nbinom, poisson

from mtlops.drift.detector import DRIFTED, Detector
from mtlops.drift.volume import LEAST_FORECASTS, Rhythm, _at_least, _at_most

DAY = 24
Rate = Callable[[int, np.random.Generator], float]


def night_and_day(slot: int) -> float:
    return 200.0 * (1.0 + 0.98 * np.sin(2 * np.pi * slot / DAY))


def on_weekdays(slot: int) -> float:
    return 0.1 if slot // DAY % 7 in (5, 6) else 1.0


HABITS: dict[str, Rate] = {
    "even": lambda slot, rng: 100.0,
    "uneven": lambda slot, rng: 100.0 * rng.gamma(4.0) / 4.0,
    "bursts": lambda slot, rng: 100.0 * rng.lognormal(0.0, 0.8),
    "few rows": lambda slot, rng: 0.7,
    "night and day": lambda slot, rng: night_and_day(slot),
    "weekends": lambda slot, rng: night_and_day(slot) * on_weekdays(slot) * rng.gamma(9.0) / 9.0,
}


def alarms(rate: Rate, *, season: str, days: int, fault: Callable[[int], float] | None = None, seed: int = 0):
    """Numbers of the slots at which an alarm begins, and the rhythm at the end."""
    rng, rhythm, detector = np.random.default_rng(seed), Rhythm(60, season), Detector(20.0)
    found = []
    for slot in range(days * DAY):
        rows = int(rng.poisson(rate(slot, rng) * (fault(slot) if fault else 1.0)))
        finding = rhythm.judge(slot, rows, factor=3.0)
        before, detector = detector, detector.after(finding.p_value if finding else None, months=1 / 720)
        found += [slot] * (detector.level == DRIFTED != before.level)
        rhythm.add(slot, rows, is_calm=detector.level != DRIFTED)
    return found, rhythm


@pytest.mark.parametrize("season", ["none", "weekly"])
@pytest.mark.parametrize("habit", HABITS)
def test_habits_give_no_alarm(habit: str, season: str) -> None:
    assert alarms(HABITS[habit], season=season, days=24)[0] == []


@pytest.mark.parametrize(
    "habit, season, within",
    [("even", "none", 4), ("uneven", "none", 8), ("night and day", "daily", 4), ("weekends", "weekly", 6)],
)
@pytest.mark.parametrize("factor", [0.0, 10.0])
def test_silence_and_floods_alarm_within_hours(habit: str, season: str, within: int, factor: float) -> None:
    start = 30 * DAY + 6
    found, _ = alarms(HABITS[habit], season=season, days=31, fault=lambda slot: factor if slot >= start else 1.0)
    assert len(found) == 1 and start <= found[0] < start + within


def test_rows_within_the_factor_are_no_fault() -> None:
    found, _ = alarms(HABITS["even"], season="none", days=30, fault=lambda slot: 2.2 if slot >= 15 * DAY else 1.0)
    assert found == []


def test_what_led_to_an_alarm_is_not_learnt() -> None:
    found, rhythm = alarms(HABITS["even"], season="none", days=20, fault=lambda slot: 0.0 if slot >= 15 * DAY else 1.0)
    assert len(found) == 1 and rhythm.pending == []
    assert all(slot.rows > 50 for slot in rhythm.learnt)


def test_nothing_is_said_before_enough_forecasts_were_put_to_the_test() -> None:
    rhythm = Rhythm(60, "none")
    judged = []
    for slot in range(4 * DAY):
        judged.append(rhythm.judge(slot, 100, factor=3.0) is not None)
        rhythm.add(slot, 100, is_calm=True)
    # Two slots are learnt a day late, then come the forecasts, which are learnt a day late as well.
    assert judged.index(True) == 2 * DAY + 2 + LEAST_FORECASTS


def test_memory_is_bounded_and_restored_to_the_bit() -> None:
    _, rhythm = alarms(HABITS["uneven"], season="daily", days=60)
    assert len(rhythm.learnt) <= 56 * DAY and len(rhythm.pending) == DAY
    again = Rhythm.from_json(rhythm.to_json(), minutes=60, season="daily")
    assert again == rhythm
    assert again.judge(60 * DAY, 3, factor=3.0) == rhythm.judge(70 * DAY, 3, factor=3.0)


@pytest.mark.parametrize("rows, mean, shape", [(3, 5.0, 2.0), (0, 40.0, 4.0), (90, 40.0, 10.0)])
def test_tails_are_those_of_the_negative_binomial_and_of_poisson(rows: int, mean: float, shape: float) -> None:
    share = shape / (shape + mean)
    assert _at_most(rows, mean, 1.0 / shape) == pytest.approx(nbinom.cdf(rows, shape, share))
    assert _at_least(rows, mean, 1.0 / shape) == pytest.approx(nbinom.sf(rows - 1, shape, share))
    assert _at_most(rows, mean, 0.0) == pytest.approx(poisson.cdf(rows, mean))
    assert _at_least(rows, mean, 0.0) == pytest.approx(poisson.sf(rows - 1, mean))
