"""How often drift tests are wrong, what they find, and how fast they are: `python -m tests.benchmarks.drift`.

`--suite FOLDER` adds the production windows of a finished run of the default suite. `--quick` draws a tenth.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from scipy.optimize import brentq
from scipy.stats import binomtest, norm

from mtlops.drift.categories import Categories
from mtlops.drift.columns import Column
from mtlops.drift.embeddings import Embeddings
from mtlops.drift.finding import Finding, Settings
from mtlops.drift.histogram import Histogram
from mtlops.drift.profile import ENCODER, Profile
from mtlops.drift.verdicts import DRIFTED, judge
from tests.benchmarks.page import machine, table, write_part
from tests.benchmarks.streams import STATED, WITHOUT_FLOOR

LEVEL = 0.05
SIZES = [(100, 100), (1000, 100), (100, 1000), (1000, 1000), (100_000, 100), (10_000, 10_000), (100_000, 100_000)]
"""Rows of the reference and of the sample."""

Sampler = Callable[[np.random.Generator, int], np.ndarray]

DISTRIBUTIONS: dict[str, Sampler] = {
    "normal": lambda rng, n: rng.normal(size=n),
    "uniform": lambda rng, n: rng.random(n),
    "exponential": lambda rng, n: rng.exponential(size=n),
    "Student t, 2 degrees": lambda rng, n: rng.standard_t(2, size=n),
    "counts, half of them 0": lambda rng, n: rng.poisson(6, size=n) * (rng.random(n) < 0.5),
}


class Rate:
    """Share of alarms among independent draws, with its 95 % Clopper-Pearson interval."""

    def __init__(self, alarms: Iterator[bool]) -> None:
        found = list(alarms)
        self.alarms, self.draws = sum(found), len(found)
        interval = binomtest(self.alarms, self.draws).proportion_ci(0.95)
        self.low, self.high = float(interval.low), float(interval.high)

    def __str__(self) -> str:
        return f"{self.alarms / self.draws:.1%} [{self.low:.1%}, {self.high:.1%}]"


def main() -> None:
    """Runs everything, prints it, and writes its part of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--suite", type=Path, help="a checkout in which the default suite was run")
    options = parser.parse_args()
    draws = 40 if options.quick else 200
    command = f"OMP_NUM_THREADS=1 python -m tests.benchmarks.drift{' --suite .' if options.suite else ''}"
    about = f"Level {LEVEL:.0%}; floors: w^2 = {STATED.effect_floor}, squared discrepancy {STATED.embedding_floor}."
    lines = ["## Drift", "", f"`{command}` on {machine()}. {about} Brackets: 95 % binomial interval."]
    for part in (nulls, families, power, speed):
        started = time.process_time()
        found = part(draws)
        lines += ["", *found]
        print("\n".join(found), f"\n({time.process_time() - started:.0f} CPU s)\n", flush=True)
    if options.suite:
        found = windows(options.suite)
        lines += ["", *found]
        print("\n".join(found))
    if not options.quick:
        write_part("drift", lines)


def nulls(draws: int) -> list[str]:
    """False alarms of single tests where nothing drifted."""
    rows, cells = [], []
    for name, pair in _samples().items():
        row = [name]
        for n, m in SIZES:
            num_draws = _affordable(draws, name, n + m)
            if num_draws == 0:
                row.append("-")
                continue
            rng = np.random.default_rng([n, m, len(name)])
            found = [pair(rng, n, m) for _ in range(num_draws)]
            rates = [Rate(_is_low(compare(s).p_value) for compare in found) for s in (WITHOUT_FLOOR, STATED)]
            cells.append(rates)
            row.append("/".join(f"{rate.alarms / num_draws:.1%}" for rate in rates) + f" ({num_draws})")
        rows.append(row)
    plain, floor = (sum(rate.low > LEVEL for rate in column) for column in zip(*cells, strict=True))
    head = ["nothing drifted", *(f"{n:,} v {m:,}" for n, m in SIZES)]
    said = (
        "Share of alarms with the floor set to 0 / with the floors as stated (draws), reference rows v rows. With a "
        f"floor of 0 it is an ordinary test, and {LEVEL:.0%} are due; with the floor it hardly ever alarms on nothing. "
        f"Cells whose binomial interval lies above the level: {plain} and {floor} of {len(cells)}."
    )
    return ["### False alarms of one test", "", said, "", *table(head, rows)]


def families(draws: int) -> list[str]:
    """Any false alarm at all in one judgement of many tasks."""
    rows = []
    for tasks in (1, 8):
        rng = np.random.default_rng(tasks)
        found = [_any_alarms(rng, tasks, (WITHOUT_FLOOR, STATED)) for _ in range(draws)]
        for name, alarms in zip(("0", "as stated"), zip(*found, strict=True), strict=True):
            rate = Rate(iter(alarms))
            rows.append([tasks, tasks * 14, name, rate.draws, rate])
    head = ["tasks", "columns", "floor", "draws", "any false alarm"]
    said = (
        f"Stated: {LEVEL:.0%}. 1,000 rows against 2,000; per task 8 dependent text statistics, embeddings, 4 columns "
        "of answers, labels."
    )
    return ["### False alarms of a whole judgement", "", said, "", *table(head, rows)]


def power(draws: int) -> list[str]:
    """Alarms below, at and above the floor."""
    rows = []
    cases = ((0.5, 100_000, 100_000), (1.0, 20_000, 5000), (2.0, 20_000, 5000), (2.0, 5000, 5000), (4.0, 5000, 1000))
    for name, shifted in _shifted().items():
        for factor, n, m in cases:
            rng = np.random.default_rng(int(10 * factor) + n)
            times = draws // 10 if name == "embeddings" and factor < 1 else draws
            found = [shifted(rng, n, m, factor) for _ in range(times)]
            effect = float(np.mean([one.effect for one in found]))
            rate = Rate(_is_low(one.p_value) for one in found)
            rows.append([name, factor, f"{n:,}", f"{m:,}", effect, rate.draws, rate])
    head = ["column", "true effect / floor", "reference rows", "rows", "mean estimate", "draws", "alarms"]
    return ["### What is found", "", *table(head, rows)]


def speed(draws: int) -> list[str]:
    """CPU seconds, the best of three."""
    rng = np.random.default_rng(0)
    columns = {f"c{k}": Column("input", "numeric", rng.normal(size=100_000)) for k in range(50)}
    reference = Profile.fit("task", columns, trunk="t", settings=STATED)

    def table_of_columns() -> None:
        cells = judge({"task": reference.compare(reference.of(columns), STATED)}, STATED)
        json.dumps([cell.to_json() for cell in cells])

    x, y = (rng.normal(size=(5000, 384)).astype(np.float32) for _ in range(2))

    def vectors() -> None:
        sketch = Embeddings.fit(x, settings=STATED)
        sketch.compare(sketch.of(y), STATED)

    program = "import time, mtlops.drift.profile, mtlops.drift.columns, mtlops.drift.verdicts, mtlops.drift.embeddings"
    program += ", mtlops.drift.histogram, mtlops.drift.categories; print(time.process_time())"
    imports = [
        float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout)
        for _ in range(3)
    ]
    rows = [
        ["100,000 rows x 50 columns against a stored reference, verdicts as JSON", _seconds(table_of_columns), 0.6],
        ["5,000 vectors against 5,000 x 384, features and p-value", _seconds(vectors), 0.8],
        ["import of the core, interpreter included", min(imports), 0.5],
    ]
    return ["### Speed", "", *table(["what", "CPU s", "at most"], rows)]


def windows(suite: Path) -> list[str]:
    """The production windows of the default suite, against the references that `export` would write."""
    import torch

    from mtlops.data.prepared import read_manifest, read_window
    from mtlops.drift.columns import prediction_columns
    from mtlops.model.predictor import Predictor
    from mtlops.params import read_params
    from mtlops.steps.profiles import Profiler, write_references

    torch.set_num_threads(1)
    prepared, encoder = suite / "data/prepared", suite / "data/encoder"
    predictor = Predictor(suite / "models/trained", encoder, cache=suite / "data/cache")
    params = read_params(Path("params.yaml"))
    profiler = Profiler.open(params, prepared=prepared, predictor=predictor)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        write_references(profiler, Path(folder))
        for window, entry in read_manifest(prepared)["windows"].items():
            findings, sizes = {}, {}
            for task in (task for task in profiler.tasks if task.name in entry["tasks"]):
                table_ = read_window(prepared, window, task.name)
                drawn = np.random.default_rng(0).permutation(table_.num_rows)[:1000]
                table_ = table_.take(pa.array(np.sort(drawn)))
                reference = Profile.load(Path(folder) / task.name, trunk=profiler.trunk).without("label", "quality")
                columns = {**profiler.inputs(table_), **prediction_columns(task, profiler.outputs(task, table_))}
                current = reference.of(columns, keys=[str(group) for group in table_["group"].to_pylist()])
                findings[task.name], sizes[task.name] = reference.compare(current, profiler.settings), table_.num_rows
            rows += [
                [window, cell.task, cell.kind, sizes[cell.task], cell.verdict, cell.score, cell.p_adjusted,
                 ", ".join(cell.drifted[:3])]
                for cell in judge(findings, profiler.settings)
            ]  # fmt: skip
    head = ["window", "task", "kind", "rows", "verdict", "score", "p, corrected", "what moved most"]
    return ["### Production windows of the default suite", "", "Without labels. Score: effect over floor.", "",
            *table(head, rows)]  # fmt: skip


def _samples() -> dict[str, Callable[..., Callable[[Settings], Finding]]]:
    """By name: (rng, n, m) -> a test of two samples of the same population under some settings."""

    def numeric(draw: Sampler) -> Callable[..., Callable[[Settings], Finding]]:
        def pair(rng: np.random.Generator, n: int, m: int) -> Callable[[Settings], Finding]:
            reference = Histogram.fit(draw(rng, n), settings=STATED)
            current = reference.of(draw(rng, m))
            return lambda settings: reference.compare(current, settings)

        return pair

    def categorical(size: int) -> Callable[..., Callable[[Settings], Finding]]:
        shares = 1.0 / np.arange(1, size + 1)

        def pair(rng: np.random.Generator, n: int, m: int) -> Callable[[Settings], Finding]:
            a, b = (_counts(rng.multinomial(rows, shares / shares.sum())) for rows in (n, m))
            return lambda settings: a.compare(b, settings)

        return pair

    def vectors(width: int) -> Callable[..., Callable[[Settings], Finding]]:
        def pair(rng: np.random.Generator, n: int, m: int) -> Callable[[Settings], Finding]:
            a, b = (_vectors(rng, rows, width) for rows in (n, m))
            reference = Embeddings.fit(a, settings=STATED)
            current = reference.of(b)
            return lambda settings: reference.compare(current, settings)

        return pair

    return {
        **{name: numeric(draw) for name, draw in DISTRIBUTIONS.items()},
        **{f"{size} categories": categorical(size) for size in (2, 10, 50, 200)},
        **{f"embeddings of {width}": vectors(width) for width in (16, 384)},
    }


def _shifted() -> dict[str, Callable[..., Finding]]:
    """By name: (rng, n, m, factor) -> the test of a shift whose true effect is `factor` times the floor."""

    def numeric(rng: np.random.Generator, n: int, m: int, factor: float) -> Finding:
        reference = Histogram.fit(rng.normal(size=n), settings=STATED)
        shift = shift_of(factor * STATED.effect_floor, share=n / (n + m))
        return reference.compare(reference.of(rng.normal(size=m) + shift), STATED)

    def categorical(rng: np.random.Generator, n: int, m: int, factor: float) -> Finding:
        effect, share = factor * STATED.effect_floor, n / (n + m)
        pooled = lambda d: 0.5 + (1 - share) * d  # noqa: E731 - one line of algebra
        d = brentq(lambda d: d * d / (pooled(d) * (1 - pooled(d))) - effect, 0.0, 0.49)
        a, b = rng.multinomial(n, [0.5, 0.5]), rng.multinomial(m, [0.5 + d, 0.5 - d])
        return _counts(a).compare(_counts(b), STATED)

    def vectors(rng: np.random.Generator, n: int, m: int, factor: float) -> Finding:
        x, y = (rng.normal(size=(rows, 16)).astype(np.float32) for rows in (n, m))
        reference = Embeddings.fit(x, settings=STATED)
        square = reference.bandwidth**2
        largest = 2.0 * (square / (square + 2.0)) ** 8
        distance = -2.0 * (square + 2.0) * np.log(1.0 - factor * STATED.embedding_floor / largest)
        y[:, 0] += np.float32(distance**0.5)
        return reference.compare(reference.of(y), STATED)

    return {"numeric, 10 bins": numeric, "2 categories": categorical, "embeddings": vectors}


def shift_of(effect: float, *, share: float) -> float:
    """Returns how far a normal column moves, in standard deviations, by a w^2 of `effect`.

    Args:
        effect: w^2.
        share: rows of the reference among all.
    """
    found: float = brentq(lambda shift: _w_squared(shift, share) - effect, 0.0, 3.0)
    return found


def _w_squared(shift: float, share: float) -> float:
    edges = norm.ppf(np.arange(1, STATED.bins) / STATED.bins)
    p, q = (np.diff(norm.cdf(edges, loc=s), prepend=0.0, append=1.0) for s in (0.0, shift))
    return float(((p - q) ** 2 / (share * p + (1.0 - share) * q)).sum())


def _any_alarms(
    rng: np.random.Generator, tasks: int, settings: Sequence[Settings], *, sizes: tuple[int, int] = (2000, 1000)
) -> list[bool]:
    """Whether one judgement of some tasks, in which nothing drifted, alarms: with each of some floors."""
    pairs = {}
    for task in range(tasks):
        columns = [_columns(rng, rows) for rows in sizes]
        reference = Profile.fit(ENCODER, columns[0], trunk="t", settings=settings[0])
        pairs[f"task{task}"] = reference, reference.of(columns[1])
    return [
        any(
            cell.verdict == DRIFTED
            for cell in judge({name: a.compare(b, some) for name, (a, b) in pairs.items()}, some)
        )
        for some in settings
    ]


def _columns(rng: np.random.Generator, rows: int) -> dict[str, Column]:
    """Columns that depend on one another, as a text's statistics do."""
    factor = rng.normal(size=rows)
    mixed = [rng.normal(size=rows) + weight * factor for weight in np.linspace(0.0, 2.0, 12)]
    labels = pa.array(np.asarray(list("abcdef"))[rng.integers(6, size=rows)])
    return {
        **{f"text{k}": Column("input", "numeric", values) for k, values in enumerate(mixed[:8])},
        **{f"answer{k}": Column("prediction", "numeric", values) for k, values in enumerate(mixed[8:])},
        "label": Column("label", "categorical", labels),
        "embedding": Column("embedding", "embedding", _vectors(rng, rows, 16)),
    }


def _vectors(rng: np.random.Generator, rows: int, width: int) -> np.ndarray:
    """Two clusters with unequal spreads: nearer to a text encoder's than one normal cloud."""
    scale = 1.0 / np.sqrt(np.arange(1, width + 1))
    centre = 3.0 * scale * (rng.random(rows) < 0.3)[:, None]
    return (rng.normal(size=(rows, width)) * scale + centre).astype(np.float32)


def _counts(counts: np.ndarray) -> Categories:
    return Categories({f"{k:03d}": int(rows) for k, rows in enumerate(counts) if rows})


def _affordable(draws: int, name: str, rows: int) -> int:
    """Fewer draws where one costs more; none of 100,000 vectors of 384."""
    if name.startswith("embeddings"):
        cost = rows * int(name.rpartition(" ")[2])
        return draws if cost < 50_000 else draws // 4 if cost < 1_000_000 else draws // 10 if cost < 10_000_000 else 0
    return draws if rows < 100_000 or "categories" in name else draws // 2


def _is_low(p_value: float | None) -> bool:
    return p_value is not None and p_value <= LEVEL


def _seconds(run: Callable[[], None]) -> float:
    spent = []
    for _ in range(3):
        started = time.process_time()
        run()
        spent.append(time.process_time() - started)
    return min(spent)


if __name__ == "__main__":
    main()
