"""How many rows come in: each slot of time (an hour) against earlier slots of the same phase of the season.

The forecast of a slot is the mean of the earlier slots of its phase. Rows are taken for negative-binomial: Poisson
whose rate varies, with a dispersion that the errors of the earlier forecasts show. As in the tests of columns the
floor stands inside: the p-value of x rows is the chance of so few where `factor` times fewer than the forecast are due,
or of so many where `factor` times more are. And it is never smaller than the share of earlier slots that lay as far
from their own forecasts (split conformal): nights, bursts and other habits that no law describes have been seen before.

What is learnt is learnt a day late, and not at all where an alarm came in between.

Source: McCullagh and Nelder 1989, "Generalized linear models", section 6.2.3 (the dispersion by moments); Vovk,
Gammerman and Shafer 2005, "Algorithmic learning in a random world", section 4.2 (ranks as p-values).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import betainc, gammaincinv, pdtr, pdtrc

from mtlops.drift.finding import Finding, Moved

SEASONS = {"none": 0, "daily": 1, "weekly": 7}
"""Days of a season."""

DAY_MINUTES = 24 * 60

LEAST_FORECASTS = 24
"""Forecasts that were put to the test before one is trusted."""

_LEAST_OF_PHASE = 2
_KEPT_DAYS = 56
_SMALLEST_P = 1e-15
_POISSON = 1e-6
_TAIL = 0.025

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Slot:
    """A slot that has ended: its number since 1970, its rows, and how many were expected; None where nobody knew."""

    number: int
    rows: int
    expected: float | None


@dataclass
class Rhythm:
    """The rows that a task has had, slot by slot.

    Attributes:
        minutes: length of a slot.
        season: `none`, `daily` or `weekly`.
        learnt: the slots that forecasts are made of, at most 8 weeks.
        pending: those of the last day, which are not learnt yet.
    """

    minutes: int
    season: str
    learnt: list[Slot] = field(default_factory=list)
    pending: list[Slot] = field(default_factory=list)

    def judge(self, number: int, rows: int, *, factor: float) -> Finding | None:
        """Returns what is to be said of a slot's rows; None while too few forecasts have been put to the test.

        Args:
            number: of the slot.
            rows: in it.
            factor: so many times more or fewer rows than expected are no fault.
        """
        expected = self.expected(number)
        seen = [slot for slot in self.learnt if slot.expected is not None]
        if expected is None or len(seen) < LEAST_FORECASTS:
            return None
        counts = np.asarray([slot.rows for slot in seen], dtype=np.float64)
        forecasts = np.asarray([slot.expected for slot in seen], dtype=np.float64)
        spread = _dispersion(counts, forecasts)
        ratios, ratio = (counts + 1.0) / (forecasts + 1.0), (rows + 1.0) / (expected + 1.0)
        few = max(_at_most(rows, expected / factor, spread), _share(ratios <= ratio))
        many = max(_at_least(rows, expected * factor, spread), _share(ratios >= ratio))
        low, high = (float(gammaincinv(shape, tail)) if shape else 0.0
                     for shape, tail in ((rows, _TAIL), (rows + 1, 1.0 - _TAIL)))  # fmt: skip
        unit = max(expected, 1e-9)
        return Finding(
            len(seen), rows, float(np.log(factor)), statistic=rows / unit, effect=abs(float(np.log(ratio))),
            low=low / unit, high=high / unit, p_value=float(min(1.0, max(2.0 * min(few, many), _SMALLEST_P))),
            moved=Moved(f"rows in {self.minutes} minutes", expected, float(rows)),
        )  # fmt: skip

    def add(self, number: int, rows: int, *, is_calm: bool) -> None:
        """Keeps a slot in mind; without calm it is left out, and what waited to be learnt with it.

        Args:
            number: of the slot; later than every earlier one.
            rows: in it.
            is_calm: whether there is no alarm.
        """
        if not is_calm:
            self.pending = []
            return
        self.pending.append(Slot(number, rows, self.expected(number)))
        day = DAY_MINUTES // self.minutes
        while self.pending and self.pending[0].number <= number - day:
            self.learnt.append(self.pending.pop(0))
        oldest = number - _KEPT_DAYS * day
        self.learnt = [slot for slot in self.learnt if slot.number > oldest]

    def expected(self, number: int) -> float | None:
        """Returns the mean of the learnt slots of the same phase; None while there are too few."""
        slots = SEASONS[self.season] * DAY_MINUTES // self.minutes or 1
        found = [slot.rows for slot in self.learnt if slot.number % slots == number % slots]
        return float(np.mean(found)) if len(found) >= _LEAST_OF_PHASE else None

    def to_json(self) -> dict[str, Any]:
        """Returns plain JSON values."""
        return {"learnt": _listed(self.learnt), "pending": _listed(self.pending)}

    @classmethod
    def from_json(cls, facts: dict[str, Any], *, minutes: int, season: str) -> "Rhythm":
        """Returns what `to_json` described."""
        return cls(minutes, season, *([Slot(*slot) for slot in facts[name]] for name in ("learnt", "pending")))


def _listed(slots: Sequence[Slot]) -> list[list[Any]]:
    return [[slot.number, slot.rows, slot.expected] for slot in slots]


def _dispersion(counts: Floats, forecasts: Floats) -> float:
    """The variance of the rate over the square of its mean; 0 for Poisson. Forecasts of many rows count more."""
    excess = float(((counts - forecasts) ** 2 - forecasts).sum())
    return max(0.0, excess / max(float((forecasts**2).sum()), 1e-9))


def _at_most(rows: int, mean: float, spread: float) -> float:
    """The chance of at most so many rows."""
    if mean <= 0.0:
        return 1.0
    if spread < _POISSON:
        return float(pdtr(rows, mean))
    return float(betainc(1.0 / spread, rows + 1.0, 1.0 / (1.0 + spread * mean)))


def _at_least(rows: int, mean: float, spread: float) -> float:
    """The chance of at least so many rows; a mean of 0 is taken for one of a row in a thousand slots."""
    mean = max(mean, 1e-3)
    if rows == 0:
        return 1.0
    if spread < _POISSON:
        return float(pdtrc(rows - 1, mean))
    return float(betainc(float(rows), 1.0 / spread, spread * mean / (1.0 + spread * mean)))


def _share(are_as_far: NDArray[np.bool_]) -> float:
    return float(1 + np.count_nonzero(are_as_far)) / (1 + len(are_as_far))
