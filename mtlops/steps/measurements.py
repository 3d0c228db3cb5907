"""What `evaluate` measures of a model beyond its scores: calibration, slices, robustness, behaviour."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtlops import catalog
from mtlops.data.checks import read_behaviour
from mtlops.data.prepared import COLUMNS, read_manifest, read_split
from mtlops.decoding import Calibration, Outputs, decode
from mtlops.errors import ArtefactError
from mtlops.evaluation.affinity import FEWEST_ROWS, cka
from mtlops.evaluation.behaviour import run_checks
from mtlops.evaluation.metrics import Metrics, reliability
from mtlops.evaluation.robustness import measure_robustness
from mtlops.evaluation.slices import measure_slices, slice_rows
from mtlops.model.predictor import Predictor
from mtlops.params import Params
from mtlops.tasks import Task

AFFINITY_ROWS = 100
"""Test rows of each task on which tasks are compared; each costs a pass for every task."""

logger = logging.getLogger(__name__)


def measure_closer(
    params: Params,
    *,
    prepared: Path,
    predictor: Predictor,
    tests: Mapping[str, pa.Table],
    champion: Mapping[str, Outputs],
) -> dict[str, dict[str, Any]]:
    """Returns for each task the parts `calibration`, `slices`, `robustness` and `behaviour` of evaluation.json.

    Args:
        params: of the suite.
        prepared: folder of prepared splits.
        predictor: the model.
        tests: test rows of each task.
        champion: the champion's answers to them, for the tasks that it does.

    Raises:
        ArtefactError: the prepared folder was made with other `data.slices` or `data.behaviour`.
    """
    checks = read_behaviour(prepared, files=params.data.behaviour)
    _check_slices(params, prepared)
    found = {}
    for task in params.tasks():
        started, test, gates = time.monotonic(), tests[task.name], params.gates
        texts, row_ids, groups = (test[column].to_pylist() for column in ("text", "row_id", "group"))
        labels, calibration = task.encode(test["label"].to_pylist()), predictor.model.calibrations[task.name]
        logits = predictor.logits(texts, row_ids, task.name)
        outputs = decode(task, logits, calibration)
        fresh = partial(predictor.logits_of_texts, task=task.name)
        slices = slice_rows(read_split(prepared, task.name, "train"), test, columns=_columns(params, test))
        measured = measure_slices(
            task, labels, slices=slices, model=outputs, champion=champion.get(task.name), groups=groups, gates=gates
        )
        robustness = measure_robustness(
            task,
            labels,
            texts=texts,
            row_ids=row_ids,
            groups=groups,
            answer=fresh,
            calibration=calibration,
            gates=gates,
        )
        behaviour = run_checks(task, checks, answer=fresh, calibration=calibration)
        found[task.name] = {
            "calibration": _calibration(task, labels, logits, calibration),
            "slices": [asdict(part) for part in measured],
            "robustness": {name: asdict(part) for name, part in robustness.items()},
            "behaviour": [asdict(check) for check in behaviour],
        }
        logger.info(
            "task=%s slices=%d behaviour=%d/%d seconds=%.1f", task.name, len(slices),
            sum(check.cases - check.failed for check in behaviour), sum(check.cases for check in behaviour),
            time.monotonic() - started,
        )  # fmt: skip
    return found


def measure_affinity(predictor: Predictor, tests: Mapping[str, pa.Table]) -> dict[str, Any]:
    """Returns the part `affinity` of evaluation.json: for each pair of tasks how alike they read the same rows.

    The rows are test rows of all tasks, `AFFINITY_ROWS` of each, evenly spread; every task reads all of them.
    """
    parts = [test.take(_spread(test.num_rows)).select(["text", "row_id"]) for test in tests.values()]
    texts = {r: t for part in parts for r, t in zip(part["row_id"].to_pylist(), part["text"].to_pylist(), strict=True)}
    tasks: dict[str, dict[str, float]] = {name: {} for name in tests}
    if len(tests) > 1 and len(texts) >= FEWEST_ROWS:
        read = {name: predictor.vectors(list(texts.values()), list(texts), name) for name in tests}
        tasks = {a: {b: cka(x, y) for b, y in read.items() if b != a} for a, x in read.items()}
    return {"measure": "linear CKA, unbiased", "rows": len(texts), "tasks": tasks}


def _spread(num_rows: int) -> NDArray[np.int64]:
    return np.unique(np.linspace(0, num_rows - 1, min(num_rows, AFFINITY_ROWS)).astype(np.int64))


def _calibration(
    task: Task, labels: NDArray[Any], logits: NDArray[np.float32], calibration: Calibration
) -> dict[str, Any]:
    """The bins of the reliability diagram, what was fitted, and the calibration error without it and with it."""
    metrics: Metrics = catalog.load(catalog.KINDS[task.kind].metrics)
    plain, cooled = (
        decode(task, logits, Calibration(t, calibration.thresholds)) for t in (1.0, calibration.temperature)
    )
    before, after = (metrics(task, labels, outputs).get("ece") for outputs in (plain, cooled))
    return {
        "bins": [asdict(part) for part in reliability(task, labels, cooled)],
        "temperature": calibration.temperature,
        "ece_before": before,
        "ece_after": after,
        "thresholds": calibration.facts(task)["threshold"],
    }


def _columns(params: Params, test: pa.Table) -> list[str]:
    """The columns of a task's rows that `data.slices` means, under the names that splits give them."""
    names = [f"raw_{name}" if name in COLUMNS else name for name in params.data.slices]
    return [name for name in names if name in test.column_names]


def _check_slices(params: Params, prepared: Path) -> None:
    known = {column for columns in read_manifest(prepared)["columns"].values() for column in columns}
    for name in params.data.slices:
        if (f"raw_{name}" if name in COLUMNS else name) not in known and not params.left_out:
            raise ArtefactError(
                f"{prepared}: no task has the column {name!r} of data.slices. Run `mtlops prepare` again."
            )
