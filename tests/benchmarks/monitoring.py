"""How often the monitor's alarms are wrong, how late they are, and what they cost.

`python -m tests.benchmarks.monitoring` writes its part of docs/benchmarks.md.
`--suite FOLDER` adds the production windows of a finished run of the default suite. `--quick` draws a tenth.
`--adwin PYTHON` gives a Python with `river`, whose ADWIN runs on the same streams.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from mtlops.drift.categories import Categories
from mtlops.drift.detector import DRIFTED, Detector
from mtlops.drift.embeddings import Embeddings
from mtlops.drift.finding import Finding, Settings
from mtlops.drift.histogram import Histogram
from mtlops.params import Drift, read_params
from tests.benchmarks.page import machine, table, write_part

STATED = Settings.of(Drift())
WITHOUT_FLOOR = replace(STATED, effect_floor=1e-12, embedding_floor=1e-12)
WINDOWS_A_MONTH = 30
REFERENCE_ROWS, WINDOW_ROWS = 4000, 500

_YES = {True: "yes", False: "no"}

Windows = Iterator[Finding]


def main() -> None:
    """Runs everything, prints it, and writes its part of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--suite", type=Path, help="a checkout in which the default suite was run")
    parser.add_argument("--adwin", default="", help="a Python with river")
    options = parser.parse_args()
    share = 0.1 if options.quick else 1.0
    command = f"OMP_NUM_THREADS=1 python -m tests.benchmarks.monitoring{' --suite .' if options.suite else ''}"
    lines = ["## Monitoring", "", f"`{command}` on {machine()}."]
    parts: list[Callable[[], list[str]]] = [
        lambda: false_alarms(share), lambda: delays(share, options.adwin), lambda: cost(share),
    ]  # fmt: skip
    if options.suite:
        parts.append(lambda: suite_windows(options.suite))
    for part in parts:
        started = time.process_time()
        found = part()
        lines += ["", *found]
        print("\n".join(found), f"\n({time.process_time() - started:.0f} CPU s)\n", flush=True)
    if not options.quick:
        write_part("monitoring", lines)


def false_alarms(share: float) -> list[str]:
    """Mean time to a false alarm of one detector, over many finite references."""
    cases: dict[str, tuple[Callable[[np.random.Generator], Windows], int]] = {
        "numeric, floor 0": (lambda rng: _numeric(rng, WITHOUT_FLOOR, shift=0.0), 100),
        "10 categories, floor 0": (lambda rng: _categories(rng, WITHOUT_FLOOR), 100),
        "embeddings of 16, floor 0": (lambda rng: _embeddings(rng, WITHOUT_FLOOR), 30),
        "numeric, floor as stated, no shift": (lambda rng: _numeric(rng, STATED, shift=0.0), 100),
        "numeric, shift of half the floor": (lambda rng: _numeric(rng, STATED, shift=0.102), 100),
        "numeric, shift of exactly the floor": (lambda rng: _numeric(rng, STATED, shift=0.145), 100),
    }
    rows = []
    for name, (windows, references) in cases.items():
        row: list[object] = [name]
        for months in (1.0, 5.0, 20.0):
            alarms, seen = 0, 0
            for seed in range(max(3, int(references * share))):
                detector = Detector(months)
                for _, finding in zip(range(300), windows(np.random.default_rng([seed, 7])), strict=False):
                    seen += 1
                    detector = detector.after(finding.p_value, months=1.0 / WINDOWS_A_MONTH)
                    if detector.level == DRIFTED:
                        alarms += 1
                        detector = Detector(months)
            realised = seen / WINDOWS_A_MONTH / max(alarms, 1)
            row.append(f"{'> ' if alarms == 0 else ''}{realised / months:.1f} ({alarms})")
        rows.append([*row, f"{seen:,}"])
    said = (
        f"Months to a false alarm, realised over stated (alarms seen): at least 1 is promised. {REFERENCE_ROWS:,} rows "
        f"of reference, windows of {WINDOW_ROWS}, {WINDOWS_A_MONTH} a month, a fresh reference every 300 windows; "
        "after an alarm the detector starts anew. A floor of 0 is the hard case: every difference counts, the "
        "reference's own noise among them. A shift of exactly the floor counts as a false alarm here."
    )
    head = ["what comes in", *(f"stated {months:g} months" for months in (1.0, 5.0, 20.0)), "windows"]
    return ["### False alarms over time", "", said, "", *table(head, rows)]


def delays(share: float, adwin: str) -> list[str]:
    """Rows from a change to its alarm, ours and ADWIN's, at a like number of false alarms."""
    draws = max(3, int(40 * share))
    calm = 60_000 if share == 1.0 else 10_000
    streams = [np.random.default_rng([k, 3]).normal(size=calm) for k in range(max(2, int(12 * share)))]
    shifts = (0.25, 0.5, 1.0)
    shifted = {s: [_changed(np.random.default_rng([k, int(100 * s)]), s) for k in range(draws)] for s in shifts}
    rows = [["ours, floor 0.02", *_ours(streams, shifted, STATED)],
            ["ours, floor 0", *_ours(streams, shifted, WITHOUT_FLOOR)]]  # fmt: skip
    if adwin:
        rows += _adwin(adwin, streams, shifted)
    said = (
        f"Median rows from the change to the alarm over {draws} streams of normal numbers that change after 5,000 rows;"
        f" windows of 100 rows, {REFERENCE_ROWS:,} rows of reference; false alarms in {len(streams) * calm:,} rows "
        "without a change. ADWIN looks at the mean of one column every 32 rows and is quicker there; ours looks at "
        "whole windows, at any kind of column, and a floor of 0.02 (0.14 sigma) is meant to let small shifts pass."
    )
    return ["### Delay", "", said, "", *table(["detector", "false alarms", *(f"{s} sigma" for s in shifts)], rows)]


def cost(share: float) -> list[str]:
    """CPU seconds and memory of reading a log: texts that were asked for four tasks, embeddings of 384 numbers."""
    from tests.watch.logs import MOOD, STARS, TAGS, World, Writer, write_bundle

    tasks = [MOOD, STARS, TAGS, replace(MOOD, name="tone")]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        bundle = write_bundle(folder / "bundle", tasks=tasks, world=World(0, width=384))
        writer, world = Writer(folder / "log", bundle.id, per_day=2_500_000.0), World(1, width=384)
        found = []
        for _ in range(2):
            for _ in range(max(1, int(8 * share))):
                writer.traffic(world, 2500, tasks=tasks)
            done = subprocess.run([_python(), "-c", _READ, str(folder)], capture_output=True, text=True, check=True)
            found.append(json.loads(done.stdout))
    program = "import time, mtlops.watch.engine, mtlops.watch.summary; print(time.process_time())"
    imports = [float(subprocess.run([_python(), "-c", program], capture_output=True, text=True, check=True).stdout)
               for _ in range(3)]  # fmt: skip
    once, part = (max(case[key][0] / case[key][1] for case in found) for key in ("once", "profile"))
    rows = [
        ["rows of (request, task) in a CPU second: `once`, read, kept for late labels, judged in windows of 1,000",
         f"{once:,.0f}"],
        ["the same: `profile`, a part of a log that is merged with others", f"{part:,.0f}"],
        ["CPU minutes for 10 million rows: `once`, `profile`", f"{1e7 / once / 60:.1f}, {1e7 / part / 60:.1f}"],
        [f"memory, MB, after {found[0]['once'][0]:,} and after {found[1]['once'][0]:,} rows, files of 10,000 rows",
         f"{found[0]['megabytes']:,.0f}, {found[1]['megabytes']:,.0f}"],
        ["import of the watch, interpreter included, CPU s", f"{min(imports):.2f}"],
    ]  # fmt: skip
    said = "Texts that were asked for four tasks, with embeddings of 384 numbers."
    return ["### Cost", "", said, "", *table(["what", "measured"], rows)]


_READ = """
import json, resource, sys, time
from datetime import date
from pathlib import Path
from mtlops.params import Drift
from mtlops.watch.engine import Watch
from mtlops.watch.log import PredictionLog
from mtlops.watch.parts import Share, profile_part
from mtlops.watch.references import References
from mtlops.watch.state import State
folder = Path(sys.argv[1])
references, log = References.of_bundle(folder / "bundle"), PredictionLog(str(folder / "log"))
started = time.process_time()
part = profile_part(log, references, share=Share(1, 1), since=date.min, until=date.max)
profiled = time.process_time()
(folder / "state.sqlite").unlink(missing_ok=True)
watch = Watch(Drift(), references, State(folder / "state.sqlite"))
rows = watch.catch_up(log, listed=log.files()).rows
print(json.dumps({"profile": [part.counts["rows"], profiled - started], "once": [rows, time.process_time() - profiled],
                  "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def suite_windows(suite: Path) -> list[str]:
    """The production windows of the default suite, replayed; and one whose labels are another concept."""
    from monitoring.replay import answer, judge, read_traffic
    from mtlops.bundle import Bundle
    from mtlops.serving.runtime import Runtime

    params = read_params(Path("params.yaml"))
    runtime = Runtime(Bundle.open(suite / "models/candidate"), threads=1)
    rows = []
    control = None
    for folder in sorted((suite / "data/prepared/windows").iterdir()):
        traffic = read_traffic(folder, runtime.tasks)
        some = np.sort(np.random.default_rng(0).permutation(len(traffic.texts))[:3000]).tolist()
        traffic = replace(
            traffic, texts=[traffic.texts[i] for i in some], groups=[traffic.groups[i] for i in some],
            labels={name: [labels[i] for i in some] for name, labels in traffic.labels.items()},
            asked=[traffic.asked[i] for i in some] if traffic.asked else None,
        )  # fmt: skip
        tables = list(answer(traffic, runtime, tasks=list(traffic.labels)))
        control = tables if folder.name == "control-topic" else control
        for with_labels in (False, True):
            report = judge(tables, runtime.bundle.folder, params=params, with_labels=with_labels)
            rows += _report_rows(folder.name, report, with_labels=with_labels)
    if control:
        permuted = [(predictions, _permuted(labels, runtime.tasks)) for predictions, labels in control]
        report = judge(permuted, runtime.bundle.folder, params=params)
        rows += _report_rows("control-topic, labels of one class permuted", report, with_labels=True)
    head = ["window", "labels", "task", "level", "what drifted", "likely cause", "accuracy estimated", "realised"]
    return ["### Production windows of the default suite, replayed", "",
            "`python -m monitoring replay`: at most 3,000 rows, 1,000 a day, one false alarm a month.", "",
            *table(head, rows)]  # fmt: skip


def _report_rows(name: str, report: dict, *, with_labels: bool) -> list[list[object]]:
    rows = []
    for task, found in report["tasks"].items():
        if not found["cells"]:
            continue
        moved = ", ".join(kind for kind, cell in found["cells"].items() if cell["level"] == "drifted")
        causes = ", ".join(cause["cause"] for cause in (found["diagnosis"] or {"causes": []})["causes"])
        accuracy = [found["metrics"].get(kind, {}).get("accuracy", "-") for kind in ("estimated", "realised")]
        rows.append([name, _YES[with_labels], task, found["level"], moved or "-", causes or "-", *accuracy])
    return rows


def _permuted(labels: pa.Table, tasks: tuple) -> pa.Table:
    """The class `computers` is from now on called by the other names, in turn; texts and answers stay."""
    classes = [name for name in next(task for task in tasks if task.name == "topic").classes if name != "computers"]
    names = [[classes[k % len(classes)]] if found == ["computers"] else found
             for k, found in enumerate(labels["label"].to_pylist())]  # fmt: skip
    return labels.set_column(labels.schema.get_field_index("label"), labels.schema.field("label"),
                             pa.array(names, type=labels.schema.field("label").type))  # fmt: skip


def _numeric(rng: np.random.Generator, settings: Settings, *, shift: float) -> Windows:
    reference = Histogram.fit(rng.normal(size=REFERENCE_ROWS), settings=settings)
    while True:
        yield reference.compare(reference.of(rng.normal(shift, size=WINDOW_ROWS)), settings)


def _categories(rng: np.random.Generator, settings: Settings) -> Windows:
    shares = 1.0 / np.arange(1, 11)
    shares /= shares.sum()
    reference = _counts(rng.multinomial(REFERENCE_ROWS, shares))
    while True:
        yield reference.compare(_counts(rng.multinomial(WINDOW_ROWS, shares)), settings)


def _counts(counts: np.ndarray) -> Categories:
    return Categories({f"{k:03d}": int(rows) for k, rows in enumerate(counts) if rows})


def _embeddings(rng: np.random.Generator, settings: Settings) -> Windows:
    reference = Embeddings.fit(rng.normal(size=(REFERENCE_ROWS, 16)).astype(np.float32), settings=settings)
    while True:
        yield reference.compare(reference.of(rng.normal(size=(WINDOW_ROWS, 16)).astype(np.float32)), settings)


def _changed(rng: np.random.Generator, shift: float) -> np.ndarray:
    values = rng.normal(size=25_000)
    values[5000:] += shift
    return values


def _ours(streams: list[np.ndarray], shifted: dict[float, list[np.ndarray]], settings: Settings) -> list[object]:
    alarms = sum(len(_alarms(stream, settings, stop=False)) for stream in streams)
    found: list[object] = [alarms]
    for changed in shifted.values():
        late = [
            next((at - 5000 for at in _alarms(stream, settings, stop=True) if at > 5000), 20_000) for stream in changed
        ]
        found.append(_median(late))
    return found


def _alarms(stream: np.ndarray, settings: Settings, *, stop: bool) -> list[int]:
    """Row numbers of alarms: 100 rows a window, 10,000 rows a month, one false alarm in 10 months."""
    reference = Histogram.fit(np.random.default_rng(99).normal(size=REFERENCE_ROWS), settings=settings)
    detector, found = Detector(10.0), []
    for start in range(0, len(stream) - 99, 100):
        finding = reference.compare(reference.of(stream[start : start + 100]), settings)
        detector = detector.after(finding.p_value, months=0.01)
        if detector.level == DRIFTED:
            found.append(start + 100)
            detector = Detector(10.0)
            if stop and start > 5000:
                break
    return found


def _adwin(python: str, streams: list[np.ndarray], shifted: dict[float, list[np.ndarray]]) -> list[list[object]]:
    """river's ADWIN at its own delta and at smaller ones."""
    program = """
import json, sys
from river.drift import ADWIN
given = json.load(sys.stdin)
def alarms(stream, delta):
    detector, found = ADWIN(delta=delta), []
    for k, x in enumerate(stream):
        detector.update(x)
        if detector.drift_detected:
            found.append(k + 1)
    return found
print(json.dumps([[delta, [alarms(s, delta) for s in given["calm"]],
                   {name: [alarms(s, delta) for s in some] for name, some in given["shifted"].items()}]
                  for delta in (0.002, 0.0002, 0.00002)]))
"""
    given = {
        "calm": [s.tolist() for s in streams],
        "shifted": {str(k): [s.tolist() for s in v] for k, v in shifted.items()},
    }
    done = subprocess.run([python, "-c", program], input=json.dumps(given), capture_output=True, text=True, check=True)
    rows: list[list[object]] = []
    for delta, calm, changed in json.loads(done.stdout):
        late = [_median([next((at - 5000 for at in found if at > 5000), 20_000) for found in changed[str(s)]])
                for s in shifted]  # fmt: skip
        rows.append([f"ADWIN, delta {delta:g}", sum(map(len, calm)), *late])
    return rows


def _median(late: list[int]) -> str:
    middle = int(np.median(late))
    return "never" if middle >= 20_000 else f"{middle:,}"


def _python() -> str:
    import sys

    return sys.executable


if __name__ == "__main__":
    main()
