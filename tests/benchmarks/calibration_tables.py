"""The calibration page: draws as tables."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import binomtest, chi2, norm

from tests.benchmarks.drift import LEVEL
from tests.benchmarks.page import table
from tests.benchmarks.streams import AFTER, CALM, REFERENCE_ROWS, STATED, WINDOW_ROWS

Draw = list[float]
"""What came of one draw: alarms, rows or months."""

SIZES = (100, 1000, 10_000, 100_000)
MONTHS = (1.0, 5.0, 20.0)
SHIFTS = (0.25, 0.5, 1.0)
WINDOWS_A_MONTH = 30
OURS = (f"ours, floor {STATED.effect_floor:g}", "ours, floor 0")


def all_of(kept: Mapping[str, Any], adwin: Mapping[str, list[Draw]], *, names: Sequence[str]) -> list[list[str]]:
    """Returns all tables; `names` are the populations of the first."""
    return [nulls(kept, names), families(kept), powers(kept), runs(kept), delays(kept, adwin)]


def nulls(kept: Mapping[str, list[Draw]], names: Sequence[str]) -> list[str]:
    """The table of single tests."""
    rows, above, num = [], [0, 0], 0
    for name in names:
        row: list[object] = [name]
        for size in SIZES:
            draws = kept.get(f"null/{name}/{size}", [])
            shares = [_rate(draws, k) for k in (0, 1)]
            row.append(f"{shares[0][0]:.1%}/{shares[1][0]:.1%} ({len(draws)})" if draws else "-")
            num += bool(draws)
            above = [count + (share[1] > LEVEL) for count, share in zip(above, shares, strict=True)]
        rows.append(row)
    head = ["nothing drifted", *(f"{size:,} v {size:,}" for size in SIZES)]
    said = (
        f"Alarms with floor 0 / with the floors as stated (draws). With floor 0, {LEVEL:.0%} are due. Cells whose "
        f"interval lies above the level: {above[0]} and {above[1]} of {num}; by chance {num * 0.025:.1f} at floor 0."
    )
    return ["### False alarms of one test", "", said, "", *table(head, rows)]


def families(kept: Mapping[str, list[Draw]]) -> list[str]:
    """The table of whole judgements."""
    rows = []
    for key, draws in kept.items():
        if key.startswith("family/") and draws:
            _, tasks, size = key.split("/")
            for position, floor in enumerate(("0", "as stated")):
                rate, low, high = _rate(draws, position)
                holds = "yes" if low <= LEVEL else "NO"
                rows.append([tasks, f"{int(size):,}", floor, len(draws), f"{rate:.1%} [{low:.1%}, {high:.1%}]", holds])
    head = ["tasks", "rows", "floor", "draws", "any false alarm", "level within or above the interval"]
    said = f"Stated: {LEVEL:.0%} for all tasks and 14 columns each together; twice as many rows of reference."
    return ["### False alarms of a whole judgement", "", said, "", *table(head, rows)]


def powers(kept: Mapping[str, list[Draw]]) -> list[str]:
    """The table of shifts around the floor."""
    rows = []
    for key, draws in kept.items():
        if key.startswith("power/") and draws:
            _, name, factor, n, m = key.split("/")
            rate, low, high = _rate(draws, 0)
            is_met = rate >= 0.9 if float(factor) > 1 else rate <= LEVEL
            wanted = "at least 90%" if float(factor) > 1 else f"at most {LEVEL:.0%}"
            normal = _normal_test(name, float(factor), int(n), int(m))
            rows.append([name, factor, f"{int(n):,}", f"{int(m):,}", len(draws), f"{rate:.1%} [{low:.1%}, {high:.1%}]",
                         normal, wanted, "yes" if is_met else "NO"])  # fmt: skip
    head = [
        "column",
        "true effect / floor",
        "reference rows",
        "rows",
        "draws",
        "alarms",
        "normal test",
        "wanted",
        "met",
    ]
    said = (
        "Normal test: what a one-sided test of this level gives that knows the direction of the shift and has normal "
        "noise, which changes with the shift here: no test of every kind of shift can do much better."
    )
    return ["### Around the floor", "", said, "", *table(head, rows)]


def _normal_test(name: str, factor: float, n: int, m: int) -> str:
    """Power of the one-sided normal test; embeddings have no such simple bound."""
    if name == "embeddings" or factor < 1:
        return "-"
    root = (n * m / (n + m) * STATED.effect_floor) ** 0.5
    return f"{norm.cdf(root * (factor**0.5 - 1.0) - norm.ppf(1.0 - LEVEL)):.1%}"


def runs(kept: Mapping[str, list[Draw]]) -> list[str]:
    """The table of times to a false alarm."""
    rows = []
    for key, draws in kept.items():
        if not key.startswith("run/") or not draws:
            continue
        months = sum(draw[0] for draw in draws)
        row: list[object] = [key.removeprefix("run/")]
        for position, stated in enumerate(MONTHS, start=1):
            alarms = sum(draw[position] for draw in draws)
            low = months / (chi2.ppf(0.975, 2 * alarms + 2) / 2) / stated
            least = "> " if alarms == 0 else ""
            row.append(f"{least}{months / max(alarms, 1) / stated:.1f}, at least {low:.1f} ({alarms:.0f})")
        rows.append([*row, f"{months:,.0f}"])
    said = (
        f"Months to a false alarm, realised over stated, the lower end of its interval (alarms seen); 0.9 is wanted. "
        f"{REFERENCE_ROWS:,} rows of reference, windows of {WINDOW_ROWS}, {WINDOWS_A_MONTH} a month, a fresh reference "
        "every 300 windows. Volume: rows an hour with nights and quiet weekends."
    )
    head = ["what comes in", *(f"stated {months:g} months" for months in MONTHS), "months seen"]
    return ["### Time to a false alarm", "", said, "", *table(head, rows)]


def delays(kept: Mapping[str, list[Draw]], adwin: Mapping[str, list[Draw]]) -> list[str]:
    """The table of delays, ADWIN's beside ours."""
    found = {name: kept.get(f"delay/{name}", []) for name in OURS} | dict(adwin)
    rows = []
    for name, draws in found.items():
        if draws:
            alarms, total = sum(draw[0] for draw in draws), len(draws) * CALM
            late = [np.median([draw[k] for draw in draws]) for k in (1, 2, 3)]
            said = ["never" if rows >= AFTER else f"{rows:,.0f}" for rows in late]
            between = f"{'> ' if alarms == 0 else ''}{total / max(alarms, 1):,.0f}"
            rows.append([name, f"{between} ({alarms:.0f})", *said])
    said = (
        f"Rows between false alarms on calm normal numbers (alarms seen), and median rows from a change of the mean to "
        f"its alarm, {len(found[OURS[1]])} streams. Ours: windows of 100 rows, stated 100,000 rows between "
        "false alarms. Compare rows with like false alarms. ADWIN watches the mean of one column, every 32 rows."
    )
    head = ["detector", "rows between false alarms", *(f"{shift} sigma" for shift in SHIFTS)]
    return ["### Delay", "", said, "", *table(head, rows)]


def _rate(draws: list[Draw], position: int) -> tuple[float, float, float]:
    """Share of alarms with its 95 % Clopper-Pearson interval."""
    if not draws:
        return 0.0, 0.0, 1.0
    alarms = int(sum(draw[position] for draw in draws))
    interval = binomtest(alarms, len(draws)).proportion_ci(0.95)
    return alarms / len(draws), float(interval.low), float(interval.high)
