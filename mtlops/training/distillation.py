"""Learning from a teacher's answers, beside the labels.

The loss is in `training.objective`; here is what it compares with: the logits of a teacher bundle for each row.
They come out of the bundle's own graph, whatever trained it, so a student may be any other model.

Source: Hinton et al. 2015, "Distilling the Knowledge in a Neural Network", section 2, arXiv:1503.02531.
"""

import hashlib
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mtlops import catalog
from mtlops.catalog import suggest
from mtlops.decoding import decode
from mtlops.errors import UsageError
from mtlops.files import atomic_path
from mtlops.tasks import Task

logger = logging.getLogger(__name__)

_ROWS = 256
_LOG_SECONDS = 5.0


class Teacher(Protocol):
    """A bundle that answers (`serving.runtime.Runtime`)."""

    bundle_id: str
    tasks: tuple[Task, ...]

    def logits(self, texts: Sequence[str], task: str, /) -> NDArray[np.float32]:
        """Returns the logits (N, C) of one task, in label units."""


def check_teacher(teacher: Teacher, tasks: Sequence[Task]) -> None:
    """Makes sure that a teacher knows these tasks.

    Raises:
        UsageError: it lacks one, or has it with another kind or other classes.
    """
    known = {task.name: task for task in teacher.tasks}
    way_out = "Choose another teacher, or list in train.distil_tasks the tasks that shall learn from it."
    for task in tasks:
        if task.per_word:
            raise UsageError(
                f"params.yaml: train.teacher: task {task.name!r} tags words, which no teacher teaches yet. List in "
                f"train.distil_tasks the tasks that shall learn from it."
            )
        where = f"params.yaml: train.teacher: bundle {teacher.bundle_id}"
        if task.name not in known:
            raise UsageError(f"{where} has no task {task.name!r}. {suggest(task.name, list(known))} {way_out}")
        theirs = known[task.name]
        if (theirs.kind, theirs.classes) != (task.kind, task.classes):
            raise UsageError(
                f"{where}: its task {task.name!r} is {_words(theirs)}, here it is {_words(task)}. {way_out}"
            )


def teacher_logits(
    teacher: Teacher, task: str, row_ids: Sequence[str], texts: Sequence[str], *, cache: Path
) -> NDArray[np.float32]:
    """Returns the teacher's logits (N, C) for some rows; computed once, then read from `cache`.

    One file holds one set of rows, and is computed as a whole: a row's last bits depend on its batch, so a run that
    is killed half-way starts this set anew and ends with the same bits.

    Raises:
        PlatformError: the cache cannot be written.
    """
    rows = hashlib.sha256("\0".join([*row_ids, *texts]).encode()).hexdigest()
    path = cache / f"teacher-{teacher.bundle_id}" / f"{task}-{rows[:16]}.safetensors"
    known = _read(path, list(row_ids))
    if known is not None:
        return known
    started = reported = time.monotonic()
    parts = []
    for start in range(0, len(texts), _ROWS):
        parts.append(teacher.logits(texts[start : start + _ROWS], task))
        if time.monotonic() - reported > _LOG_SECONDS:
            reported, done = time.monotonic(), min(start + _ROWS, len(texts))
            rate = done / (reported - started)
            logger.info(
                "teacher task=%s rows=%d/%d rows_per_second=%.0f eta_seconds=%.0f",
                task, done, len(texts), rate, (len(texts) - done) / rate,
            )  # fmt: skip
    logits = np.concatenate(parts)
    with atomic_path(path) as part:
        part.write_bytes(save({"logits": logits}, metadata={"rows": json.dumps(list(row_ids))}))
    return logits


def distance(
    task: Task, labels: NDArray[Any], *, student: NDArray[np.float32], teacher: NDArray[np.float32]
) -> dict[str, float]:
    """Returns how far a student is from its teacher on labelled rows.

    Shapes: labels as `Task.encode` returns them, both logits (N, C) in label units.

    Returns: `teacher` and `student`, their primary metric; `change`, the student's minus the teacher's; `agreement`,
    the share of answers that are the same (not for a regression); `divergence`, the mean of the kind's loss against
    a teacher at temperature 1 (KL in nats, or squared difference in label units).
    """
    kind = catalog.KINDS[task.kind]
    metrics, divergence = catalog.load(kind.metrics), catalog.load(kind.divergence)
    ours, theirs = (decode(task, logits) for logits in (student, teacher))
    value = {
        name: metrics(task, labels, outputs)[kind.primary] for name, outputs in (("teacher", theirs), ("student", ours))
    }
    apart = divergence(torch.from_numpy(student).double(), torch.from_numpy(teacher).double(), 1.0)
    found = {**value, "change": value["student"] - value["teacher"], "divergence": float(apart.mean())}
    if ours.labels is not None:
        found["agreement"] = float(np.mean(ours.labels == theirs.labels))
    return found


def _words(task: Task) -> str:
    return f"{task.kind} of {', '.join(task.classes)}" if task.classes else task.kind


def _read(path: Path, row_ids: list[str]) -> NDArray[np.float32] | None:
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="numpy") as file:
            if json.loads(file.metadata()["rows"]) == row_ids:
                logits: NDArray[np.float32] = file.get_tensor("logits")
                return logits
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        logger.warning("%s: damaged (%s): the teacher answers again", path, error)
    return None
