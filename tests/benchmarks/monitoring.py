"""What the monitor costs, and what it says of drift that is real.

`python -m tests.benchmarks.monitoring` writes its part of docs/benchmarks.md.
`--suite FOLDER` adds the production windows of a finished run of the default suite. `--quick` reads a tenth of the log.
How often alarms are wrong, and how late they are: tests/benchmarks/calibration.py.
"""

import argparse
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtlops.params import read_params
from tests.benchmarks.monitor_cost import cost
from tests.benchmarks.page import machine, table, write_part

if TYPE_CHECKING:
    from monitoring.replay import Traffic

_MOST_TEXTS = 3000
_YES = {True: "yes", False: "no"}


def main() -> None:
    """Runs everything, prints it, and writes its part of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--suite", type=Path, help="a checkout in which the default suite was run")
    options = parser.parse_args()
    share = 0.1 if options.quick else 1.0
    command = f"python -m tests.benchmarks.monitoring{' --suite .' if options.suite else ''}"
    lines = ["## Monitoring", "", f"`{command}` on {machine()}."]
    parts: list[Callable[[], list[str]]] = [lambda: cost(share)]
    if options.suite:
        parts.append(lambda: suite_windows(options.suite))
    for part in parts:
        started = time.process_time()
        found = part()
        lines += ["", *found]
        print("\n".join(found), f"\n({time.process_time() - started:.0f} CPU s)\n", flush=True)
    if not options.quick:
        write_part("monitoring", lines)


def suite_windows(suite: Path) -> list[str]:
    """The production windows of the default suite, replayed; two at once; and one whose labels are another concept."""
    from monitoring.replay import answer, judge, read_traffic
    from mtlops.bundle import Bundle
    from mtlops.serving.runtime import Runtime

    params = read_params(Path("params.yaml"))
    runtime = Runtime(Bundle.open(suite / "models/candidate"), threads=1)
    windows, rows, answered = suite / "data/prepared/windows", [], {}
    with tempfile.TemporaryDirectory() as place:
        for folder in (*sorted(windows.iterdir()), _two_at_once(windows, Path(place))):
            traffic = _some(read_traffic(folder, runtime.tasks))
            tables = answered[folder.name] = list(answer(traffic, runtime, tasks=list(traffic.labels)))
            for with_labels in (False, True):
                report = judge(tables, runtime.bundle.folder, params=params, with_labels=with_labels)
                rows += _report_rows(folder.name, report, with_labels=with_labels)
    permuted = [(predictions, _permuted(labels, runtime.tasks)) for predictions, labels in answered["control-topic"]]
    report = judge(permuted, runtime.bundle.folder, params=params)
    rows += _report_rows("control-topic, labels of one class permuted", report, with_labels=True)
    head = ["window", "labels", "task", "level", "what drifted", "likely cause", "accuracy estimated", "realised"]
    said = (
        f"`python -m monitoring replay`: at most {_MOST_TEXTS:,} texts, 1,000 a day, one false alarm a month. “Two at "
        "once”: control-reviews for the tasks on reviews, unseen-newsgroups for topic, as one traffic."
    )
    return ["### Production windows of the default suite, replayed", "", said, "", *table(head, rows)]


def _two_at_once(windows: Path, place: Path) -> Path:
    """A window whose tasks of one source see what they know while the other's drifts."""
    folder = place / "two at once"
    folder.mkdir()
    for table_ in (windows / "control-reviews").glob("*.parquet"):
        shutil.copy(table_, folder)
    topic = pq.read_table(windows / "unseen-newsgroups/topic.parquet")
    some = np.sort(np.random.default_rng(0).permutation(topic.num_rows)[: _MOST_TEXTS // 2])
    pq.write_table(topic.take(pa.array(some)), folder / "topic.parquet")
    return folder


def _some(traffic: "Traffic") -> "Traffic":
    some = np.sort(np.random.default_rng(0).permutation(len(traffic.texts))[:_MOST_TEXTS]).tolist()
    return replace(
        traffic, texts=[traffic.texts[i] for i in some], groups=[traffic.groups[i] for i in some],
        labels={name: [labels[i] for i in some] for name, labels in traffic.labels.items()},
        asked=[traffic.asked[i] for i in some] if traffic.asked else None,
    )  # fmt: skip


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


if __name__ == "__main__":
    main()
