"""What one test of one column says, and the settings that it was made with."""

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtlops.params import Drift


@dataclass(frozen=True)
class Settings:
    """Section `drift` of params.yaml, as the tests need it.

    Attributes:
        level: probability of at least one false alarm in one judgement of all tasks and kinds.
        effect_floor: shifts of a column up to this w^2 are no drift.
        embedding_floor: shifts of the embeddings up to this squared maximum mean discrepancy are no drift.
        bins: bins of a numeric column.
        min_rows: with fewer rows on either side there is no answer.
        metric_floor: changes of an estimated metric up to this are no drift.
    """

    level: float
    effect_floor: float
    embedding_floor: float
    bins: int
    min_rows: int
    metric_floor: float = 0.05

    @classmethod
    def of(cls, drift: "Drift") -> "Settings":
        """Returns what the section `drift` says."""
        return cls(**{field.name: getattr(drift, field.name) for field in fields(cls)})


@dataclass(frozen=True)
class Moved:
    """The part of a column whose share changed most, and its shares on both sides."""

    part: str
    reference: float
    current: float


@dataclass(frozen=True)
class Finding:
    """The result of one test. Without enough data all numbers are None and `reason` says what is missing.

    Attributes:
        reference_rows: rows of the reference.
        rows: rows of the current sample.
        floor: effects up to it are no drift; in the unit of `effect`.
        statistic: of the test.
        effect: how large the shift is, chance subtracted: w^2, or the squared maximum mean discrepancy.
        low: lower end of its 95 % interval.
        high: upper end.
        p_value: chance of such a statistic when the true effect is at the floor; smaller effects give larger values,
            so that under no drift at all it is conservative.
        moved: what changed most, where that can be said.
        reason: why there is no answer.
    """

    reference_rows: int
    rows: int
    floor: float
    statistic: float | None = None
    effect: float | None = None
    low: float | None = None
    high: float | None = None
    p_value: float | None = None
    moved: Moved | None = None
    reason: str | None = None

    @property
    def score(self) -> float | None:
        """The effect in units of its floor: comparable between columns; above 1 it matters."""
        return None if self.effect is None else self.effect / self.floor

    def to_json(self) -> dict[str, Any]:
        """Returns the finding as plain JSON values, with its score."""
        moved = None if self.moved is None else vars(self.moved)
        return {**vars(self), "moved": moved, "score": self.score}
