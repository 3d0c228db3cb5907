"""Runs candidates in turns in one process, so that what else the machine does hits all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence


def side_by_side(candidates: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Returns the CPU seconds (all threads of this process) of each candidate in each round.

    Every round starts with another candidate.
    """
    names = list(candidates)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            started = time.process_time()
            candidates[name]()
            seconds[name].append(time.process_time() - started)
    return seconds


def ratio(reference: Sequence[float], ours: Sequence[float]) -> str:
    """Returns how many times as long the reference took: the median over the rounds, and the range."""
    found = [theirs / own for theirs, own in zip(reference, ours, strict=True)]
    return f"{statistics.median(found):.1f}x [{min(found):.1f}, {max(found):.1f}]"
