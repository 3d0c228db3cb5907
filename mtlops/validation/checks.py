"""What one check of the prepared data found, in plain words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

MOST_ROWS = 20
"""A check names at most this many failing rows."""

NO_ROW_ID = "(no row_id)"
"""Stands for a row that has none where failing rows are named."""

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Wording:
    """How a check speaks, whatever it found.

    Attributes:
        expected: what must hold.
        remedy: what to do when it does not; a whole sentence.
        severity: an `error` stops the step, a `warning` is only reported.
    """

    expected: str
    remedy: str
    severity: Severity = "error"


@dataclass(frozen=True)
class Check:
    """One check: the promise, and what was seen.

    Attributes:
        name: of the promise, the same for every task and split.
        task: name of the task, or None for a promise about the whole suite.
        split: `train`, `valid`, `test`, `windows/<name>`, or None for a promise about all of them.
        severity: an `error` that did not pass breaks the data's promise.
        passed: whether the promise holds.
        observed: what was seen.
        expected: what was promised.
        failing_rows: `row_id` of rows that break it, at most `MOST_ROWS`, sorted.
        message: all of that in one line, with what to do when it failed.
    """

    name: str
    task: str | None
    split: str | None
    severity: Severity
    passed: bool
    observed: str
    expected: str
    failing_rows: tuple[str, ...]
    message: str

    @property
    def is_broken(self) -> bool:
        """Whether this check alone stops the step."""
        return self.severity == "error" and not self.passed


def describe(
    name: str,
    wording: Wording,
    *,
    task: str | None,
    split: str | None,
    passed: bool,
    observed: str,
    failing_rows: Sequence[str] = (),
) -> Check:
    """Returns the check with its message written."""
    rows = tuple(sorted(set(failing_rows))[:MOST_ROWS])
    where = "/".join(part for part in (task, split) if part) or "suite"
    message = f"{where}: {name.replace('_', ' ')}: {observed}; expected {wording.expected}."
    if not passed:
        message += f" {_name_rows(rows)}{wording.remedy}"
    return Check(name, task, split, wording.severity, passed, observed, wording.expected, rows, message)


def _name_rows(rows: Sequence[str]) -> str:
    if not rows:
        return ""
    more = ", ..." if len(rows) > 3 else ""
    return f"Rows {', '.join(rows[:3])}{more}. "
