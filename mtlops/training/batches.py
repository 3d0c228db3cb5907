"""Which rows of which tasks go through the model together."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_MEGA_BATCH = 8
_LENGTH_RATIO = 1.25

Rows = NDArray[np.int64]


Skip = Callable[[np.random.Generator], frozenset[int]]
"""Draws the layers whose adapters a batch leaves out."""


@dataclass(frozen=True)
class Step:
    """One pass through the model.

    Attributes:
        rows: row positions of each task in it.
        skipped: layers whose adapters it leaves out.
    """

    rows: dict[str, Rows]
    skipped: frozenset[int] = frozenset()


def skip_none(random: np.random.Generator) -> frozenset[int]:
    """Leaves out nothing."""
    return frozenset()


def skip_lowest(layers: Sequence[int]) -> Skip:
    """Returns a rule that leaves out the lowest n, n uniform from none to all but one.

    Source: Rücklé et al. 2021, "AdapterDrop", section 3 ("robust AdapterDrop layers"), arXiv:2010.11918.
    """
    return lambda random: frozenset(layers[: int(random.integers(len(layers)))])


def skip_each(layers: Sequence[int], rate: float) -> Skip:
    """Returns a rule that leaves out each layer with probability `rate` (cf. Fan et al. 2020, "LayerDrop")."""
    return lambda random: frozenset(layer for layer in layers if random.random() < rate)


def plan_epoch(
    lengths: Mapping[str, NDArray[np.int64]], *, epoch: int, seed: int, batch_size: int, skip: Skip = skip_none
) -> list[Step]:
    """Returns the steps of one epoch: every row of every task exactly once.

    A task's batches and their order depend on that task, the epoch and the seed alone, never on which
    other tasks train along: each task follows the same path whether it is trained alone or with others.
    Batches hold rows of similar length (sorted inside shuffled mega-batches); batches of different tasks
    that fall at the same point of the epoch, have similar lengths and leave out the same layers share a step.

    Shapes: lengths: tokens per row, (N,) for each task.
    """
    batches = {task: _task_batches(task, values, epoch, seed, batch_size, skip) for task, values in lengths.items()}
    num_rounds = max((len(b) for b in batches.values()), default=0)
    rounds: list[dict[str, _Batch]] = [{} for _ in range(num_rounds)]
    for task, of_task in batches.items():
        for i, batch in enumerate(of_task):
            rounds[(2 * i + 1) * num_rounds // (2 * len(of_task))][task] = batch
    return [step for together in rounds for step in _merge(together, lengths)]


def plan_rounds(
    lengths: Mapping[str, NDArray[np.int64]], *, epoch: int, seed: int, batch_size: int, temperature: float = 1.0
) -> list[dict[str, Rows]]:
    """Returns the rounds of one epoch: in each, one batch of rows of every task that takes part in it.

    At temperature 1 every row comes exactly once. Above, a task with n batches gets a share of about n^(1/temperature)
    of as many batches in all: a small task goes through its rows again, a large one through a random part of them. A
    task's batches are spread evenly over the epoch.

    Shapes: lengths: tokens per row, (N,) for each task.

    Source: Devlin et al. 2019, "Multilingual BERT", README ("exponentially smoothed weighting", n^0.7);
    Raffel et al. 2020, "T5", section 3.5.2 ("temperature-scaled mixing"), arXiv:1910.10683.
    """
    wanted = batches_per_task({task: len(values) for task, values in lengths.items()}, batch_size, temperature)
    rounds: list[dict[str, Rows]] = [{} for _ in range(max(wanted.values(), default=0))]
    for task, values in lengths.items():
        batches: list[_Batch] = []
        while len(batches) < wanted[task]:
            again = f"{seed}/{len(batches)}" if batches else seed
            batches += _task_batches(task, values, epoch, again, batch_size, skip_none)
        for i, (rows, _) in enumerate(batches[: wanted[task]]):
            rounds[(2 * i + 1) * len(rounds) // (2 * wanted[task])][task] = rows
    return rounds


def batches_per_task(num_rows: Mapping[str, int], batch_size: int, temperature: float) -> dict[str, int]:
    """Returns how many batches of each task an epoch of `plan_rounds` has; at least one."""
    whole = {task: -(-num // batch_size) for task, num in num_rows.items()}
    shares = {task: num ** (1.0 / temperature) for task, num in whole.items()}
    scale = sum(whole.values()) / sum(shares.values())
    return {task: max(1, round(share * scale)) for task, share in shares.items()}


def task_seed(*parts: object) -> int:
    """Returns a seed made of names and numbers, the same on every machine."""
    return zlib.crc32("/".join(map(str, parts)).encode())


_Batch = tuple[Rows, frozenset[int]]


def _task_batches(
    task: str, lengths: NDArray[np.int64], epoch: int, seed: object, size: int, skip: Skip
) -> list[_Batch]:
    random = np.random.default_rng(task_seed(seed, task, epoch))
    order = random.permutation(len(lengths))
    mega = size * _MEGA_BATCH
    batches = []
    for start in range(0, len(order), mega):
        chunk = order[start : start + mega]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches += [chunk[i : i + size] for i in range(0, len(chunk), size)]
    return [(batches[i], skip(random)) for i in random.permutation(len(batches))]


def _merge(together: Mapping[str, _Batch], lengths: Mapping[str, NDArray[np.int64]]) -> list[Step]:
    longest = {task: int(lengths[task][rows].max()) for task, (rows, _) in together.items()}
    steps: list[Step] = []
    shortest = 0
    for task in sorted(together, key=lambda t: (sorted(together[t][1]), longest[t], t)):
        rows, skipped = together[task]
        if not steps or skipped != steps[-1].skipped or longest[task] > shortest * _LENGTH_RATIO:
            steps.append(Step({}, skipped))
            shortest = longest[task]
        steps[-1].rows[task] = rows
    return steps
