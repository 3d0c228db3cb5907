"""Counts of words."""

import numpy as np
import pyarrow as pa

from mtlops.drift.categories import MISSING, MOST_VALUES, Categories
from tests.drift.test_sketches import SETTINGS


def of(values) -> Categories:
    return Categories.fit(values, settings=SETTINGS)


def test_words_missing_values_and_arrow_columns() -> None:
    assert of(["b", "a", None, "b"]).counts == {MISSING: 1, "a": 1, "b": 2}
    assert of(pa.chunked_array([["b"], ["a", None, "b"]])) == of(["b", "a", None, "b"])
    assert of([MISSING, None]).counts == {MISSING: 2}
    assert of([]).rows == 0


def test_many_values_become_buckets_whatever_the_order_of_merging() -> None:
    parts = [of([f"v{k}" for k in range(start, start + 300)]) for start in (0, 300, 600, 900)]
    left = parts[0].merge(parts[1]).merge(parts[2]).merge(parts[3])
    right = parts[3].merge(parts[1]).merge(parts[0].merge(parts[2]))
    assert left == right == of([f"v{k}" for k in range(MOST_VALUES + 200)])
    assert left.is_hashed and left.rows == 1200 and len(left.counts) <= 64
    assert left.merge(of(["v1"])).rows == 1201


def test_buckets_and_words_can_be_compared() -> None:
    many, few = of([f"v{k}" for k in range(3000)]), of(["v7"] * 3000)
    assert many.compare(few, SETTINGS).p_value < 1e-6
    assert many.compare(of([f"v{k}" for k in range(500)]), SETTINGS).p_value > 0.2


def test_an_open_vocabulary_does_not_alarm() -> None:
    """Words that the reference happens to lack occur in every sample of such a column."""
    rng = np.random.default_rng(0)
    p_values = []
    for _ in range(40):
        a, b = ([f"w{k}" for k in rng.zipf(1.4, size=1500) % 100_000] for _ in range(2))
        assert len(set(b) - set(a)) > 100
        p_values.append(of(a).compare(of(b), SETTINGS).p_value)
    assert min(p_values) > 0.05
