"""Does the budget of false alarms hold on this reference? Windows drawn from it are judged as if they were traffic."""

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from mtlops.drift.categories import Categories
from mtlops.drift.detector import DRIFTED, Detector
from mtlops.drift.finding import Settings
from mtlops.drift.histogram import Histogram
from mtlops.drift.profile import Part, Profile
from mtlops.drift.verdicts import bonferroni
from mtlops.watch.references import Reference
from mtlops.watch.streams import TRAFFIC, basis

if TYPE_CHECKING:
    from mtlops.params import Drift

NUM_WINDOWS = 40
_WINDOWS_A_MONTH = 30.0


def check_reference(reference: Reference, drift: "Drift", *, threshold: float) -> list[str]:
    """Returns warnings, in plain words: cells that cannot be judged, and a budget that cannot be kept.

    Windows are drawn with replacement from the reference's own counts, column by column; embeddings, of which only sums
    are kept, cannot be drawn from and are left out.

    Args:
        reference: of a task, or of the encoder.
        drift: section of params.yaml.
        threshold: months of evidence at which a cell alarms.
    """
    settings = Settings.of(drift)
    profile = basis(reference, TRAFFIC)
    warnings = [
        f"{reference.name}: {kind} cannot be judged: its reference has {rows} rows, {drift.min_rows} are needed."
        for kind, rows in sorted(_rows_by_kind(reference.profile).items())
        if rows < drift.min_rows
    ]
    rng = np.random.default_rng(0)
    detectors: dict[str, Detector] = {}
    alarms = 0
    for _ in range(NUM_WINDOWS):
        found = profile.compare(_drawn(profile, drift.window_rows, rng), settings)
        for kind, columns in found.items():
            p_value = bonferroni([finding.p_value for finding in columns.values()])
            before = detectors.get(kind, Detector(threshold))
            after = before.after(p_value, months=1.0 / _WINDOWS_A_MONTH)
            alarms += after.level == DRIFTED != before.level
            detectors[kind] = after
    most = drift.false_alarms_per_month * NUM_WINDOWS / _WINDOWS_A_MONTH
    if alarms > max(most, 0.5):
        warnings.append(
            f"{reference.name}: {alarms} false alarms in {NUM_WINDOWS} windows drawn from the reference itself, where "
            f"the budget allows {most:.1f}. Raise drift.effect_floor or drift.window_rows."
        )
    return warnings


def _rows_by_kind(profile: Profile) -> dict[str, int]:
    found: dict[str, int] = {}
    for part in profile.parts.values():
        found[part.kind] = min(found.get(part.kind, part.sketch.rows), part.sketch.rows)
    return found


def _drawn(profile: Profile, rows: int, rng: np.random.Generator) -> Profile:
    return replace(profile, parts={name: _drawn_part(part, rows, rng=rng) for name, part in profile.parts.items()})


def _drawn_part(part: Part, rows: int, *, rng: np.random.Generator) -> Part:
    sketch = part.sketch
    if isinstance(sketch, Histogram) and sketch.rows:
        return replace(part, sketch=replace(sketch, counts=rng.multinomial(rows, sketch.counts / sketch.rows)))
    if isinstance(sketch, Categories) and sketch.rows:
        drawn = rng.multinomial(rows, np.asarray(list(sketch.counts.values())) / sketch.rows)
        return replace(part, sketch=replace(sketch, counts=dict(zip(sketch.counts, drawn.tolist(), strict=True))))
    return replace(part, sketch=sketch.of([]))
