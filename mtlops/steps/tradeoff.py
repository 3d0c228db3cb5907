"""What an update brings: its tasks on the rows of their newest window, and proof that no other task changed."""

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtlops.data.prepared import read_split
from mtlops.decoding import Outputs, decode
from mtlops.errors import ArtefactError
from mtlops.evaluation.bootstrap import resample_groups
from mtlops.evaluation.comparison import compare, measure
from mtlops.files import sha256_file
from mtlops.model.predictor import Predictor
from mtlops.model.trained import TASK_FILES
from mtlops.params import Gates
from mtlops.steps.updates import Update
from mtlops.tasks import Task

logger = logging.getLogger(__name__)


def model_answers(model: Predictor, tests: Mapping[str, pa.Table]) -> dict[str, Outputs]:
    """Returns a model's answers to each task's rows, in their order."""
    return {task: _outputs(model, task, table) for task, table in tests.items()}


def measure_window(task: Task, update: Update, *, ours: Predictor, parent: Predictor, gates: Gates) -> dict[str, Any]:
    """Returns how a task and its parent do on the test rows of the newest window: part `window` of evaluation.json.

    Raises:
        ArtefactError: a file is missing or damaged.
    """
    table = read_split(update.mixed.window, task.name, "test")
    labels = task.encode(table["label"].to_pylist())
    samples = resample_groups(table["group"].to_pylist(), num_samples=gates.resamples, seed=gates.seed)
    answers = {name: _outputs(model, task.name, table) for name, model in (("ours", ours), ("parent", parent))}
    change = compare(task, labels, answers["ours"], answers["parent"], samples=samples, gates=gates)
    metrics = measure(task, labels, answers["ours"], samples).intervals(gates.confidence)
    return {
        "name": update.lineage.retrained[task.name],
        "rows": table.num_rows,
        "groups": samples.num_groups,
        "metrics": {name: asdict(interval) for name, interval in metrics.items()},
        "champion": asdict(change),
    }


def prove_untouched(update: Update, *, trained: Path, prepared: Path, ours: Predictor, parent: Predictor) -> Any:
    """Returns for each task that was taken over what shows it: equal files, and equal logits of every test row.

    Raises:
        ArtefactError: a file or a logit differs in any bit.
    """
    proof = {}
    for name in update.untouched:
        _check_files(update, trained, name)
        table = read_split(prepared, name, "test")
        texts, row_ids = table["text"].to_pylist(), table["row_id"].to_pylist()
        logits, theirs = ours.computed_logits(texts, row_ids, name), parent.logits(texts, row_ids, name)
        check_equal(logits, theirs, task=name, what="test row", where=str(trained))
        proof[name] = {"rows": table.num_rows, "logits_sha256": hashlib.sha256(logits.tobytes()).hexdigest()}
        logger.info("task=%s untouched test_rows=%d identical to the bit", name, table.num_rows)
    return proof


def check_equal(ours: NDArray[np.float32], theirs: NDArray[np.float32], *, task: str, what: str, where: str) -> None:
    """Does nothing when two arrays (N, C) are the same to the bit.

    Raises:
        ArtefactError: they are not.
    """
    if ours.shape == theirs.shape and ours.tobytes() == theirs.tobytes():
        return
    wrong = int((ours != theirs).any(axis=1).sum()) if ours.shape == theirs.shape else len(ours)
    raise ArtefactError(
        f"{where}: task {task} was not to change, but its logits of {wrong} of {len(ours)} {what}s differ from its "
        f"parent's. Nothing was judged or exported: train the update again."
    )


def _check_files(update: Update, trained: Path, task: str) -> None:
    for name in TASK_FILES:
        path = f"tasks/{task}/{name}"
        if sha256_file(trained / path) != update.parent.manifest["files"][path]:
            raise ArtefactError(
                f"{trained / path}: task {task} was not to change, but this file is not that of its parent "
                f"{update.parent.id}. Train the update again."
            )


def _outputs(model: Predictor, task: str, table: pa.Table) -> Outputs:
    logits = model.logits(table["text"].to_pylist(), table["row_id"].to_pylist(), task)
    known = next(known for known in model.model.tasks if known.name == task)
    return decode(known, logits, model.model.calibrations[task])
