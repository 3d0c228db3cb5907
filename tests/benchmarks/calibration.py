"""The calibration table: are drift alarms as rare, and as quick, as stated? `python -m tests.benchmarks.calibration`.

Writes its part of docs/benchmarks.md. Draws are kept in build/calibration.json, so that a run that was stopped, by hand
or by `--minutes`, goes on where it was; every draw has its own seed. `--adwin PYTHON` gives a Python with `river`.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mtlops.drift.detector import DRIFTED, Detector
from mtlops.drift.volume import Rhythm
from mtlops.files import read_json, write_json
from tests.benchmarks import calibration_tables as tables
from tests.benchmarks import streams
from tests.benchmarks.calibration_tables import MONTHS, SHIFTS, SIZES, WINDOWS_A_MONTH, Draw
from tests.benchmarks.drift import LEVEL, _any_alarms, _samples, _shifted, shift_of
from tests.benchmarks.page import machine, write_part
from tests.benchmarks.streams import STATED, WITHOUT_FLOOR, Windows

KEPT = Path("build/calibration.json")
DELTAS = (0.0005, 0.002, 0.05, 0.5)
_BATCH_SECONDS = 5.0
_FLOORS = [STATED.effect_floor, STATED.embedding_floor]


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
    kept: dict[str, Any] = read_json(KEPT, made_by="this benchmark") if KEPT.exists() else {}
    if kept.get("floors") != _FLOORS:
        kept = {"floors": _FLOORS}
    cells = [*null_cells(), *family_cells(), *run_cells(), *power_cells(), *delay_cells()]
    missing = _fill(cells, kept, seconds=60.0 * options.minutes)
    adwin = _adwin(options.adwin, kept) if options.adwin else kept.get("adwin", {})
    lines = [
        "## Calibration", "",
        f"`OMP_NUM_THREADS=1 python -m tests.benchmarks.calibration` on {machine()}. Level {LEVEL:.0%}; floors: "
        f"w^2 = {STATED.effect_floor}, squared discrepancy {STATED.embedding_floor}. Brackets: 95 % intervals. "
        + (f"{missing:.0%} of the draws are still missing: run it again." if missing else "All draws were made."),
        *(line for part in tables.all_of(kept, adwin, names=list(_samples())) for line in ("", *part)),
    ]  # fmt: skip
    print("\n".join(lines))
    write_part("calibration", lines)


def _fill(cells: list[Cell], kept: dict[str, Any], *, seconds: float) -> float:
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
        for rows in SIZES:

            def draw(seed: int, tasks: int = tasks, rows: int = rows) -> Draw:
                rng = np.random.default_rng([2, tasks, rows, seed])
                found = _any_alarms(rng, tasks, (WITHOUT_FLOOR, STATED), sizes=(2 * rows, rows))
                return [float(alarm) for alarm in found]

            draws = {10_000: 100, 100_000: {1: 100, 8: 20}[tasks]}.get(rows, 400)
            yield Cell(f"family/{tasks}/{rows}", draws, draw)


def power_cells() -> Iterator[Cell]:
    """Shifts of half and of twice the floor."""
    for number, (name, shifted) in enumerate(_shifted().items()):
        for factor, n, m in ((0.5, 100_000, 100_000), (2.0, 20_000, 5000), (2.0, 5000, 5000)):

            def draw(seed: int, case: tuple = (number, shifted, factor, n, m)) -> Draw:
                rng = np.random.default_rng([3, case[0], int(10 * case[2]), case[3], seed])
                return [float(_is_low(case[1](rng, *case[3:], case[2]).p_value))]

            few = name == "embeddings" and m > 5000
            yield Cell(f"power/{name}/{factor}/{n}/{m}", 20 if few else 1000 if m == 5000 else 400, draw)


_HALF, _WHOLE = (shift_of(share * STATED.effect_floor, share=0.5) for share in (0.5, 1.0))
_RUNS: dict[str, Callable[[np.random.Generator], Windows]] = {
    "numeric, floor 0": lambda rng: streams.numeric(rng, WITHOUT_FLOOR, shift=0.0),
    "10 categories, floor 0": lambda rng: streams.categories(rng, WITHOUT_FLOOR),
    "embeddings of 16, floor 0": lambda rng: streams.embeddings(rng, WITHOUT_FLOOR),
    "numeric, floor as stated": lambda rng: streams.numeric(rng, STATED, shift=0.0),
    "numeric, shift of half the floor": lambda rng: streams.numeric(rng, STATED, shift=_HALF),
    "numeric, shift of exactly the floor": lambda rng: streams.numeric(rng, STATED, shift=_WHOLE),
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
    for name, settings in zip(tables.OURS, (STATED, WITHOUT_FLOOR), strict=True):

        def draw(seed: int, settings: Any = settings) -> Draw:
            calm, *found = (streams.alarms(streams.stream(seed, s), seed, settings) for s in (0.0, *SHIFTS))
            return [float(len(calm)), *map(streams.late, found)]

        yield Cell(f"delay/{name}", 40, draw)


def _adwin(python: str, kept: dict[str, Any]) -> dict[str, list[Draw]]:
    """The same streams through river's ADWIN, at its own delta and at others; a draw for each seed of ours."""
    found: dict[str, list[Draw]] = {f"ADWIN, delta {delta:g}": [] for delta in DELTAS}
    for seed in range(len(kept.get(f"delay/{tables.OURS[1]}", []))):
        given = {str(shift): streams.stream(seed, shift) for shift in (0.0, *SHIFTS)}
        calm, *changed = streams.adwin_alarms(python, given, DELTAS).values()
        for k, draws in enumerate(found.values()):
            draws.append([float(len(calm[k])), *(streams.late(alarms[k]) for alarms in changed)])
    kept["adwin"] = found
    write_json(KEPT, kept)
    return found


def _is_low(p_value: float | None) -> bool:
    return p_value is not None and p_value <= LEVEL


if __name__ == "__main__":
    sys.exit(main())
