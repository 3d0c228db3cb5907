"""Behavioural checks: what a user wrote that must hold of a task's answers, case by case.

Source: Ribeiro et al. 2020 (see `mtlops.data.checks`, which reads the files).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtlops.data.checks import Check, Directional, Invariance, Minimum
from mtlops.decoding import Calibration, Outputs, decode
from mtlops.tasks import Task

MOST_EXAMPLES = 5
"""Failed cases that a report shows of each check, the first ones in its file."""


@dataclass(frozen=True)
class Example:
    """A failed case: its text or pair of texts, what was expected and what was answered."""

    texts: tuple[str, ...]
    expected: str
    answered: str


@dataclass(frozen=True)
class CheckResult:
    """How many cases of a check failed, and the first `MOST_EXAMPLES` of them."""

    name: str
    type: str
    cases: int
    failed: int
    examples: tuple[Example, ...]


def run_checks(
    task: Task,
    checks: Sequence[Check],
    *,
    answer: Callable[[Sequence[str]], NDArray[np.float32]],
    calibration: Calibration,
) -> list[CheckResult]:
    """Returns the result of each check that is about `task`, in the order of the file.

    Args:
        task: whose answers are looked at.
        checks: of all tasks.
        answer: from texts to the model's logits (len(texts), C).
        calibration: from logits to answers.
    """
    mine = [check for check in checks if check.task == task.name]
    texts = list(dict.fromkeys(text for check in mine for case in check.cases for text in _texts(case)))
    if not texts:
        return []
    outputs = decode(task, answer(texts), calibration)
    answers = {text: _Answer.of_row(task, outputs, row) for row, text in enumerate(texts)}
    return [_result(task, check, answers) for check in mine]


@dataclass(frozen=True)
class _Answer:
    """One text's answer: the names of its label or labels (none for a regression), and a number for each class."""

    labels: frozenset[str]
    numbers: NDArray[np.float32]
    words: str

    @classmethod
    def of_row(cls, task: Task, outputs: Outputs, row: int) -> "_Answer":
        if outputs.values is not None:
            return cls(frozenset(), outputs.values[row : row + 1], f"{outputs.values[row]:.3f}")
        assert outputs.labels is not None and outputs.probabilities is not None
        shares = outputs.probabilities[row]
        if task.kind == "multilabel":
            labels = [name for name, is_set in zip(task.classes, outputs.labels[row], strict=True) if is_set]
        else:
            labels = [task.classes[int(outputs.labels[row])]]
        numbers = ", ".join(f"{name} {share:.3f}" for name, share in zip(task.classes, shares, strict=True))
        return cls(frozenset(labels), shares, f"{' + '.join(labels) or '(none)'} ({numbers})")


def _result(task: Task, check: Check, answers: dict[str, _Answer]) -> CheckResult:
    failures = list(_failures(task, check, answers))
    return CheckResult(check.name, check.type, len(check.cases), len(failures), tuple(failures[:MOST_EXAMPLES]))


def _failures(task: Task, check: Check, answers: dict[str, _Answer]) -> Iterator[Example]:
    for case in check.cases:
        texts = _texts(case)
        found = [answers[text] for text in texts]
        if isinstance(check, Minimum):
            expected, holds = _minimum(task, check, *found)
        elif isinstance(check, Invariance):
            expected, holds = _invariance(check, *found)
        else:
            expected, holds = _directional(task, check, *found)
        if not holds:
            yield Example(texts, expected, " -> ".join(answer.words for answer in found))


def _minimum(task: Task, check: Minimum, answer: _Answer) -> tuple[str, bool]:
    if task.kind == "regression":
        assert isinstance(check.label, float) and check.tolerance is not None
        error = abs(float(answer.numbers[0]) - check.label)
        return f"{check.label:g}, at most {check.tolerance:g} away", error <= check.tolerance
    wanted = check.classes
    return " + ".join(wanted) or "(none)", answer.labels == set(wanted)


def _invariance(check: Invariance, before: _Answer, after: _Answer) -> tuple[str, bool]:
    if check.tolerance is None:
        return "the same label", before.labels == after.labels
    moved = float(np.abs(after.numbers.astype(np.float64) - before.numbers).max())
    return f"no number moves by more than {check.tolerance:g}", moved <= check.tolerance


def _directional(task: Task, check: Directional, before: _Answer, after: _Answer) -> tuple[str, bool]:
    position = 0 if check.class_ is None else task.classes.index(check.class_)
    rise = float(after.numbers[position]) - float(before.numbers[position])
    moved = rise if check.direction == "rise" else -rise
    by = f" by at least {check.delta:g}" if check.delta else ""
    return f"{check.class_ or 'the value'} must {check.direction}{by}", moved > 0 and moved >= check.delta


def _texts(case: str | tuple[str, ...]) -> tuple[str, ...]:
    return (case,) if isinstance(case, str) else case
