"""The calibration table: are drift alarms as rare, and as quick, as stated? `python -m tests.benchmarks.calibration`.

Writes its part of docs/benchmarks.md. Draws are kept in build/calibration.json, so that a run that was stopped, by hand
or by `--minutes`, goes on where it was; every draw has its own seed. `--adwin PYTHON` gives a Python with `river`.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest, chi2, norm

from mtlops.drift.detector import DRIFTED, Detector
from mtlops.drift.histogram import Histogram
from mtlops.drift.volume import Rhythm
from mtlops.files import read_json, write_json
from tests.benchmarks.drift import (
    LEVEL,
    STATED,
    WITHOUT_FLOOR,
    _any_alarm,
    _samples,
    _shifted,
)
from tests.benchmarks.monitoring import (
    REFERENCE_ROWS,
    WINDOW_ROWS,
    WINDOWS_A_MONTH,
    Windows,
    _categories,
    _embeddings,
    _numeric,
)
from tests.benchmarks.page import machine, table, write_part

KEPT = Path("build/calibration.json")
SIZES = (100, 1000, 10_000, 100_000)
MONTHS = (1.0, 5.0, 20.0)
SHIFTS = (0.25, 0.5, 1.0)
DELTAS = (0.002, 0.05, 0.2, 0.5, 0.9)
BEFORE, AFTER, CALM = 5000, 20_000, 50_000
_BATCH_SECONDS = 5.0

Draw = list[float]


@dataclass(frozen=True)
class Cell:
    """Something that is drawn again and again.

    Attributes:
        key: its name in the file.
        draws: how often.
        draw: seed -> numbers, the same from the same seed.
    """

    key: str
    draws: int
    draw: Callable[[int], Draw]


def main() -> None:
    """Draws what is missing, prints the tables, and writes them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0, help="stop after so many (default: 60)")
    parser.add_argument("--adwin", default="", help="a Python with river")
    options = parser.parse_args()
    kept: dict[str, list[Draw]] = read_json(KEPT, made_by="this benchmark") if KEPT.exists() else {}
    cells = [*null_cells(), *family_cells(), *run_cells(), *power_cells(), *delay_cells()]
    missing = _fill(cells, kept, seconds=60.0 * options.minutes)
    adwin = _adwin(options.adwin, kept) if options.adwin else kept.get("adwin", [])
    lines = [
        "## Calibration", "",
        f"`OMP_NUM_THREADS=1 python -m tests.benchmarks.calibration` on {machine()}. Level {LEVEL:.0%}; floors: "
        f"w^2 = {STATED.effect_floor}, squared discrepancy {STATED.embedding_floor}. Brackets: 95 % intervals. "
        + (f"{missing:.0%} of the draws are still missing: run it again." if missing else "All draws were made."),
        "", *nulls(kept), "", *families(kept), "", *powers(kept), "", *runs(kept), "", *delays(kept, adwin),
    ]  # fmt: skip
    print("\n".join(lines))
    write_part("calibration", lines)


def _fill(cells: list[Cell], kept: dict[str, list[Draw]], *, seconds: float) -> float:
    """Draws in turns until nothing is missing or the time is over; returns the share that is missing."""
    started = time.monotonic()
    left = cells
    while (left := [cell for cell in left if len(kept.setdefault(cell.key, [])) < cell.draws]) and (
        time.monotonic() - started < seconds
    ):
        # The cell that lacks most goes first, so that a short run fills all of them evenly.
        cell = min(left, key=lambda cell: len(kept[cell.key]) / cell.draws)
        batch = time.process_time()
        while len(kept[cell.key]) < cell.draws and time.process_time() - batch < _BATCH_SECONDS:
            kept[cell.key].append(cell.draw(len(kept[cell.key])))
        write_json(KEPT, kept)
    return 1.0 - sum(min(len(kept[cell.key]), cell.draws) / cell.draws for cell in cells) / len(cells)


def null_cells() -> Iterator[Cell]:
    """Single tests of two samples of the same population: alarm at floor 0, and at the stated floors."""
    for number, (name, pair) in enumerate(_samples().items()):
        for size in SIZES:
            draws = 400 if not name.startswith("embeddings") or size <= 1000 else {10_000: 200}.get(size, 40)

            def draw(seed: int, number: int = number, size: int = size, pair: Any = pair) -> Draw:
                compare = pair(np.random.default_rng([1, number, size, seed]), size, size)
                return [float(_is_low(compare(settings).p_value)) for settings in (WITHOUT_FLOOR, STATED)]

            yield Cell(f"null/{name}/{size}", draws, draw)


def family_cells() -> Iterator[Cell]:
    """A whole judgement of 1 and of 8 tasks, 14 columns each."""
    for tasks in (1, 8):
        for rows in (100, 1000, 10_000):
            for name, settings in (("0", WITHOUT_FLOOR), ("as stated", STATED)):

                def draw(seed: int, tasks: int = tasks, rows: int = rows, settings: Any = settings) -> Draw:
                    rng = np.random.default_rng([2, tasks, rows, seed])
                    return [float(_any_alarm(rng, tasks, settings, sizes=(2 * rows, rows)))]

                yield Cell(f"family/{tasks}/{rows}/{name}", 400 if rows < 10_000 else 100, draw)


def power_cells() -> Iterator[Cell]:
    """Shifts of half and of twice the floor."""
    for number, (name, shifted) in enumerate(_shifted().items()):
        for factor, n, m in ((0.5, 100_000, 100_000), (2.0, 20_000, 5000), (2.0, 5000, 5000)):

            def draw(seed: int, case: tuple = (number, shifted, factor, n, m)) -> Draw:
                rng = np.random.default_rng([3, case[0], int(10 * case[2]), case[3], seed])
                return [float(_is_low(case[1](rng, *case[3:], case[2]).p_value))]

            few = name == "embeddings" and m > 5000
            yield Cell(f"power/{name}/{factor}/{n}/{m}", 20 if few else 400, draw)


_RUNS: dict[str, Callable[[np.random.Generator], Windows]] = {
    "numeric, floor 0": lambda rng: _numeric(rng, WITHOUT_FLOOR, shift=0.0),
    "10 categories, floor 0": lambda rng: _categories(rng, WITHOUT_FLOOR),
    "embeddings of 16, floor 0": lambda rng: _embeddings(rng, WITHOUT_FLOOR),
    "numeric, floor as stated": lambda rng: _numeric(rng, STATED, shift=0.0),
}


def run_cells() -> Iterator[Cell]:
    """300 windows against one finite reference: false alarms at each stated time; and 60 days of hours for volume."""
    for name, windows in _RUNS.items():

        def draw(seed: int, windows: Any = windows) -> Draw:
            detectors, alarms = {t: Detector(t) for t in MONTHS}, dict.fromkeys(MONTHS, 0.0)
            for _, finding in zip(range(300), windows(np.random.default_rng([4, seed])), strict=False):
                for stated, detector in detectors.items():
                    after = detector.after(finding.p_value, months=1.0 / WINDOWS_A_MONTH)
                    alarms[stated] += after.level == DRIFTED
                    detectors[stated] = Detector(stated) if after.level == DRIFTED else after
            return [300 / WINDOWS_A_MONTH, *alarms.values()]

        yield Cell(f"run/{name}", 20 if name.startswith("embeddings") else 100, draw)
    for season in ("none", "weekly"):
        yield Cell(f"run/volume, season {season}", 60, lambda seed, season=season: _hours(seed, season=season))


def _hours(seed: int, *, season: str) -> Draw:
    """Rows an hour with nights, quiet weekends, and a rate that varies by a third from hour to hour."""
    rng, rhythm, days = np.random.default_rng([5, seed]), Rhythm(60, season), 60
    detectors, alarms = {t: Detector(t) for t in MONTHS}, dict.fromkeys(MONTHS, 0.0)
    for hour in range(days * 24):
        usual = 200.0 * (1.0 + 0.98 * np.sin(2 * np.pi * hour / 24)) * (0.1 if hour // 24 % 7 in (5, 6) else 1.0)
        rows = int(rng.poisson(usual * rng.gamma(9.0) / 9.0))
        finding = rhythm.judge(hour, rows, factor=3.0)
        for stated, detector in detectors.items():
            after = detector.after(finding.p_value if finding else None, months=1 / 720)
            alarms[stated] += after.level == DRIFTED
            detectors[stated] = Detector(stated) if after.level == DRIFTED else after
        rhythm.add(hour, rows, is_calm=True)
    return [days / 30.0, *alarms.values()]


def delay_cells() -> Iterator[Cell]:
    """Rows from a change to its alarm, and false alarms on calm rows, of ours."""
    for name, settings in (("ours, floor 0.02", STATED), ("ours, floor 0", WITHOUT_FLOOR)):

        def draw(seed: int, settings: Any = settings) -> Draw:
            calm = len(_alarms(_stream(seed, 0.0), seed, settings))
            return [calm, *(_late(_alarms(_stream(seed, shift), seed, settings)) for shift in SHIFTS)]

        yield Cell(f"delay/{name}", 40, draw)


def _stream(seed: int, shift: float) -> np.ndarray:
    values = np.random.default_rng([6, seed, int(100 * shift)]).normal(size=CALM if shift == 0.0 else BEFORE + AFTER)
    if shift:
        values[BEFORE:] += shift
    return values


def _alarms(stream: np.ndarray, seed: int, settings: Any) -> list[int]:
    """Row numbers of alarms: windows of 100 rows, 10,000 rows a month, one false alarm stated in 10 months."""
    reference = Histogram.fit(np.random.default_rng([7, seed]).normal(size=REFERENCE_ROWS), settings=settings)
    detector, found = Detector(10.0), []
    for start in range(0, len(stream) - 99, 100):
        finding = reference.compare(reference.of(stream[start : start + 100]), settings)
        detector = detector.after(finding.p_value, months=0.01)
        if detector.level == DRIFTED:
            found.append(start + 100)
            detector = Detector(10.0)
    return found


def _late(alarms: list[int]) -> float:
    return float(next((at - BEFORE for at in alarms if at > BEFORE), AFTER))


def _adwin(python: str, kept: dict[str, Any]) -> list[Any]:
    """The same streams through river's ADWIN, at its own delta and at larger ones: [delta, draw of each seed]."""
    program = """
import json, sys
import numpy as np
from river.drift import ADWIN
given = json.load(sys.stdin)
def alarms(stream, delta):
    detector, found = ADWIN(delta=delta), []
    for k, x in enumerate(np.load(stream).tolist()):
        detector.update(x)
        if detector.drift_detected:
            found.append(k + 1)
    return found
print(json.dumps([[delta, [[alarms(s, delta) for s in streams] for streams in given["streams"]]]
                  for delta in given["deltas"]]))
"""
    seeds = range(len(kept.get("delay/ours, floor 0", [])))
    folder = KEPT.parent / "streams"
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for seed in seeds:
        files.append([str(folder / f"{seed}-{shift}.npy") for shift in (0.0, *SHIFTS)])
        for shift, file in zip((0.0, *SHIFTS), files[-1], strict=True):
            np.save(file, _stream(seed, shift))
    given = json.dumps({"streams": files, "deltas": DELTAS})
    done = subprocess.run([python, "-c", program], input=given, capture_output=True, text=True, check=True)
    found = [
        [delta, [[len(calm), *map(_late, changed)] for calm, *changed in draws]]
        for delta, draws in json.loads(done.stdout)
    ]
    kept["adwin"] = found
    write_json(KEPT, kept)
    return found


def nulls(kept: Mapping[str, list[Draw]]) -> list[str]:
    """The table of single tests."""
    rows, above, num = [], [0, 0], 0
    for name in _samples():
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
            _, tasks, size, floor = key.split("/")
            rate, low, high = _rate(draws, 0)
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
        "noise, which changes with the shift here: 5,000 rows against no more than 5,000 allow about 90%."
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


def delays(kept: Mapping[str, list[Draw]], adwin: list[Any]) -> list[str]:
    """The table of delays, ADWIN's beside ours."""
    found = {name: kept.get(f"delay/{name}", []) for name in ("ours, floor 0.02", "ours, floor 0")}
    found |= {f"ADWIN, delta {delta:g}": draws for delta, draws in adwin}
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
        f"its alarm, {len(found['ours, floor 0'])} streams. Ours: windows of 100 rows, stated 100,000 rows between "
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


def _is_low(p_value: float | None) -> bool:
    return p_value is not None and p_value <= LEVEL


if __name__ == "__main__":
    sys.exit(main())
