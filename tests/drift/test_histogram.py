"""Bins of numeric columns."""

import numpy as np

from mtlops.drift.histogram import Histogram
from tests.drift.test_sketches import SETTINGS


def test_bins_are_the_quantiles_of_the_reference() -> None:
    values = np.arange(1000.0)
    histogram = Histogram.fit(values, settings=SETTINGS)
    assert len(histogram.edges) == 9
    assert np.abs(histogram.counts[:-1] - 100).max() <= 1 and histogram.counts[-1] == 0
    oracle = np.histogram(values, bins=[-np.inf, *histogram.edges, np.inf])[0]
    assert histogram.counts[:-1].tolist() == oracle.tolist()


def test_a_peak_has_a_bin_of_its_own() -> None:
    values = np.concatenate([np.zeros(600), np.linspace(0.001, 1, 400)])
    reference = Histogram.fit(values, settings=SETTINGS)
    assert reference.of([0.0] * 7).counts.max() == 7 and 600 in reference.counts
    found = reference.compare(reference.of(values + 1e-6), SETTINGS)
    assert found.p_value < 1e-6 and (found.moved.reference, found.moved.current) == (0.6, 0.0)
    assert found.moved.part == "0"


def test_missing_and_infinite_values_are_counted() -> None:
    reference = Histogram.fit(np.arange(1000.0), settings=SETTINGS)
    current = reference.of([np.nan, np.nan, np.inf, -np.inf, None])
    assert (current.counts[-1], current.counts[-2], current.counts[0]) == (3, 1, 1)
    full = np.concatenate([np.arange(1000.0), np.full(300, np.nan)])
    found = reference.compare(reference.of(full), SETTINGS)
    assert found.p_value < 0.001 and found.moved.part == "missing"


def test_few_reference_rows_get_few_bins() -> None:
    assert len(Histogram.fit(np.arange(100.0), settings=SETTINGS).edges) == 1
    assert len(Histogram.fit([], settings=SETTINGS).edges) == 0
    missing = Histogram.fit([np.nan] * 60, settings=SETTINGS)
    assert missing.compare(missing.of([1.0] * 60), SETTINGS).p_value < 1e-6
