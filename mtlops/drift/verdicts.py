"""From findings to verdicts: corrected over columns, kinds and tasks, so that the stated level is that of all.

First the columns of one kind of one task are summed up as a cell: the smallest p-value times their number
(Bonferroni), valid whatever the dependence between columns. Then Holm's step-down over all cells controls the chance
of any false alarm. Columns are told apart only inside a cell that drifted, by Holm again: they explain, they do not
alarm.

Source: Holm 1979, "A simple sequentially rejective multiple test procedure", Scand. J. Statist. 6(2); Meinshausen
2008, "Hierarchical testing of variable importance", Biometrika 95(2) (from groups down to members).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtlops.drift.finding import Finding, Settings

DRIFTED = "drifted"
STABLE = "stable"
INSUFFICIENT = "insufficient data"

Findings = Mapping[str, Mapping[str, Finding]]
"""By kind, by column: what `Profile.compare` returns."""


@dataclass(frozen=True)
class Cell:
    """What is said of one kind of one task.

    Attributes:
        task: name of the task, or `encoder` for all rows.
        kind: one of `columns.KINDS`.
        verdict: `drifted`, `stable` or `insufficient data`.
        p_value: of the cell, valid for it alone; None without enough data.
        p_adjusted: Holm's, over all cells judged together: the cell drifted when it is at most the level.
        score: largest effect of a column in units of its floor.
        columns: finding of each column.
        drifted: the columns that explain the alarm, the largest score first.
    """

    task: str
    kind: str
    verdict: str
    p_value: float | None
    p_adjusted: float | None
    score: float | None
    columns: Mapping[str, Finding]
    drifted: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Returns the cell as plain JSON values; the strongest column's effect and rows stand beside its score."""
        strongest = max(self.columns.values(), key=lambda finding: finding.score or 0.0)
        return {
            "kind": self.kind,
            "verdict": self.verdict,
            "score": self.score,
            "p_value": self.p_value,
            "p_adjusted": self.p_adjusted,
            "effect": None if self.score is None else {
                "value": strongest.effect, "low": strongest.low, "high": strongest.high, "floor": strongest.floor,
            },
            "rows": strongest.rows,
            "reference_rows": strongest.reference_rows,
            "drifted": list(self.drifted),
            "columns": {name: finding.to_json() for name, finding in self.columns.items()},
        }  # fmt: skip


def judge(findings: Mapping[str, Findings], settings: Settings) -> list[Cell]:
    """Returns a cell for each kind of each task; `findings` are by task (`encoder` for all rows) and kind."""
    cells = [(task, kind, columns) for task, kinds in findings.items() for kind, columns in kinds.items() if columns]
    p_values = [bonferroni([found.p_value for found in columns.values()]) for _, _, columns in cells]
    adjusted = holm(p_values)
    return [
        _cell(task, kind, columns, p=p, p_adjusted=corrected, level=settings.level)
        for (task, kind, columns), p, corrected in zip(cells, p_values, adjusted, strict=True)
    ]


def bonferroni(p_values: Sequence[float | None]) -> float | None:
    """Returns the p-value of the claim that nothing moved; None where there is none to go by."""
    known = [p for p in p_values if p is not None]
    return min(1.0, len(known) * min(known)) if known else None


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Returns the adjusted p-values; None stays None and does not count."""
    known = sorted((p, position) for position, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, position) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[position] = largest
    return adjusted


def _cell(
    task: str, kind: str, columns: Mapping[str, Finding], *, p: float | None, p_adjusted: float | None, level: float
) -> Cell:
    scores = {name: found.score for name, found in columns.items() if found.score is not None}
    if p_adjusted is None:
        return Cell(task, kind, INSUFFICIENT, None, None, None, columns, ())
    if p_adjusted > level:
        return Cell(task, kind, STABLE, p, p_adjusted, max(scores.values()), columns, ())
    within = dict(zip(columns, holm([found.p_value for found in columns.values()]), strict=True))
    guilty = [name for name, corrected in within.items() if corrected is not None and corrected <= level]
    guilty.sort(key=lambda name: (-scores[name], name))
    return Cell(task, kind, DRIFTED, p, p_adjusted, max(scores.values()), columns, tuple(guilty))
