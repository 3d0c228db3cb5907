"""Which rows of which tasks go through the model together."""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MEGA_BATCH = 8
_LENGTH_RATIO = 1.25

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Step:
    """One pass through the model: row positions of each task in it."""

    rows: dict[str, Rows]


def plan_epoch(lengths: Mapping[str, NDArray[np.int64]], *, epoch: int, seed: int, batch_size: int) -> list[Step]:
    """Returns the steps of one epoch: every row of every task exactly once.

    A task's batches and their order depend on that task, the epoch and the seed alone, never on which
    other tasks train along: each task follows the same path whether it is trained alone or with others.
    Batches hold rows of similar length (sorted inside shuffled mega-batches); batches of different tasks
    that fall at the same point of the epoch and have similar lengths share a step.

    Shapes: lengths: tokens per row, (N,) for each task.
    """
    batches = {task: _task_batches(task, values, epoch, seed, batch_size) for task, values in lengths.items()}
    num_rounds = max((len(b) for b in batches.values()), default=0)
    rounds: list[dict[str, Rows]] = [{} for _ in range(num_rounds)]
    for task, of_task in batches.items():
        for i, rows in enumerate(of_task):
            rounds[(2 * i + 1) * num_rounds // (2 * len(of_task))][task] = rows
    return [step for together in rounds for step in _merge(together, lengths)]


def task_seed(*parts: object) -> int:
    """Returns a seed made of names and numbers, the same on every machine."""
    return zlib.crc32("/".join(map(str, parts)).encode())


def _task_batches(task: str, lengths: NDArray[np.int64], epoch: int, seed: int, size: int) -> list[Rows]:
    random = np.random.default_rng(task_seed(seed, task, epoch))
    order = random.permutation(len(lengths))
    mega = size * _MEGA_BATCH
    batches = []
    for start in range(0, len(order), mega):
        chunk = order[start : start + mega]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches += [chunk[i : i + size] for i in range(0, len(chunk), size)]
    return [batches[i] for i in random.permutation(len(batches))]


def _merge(together: Mapping[str, Rows], lengths: Mapping[str, NDArray[np.int64]]) -> list[Step]:
    longest = {task: int(lengths[task][rows].max()) for task, rows in together.items()}
    steps: list[dict[str, Rows]] = []
    shortest = 0
    for task in sorted(together, key=lambda t: (longest[t], t)):
        if not steps or longest[task] > shortest * _LENGTH_RATIO:
            steps.append({})
            shortest = longest[task]
        steps[-1][task] = together[task]
    return [Step(rows) for rows in steps]
