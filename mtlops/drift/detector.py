"""Alarms over time with a stated number of false ones a month, whatever the number, size and pace of the windows.

Each window gives a p-value, the p-value an e-value, and e-values add up in calendar time:

    value <- (value + months since the last window) * e        alarm when value >= threshold

If each e-value is at most 1 in the mean while nothing drifts, then value minus elapsed months cannot grow in the mean,
so the mean time to a false alarm is at least `threshold` months. With `cells` detectors and a threshold of
cells / false_alarms_per_month, all of them together give at most that many. A window that says nothing (p about 1)
halves the value, so that a detector forgets; one with p below about 1e-7 alarms alone.

Source: Shin, Ramdas and Rinaldo 2023, "E-detectors: a nonparametric framework for sequential change detection",
section 2 (differs: the unit that is added is calendar time, not 1 a window); Vovk and Wang 2021, "E-values:
calibration, combination and applications", Annals of Statistics 49(3), section 2 (the calibrator, mixed over its
parameter).
"""

import math
from dataclasses import dataclass, replace

OK = "ok"
SUSPECTED = "suspected"
DRIFTED = "drifted"
LEVELS = (OK, SUSPECTED, DRIFTED)
"""In rising order: the number that a level has in metrics is its position."""

SUSPICION = 10.0
"""`suspected` is the same detector with so many times the false alarms."""

MONTH_SECONDS = 30 * 86_400.0

_SMALLEST_P = 1e-15
_CAP = 4.0


def evidence(p_value: float) -> float:
    """Returns the e-value of a p-value: the mean of k p^(k-1) over k from 0 to 1."""
    if p_value >= 1.0:
        return 0.5
    p = max(p_value, _SMALLEST_P)
    log = math.log(p)
    if log > -1e-3:
        return 0.5 - log / 6.0
    return (1.0 - p + p * log) / (p * log * log)


@dataclass(frozen=True)
class Detector:
    """The evidence of one cell (task, kind) so far.

    Attributes:
        threshold: months; the mean time to a false alarm is at least this.
        value: months; see above. It is kept below a few times the threshold, so that a drift that ends is seen to end.
        level: `ok`, `suspected` or `drifted`. An alarm ends when the value falls below the suspicion's threshold.
    """

    threshold: float
    value: float = 0.0
    level: str = OK

    def after(self, p_value: float | None, *, months: float) -> "Detector":
        """Returns the detector after a window; `p_value` is None when the window could not be judged."""
        e_value = 1.0 if p_value is None else evidence(p_value)
        value = min((self.value + months) * e_value, _CAP * self.threshold)
        return replace(self, value=value, level=self._level(value))

    def _level(self, value: float) -> str:
        if value >= self.threshold:
            return DRIFTED
        if value < self.threshold / SUSPICION:
            return OK
        return DRIFTED if self.level == DRIFTED else SUSPECTED


def threshold(*, cells: int, false_alarms_per_month: float) -> float:
    """Returns the threshold, in months, at which `cells` detectors together keep the budget."""
    return cells / false_alarms_per_month
