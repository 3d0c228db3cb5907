"""Training costs rows, not tasks: `python -m tests.benchmarks.many_tasks`.

The same posts are divided among 4, 16, 64 and 100 tasks of one kind, and each suite is prepared and trained by the
steps themselves, in a process of its own: CPU seconds of the training loop, and the process's peak of memory.
"""

import argparse
import json
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import torch
import yaml

from mtlops.data.prepared import read_split
from mtlops.files import write_json
from mtlops.model.predictor import Backbone
from mtlops.params import Params, parse_params, read_params
from mtlops.steps.prepare import prepare
from mtlops.steps.train import train
from tests.benchmarks.page import machine, table, write_part

COUNTS = (4, 16, 64, 100)
SOURCE_TASK = "topic"


def main() -> None:
    """Measures, prints and writes the part `many tasks` of docs/benchmarks.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suite", type=Path, default=Path(), help="a project in which `mtlops prepare` has run")
    parser.add_argument("--work", type=Path, default=Path("build/many_tasks"), help="where the suites are kept")
    parser.add_argument("--rows", type=int, default=1600, help="rows of all tasks together, all splits")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--dry", action="store_true", help="do not write docs/benchmarks.md")
    options = parser.parse_args()
    found = []
    for count in COUNTS:
        result = options.work / f"{count}.json"
        _in_own_process(options.suite, result, count, options.rows, options.epochs)
        found.append(json.loads(result.read_text(encoding="utf-8")))
    lines = report(found, epochs=options.epochs)
    print("\n".join(lines))
    if not options.dry:
        write_part("many tasks", lines)


def measure(suite: Path, result: Path, count: int, rows: int, epochs: int) -> None:
    """Prepares and trains a suite of so many tasks, and writes what it cost."""
    torch.set_num_threads(1)
    folder = result.parent / str(count)
    params = _suite(suite, folder, count=count, rows=rows, epochs=epochs)
    prepared, encoder, cache = folder / "prepared", suite / "data/encoder", result.parent / "cache"
    prepare(params, raw=suite / "data/raw", out=prepared, encoder=folder / "encoder")
    backbone = Backbone(encoder, cache=cache, model=params.model, max_tokens=params.encoder.max_tokens)
    num = 0
    for task in params.tasks():
        for split in ("train", "valid"):
            part = read_split(prepared, task.name, split)
            backbone.fill(part["row_id"].to_pylist(), part["text"].to_pylist())
            num += part.num_rows if split == "train" else 0
    before_mb, started = _peak_mb(), time.process_time()
    done = train(params, prepared=prepared, encoder=encoder, out=folder / "trained", cache=cache,
                 report=folder / "training.json")  # fmt: skip
    seconds = time.process_time() - started
    write_json(
        result,
        {"tasks": count, "rows": num, "seconds": seconds, "before_mb": before_mb, "peak_mb": _peak_mb(),
         "best": sum(done.best.values()) / count},
    )  # fmt: skip


def report(found: list[dict[str, Any]], *, epochs: int) -> list[str]:
    """Returns the part of docs/benchmarks.md."""
    first = found[0]
    cost = {one["tasks"]: one["seconds"] / one["rows"] / epochs for one in found}
    rows: list[list[object]] = [
        [
            str(one["tasks"]),
            f"{one['rows']:,}",
            f"{one['seconds']:.1f}",
            f"{1000 * cost[one['tasks']]:.1f}",
            f"{cost[one['tasks']] / cost[first['tasks']]:.2f}",
            f"{one['peak_mb']:.0f}",
            f"{(one['peak_mb'] - first['peak_mb']) / (one['tasks'] - first['tasks']):+.2f}" if one is not first else "",
        ]
        for one in found
    ]
    about = (
        f"`python -m tests.benchmarks.many_tasks` on {machine()}, one thread: posts of the default suite divided among "
        f"more and more tasks, {epochs} epochs, trunk cached before, all else as by default. One run each: the machine "
        "was busy with other work. CPU seconds of the step `train`; memory is the peak of the whole process, which is "
        "that of the longest pass: with 4 tasks fewer passes reach the `train.rows_per_pass` rows that one may hold."
    )
    head = ["tasks", "training rows", "CPU s", "CPU ms a row and epoch", f"over {first['tasks']} tasks", "peak MB",
            "MB for each further task"]  # fmt: skip
    return ["## Many tasks", "", about, "", *table(head, rows)]


def _suite(suite: Path, folder: Path, *, count: int, rows: int, epochs: int) -> Params:
    """Writes the rows as one table, in which each row has a label for one task, and returns params of the suite."""
    folder.mkdir(parents=True, exist_ok=True)
    like = read_params(Path("params.yaml")).suite.tasks[SOURCE_TASK]
    posts = read_split(suite / "data/prepared", SOURCE_TASK, "train").slice(0, rows)
    labels = posts["label"].to_pylist()
    names = [f"task-{i}" for i in range(count)]
    columns = {name: [label if row % count == i else None for row, label in enumerate(labels)]
               for i, name in enumerate(names)}  # fmt: skip
    pa.csv.write_csv(pa.table({"text": posts["text"], **columns}), folder / "posts.csv")
    task = {"kind": like.kind, "classes": like.classes, "source": str((folder / "posts.csv").resolve())}
    value = {
        "suite": {"name": "many", "tasks": {name: {**task, "label": name} for name in names}},
        "data": {"valid_share": 0.1, "test_share": 0.1},
        "train": {"epochs": epochs, "threads": 1},
    }
    return parse_params(yaml.safe_dump(value))


def _in_own_process(*arguments: object) -> None:
    process = multiprocessing.get_context("fork").Process(target=measure, args=arguments)
    process.start()
    process.join()
    if process.exitcode:
        raise SystemExit(process.exitcode)


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
