"""Streams of windows and of rows whose chance is known, and the alarms that detectors give on them."""

import json
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from mtlops.drift.categories import Categories
from mtlops.drift.detector import DRIFTED, Detector
from mtlops.drift.embeddings import Embeddings
from mtlops.drift.finding import Finding, Settings
from mtlops.drift.histogram import Histogram
from mtlops.params import Drift

STATED = Settings.of(Drift())
WITHOUT_FLOOR = replace(STATED, effect_floor=1e-12, embedding_floor=1e-12)
REFERENCE_ROWS, WINDOW_ROWS = 4000, 500
BEFORE, AFTER, CALM = 5000, 20_000, 50_000
"""Rows before a change and after it, and rows of a stream without one."""

Windows = Iterator[Finding]


def numeric(rng: np.random.Generator, settings: Settings, *, shift: float) -> Windows:
    """Yields windows of normal numbers, moved by `shift` standard deviations, against one finite reference."""
    reference = Histogram.fit(rng.normal(size=REFERENCE_ROWS), settings=settings)
    while True:
        yield reference.compare(reference.of(rng.normal(shift, size=WINDOW_ROWS)), settings)


def categories(rng: np.random.Generator, settings: Settings) -> Windows:
    """Yields windows of ten categories of unequal shares against one finite reference."""
    shares = 1.0 / np.arange(1, 11)
    shares /= shares.sum()
    reference = _counts(rng.multinomial(REFERENCE_ROWS, shares))
    while True:
        yield reference.compare(_counts(rng.multinomial(WINDOW_ROWS, shares)), settings)


def _counts(counts: np.ndarray) -> Categories:
    return Categories({f"{k:03d}": int(rows) for k, rows in enumerate(counts) if rows})


def embeddings(rng: np.random.Generator, settings: Settings) -> Windows:
    """Yields windows of 16 normal numbers a row against one finite reference."""
    reference = Embeddings.fit(rng.normal(size=(REFERENCE_ROWS, 16)).astype(np.float32), settings=settings)
    while True:
        yield reference.compare(reference.of(rng.normal(size=(WINDOW_ROWS, 16)).astype(np.float32)), settings)


def stream(seed: int, shift: float) -> np.ndarray:
    """Returns normal numbers: calm ones, or, with a shift, such as move by it after `BEFORE` rows."""
    values = np.random.default_rng([6, seed, int(100 * shift)]).normal(size=CALM if shift == 0.0 else BEFORE + AFTER)
    if shift:
        values[BEFORE:] += shift
    return values


def alarms(stream: np.ndarray, seed: int, settings: Settings) -> list[int]:
    """Returns the row numbers of our alarms: windows of 100 rows, 10,000 a month; stated: one in 10 months."""
    reference = Histogram.fit(np.random.default_rng([7, seed]).normal(size=REFERENCE_ROWS), settings=settings)
    detector, found = Detector(10.0), []
    for start in range(0, len(stream) - 99, 100):
        finding = reference.compare(reference.of(stream[start : start + 100]), settings)
        detector = detector.after(finding.p_value, months=0.01)
        if detector.level == DRIFTED:
            found.append(start + 100)
            detector = Detector(10.0)
    return found


def late(alarms: Sequence[int]) -> float:
    """Returns the rows from the change to its alarm; `AFTER` where none came."""
    return float(next((at - BEFORE for at in alarms if at > BEFORE), AFTER))


def adwin_alarms(python: str, streams: Mapping[str, np.ndarray], deltas: Sequence[float]) -> dict[str, list[list[int]]]:
    """Returns by stream, for each delta, the row numbers at which river's ADWIN alarms.

    Args:
        python: a Python with `river`.
        streams: by name.
        deltas: ADWIN's own confidence parameter.
    """
    program = """
import json, sys
from river.drift import ADWIN
given = json.load(sys.stdin)
def alarms(stream, delta):
    detector, found = ADWIN(delta=delta), []
    for k, x in enumerate(stream):
        detector.update(x)
        if detector.drift_detected:
            found.append(k + 1)
    return found
print(json.dumps({name: [alarms(rows, d) for d in given["deltas"]] for name, rows in given["streams"].items()}))
"""
    given = json.dumps({"deltas": list(deltas), "streams": {name: rows.tolist() for name, rows in streams.items()}})
    done = subprocess.run([python, "-c", program], input=given, capture_output=True, text=True, check=True)
    found: dict[str, list[list[int]]] = json.loads(done.stdout)
    return found
