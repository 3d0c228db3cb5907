"""Every entry of `catalog.DRIFT` through one matrix: what a user's own test must do as well."""

import itertools
import json
import random

import numpy as np
import pytest

from mtlops import catalog
from mtlops.drift.finding import Settings
from mtlops.drift.sketch import Sketch

SETTINGS = Settings(level=0.05, effect_floor=0.02, embedding_floor=0.002, bins=10, min_rows=50)
WORDS = np.asarray([f"w{k}" for k in range(12)])


def sample(test: str, num_rows: int, *, seed: int, shift: float = 0.0):
    """Rows of a column; `shift` is a real drift, in standard deviations or as a share of changed rows."""
    rng = np.random.default_rng(seed)
    if test in ("numeric", "mean"):
        return rng.normal(size=num_rows) + shift
    if test == "categorical":
        drawn = WORDS[rng.geometric(0.3, size=num_rows).clip(max=12) - 1]
        return np.where(rng.random(num_rows) < shift / 3, "new", drawn).tolist()
    assert test == "embedding", "give new entries of catalog.DRIFT a sample here"
    return (rng.normal(size=(num_rows, 8)) + shift * np.eye(8)[0]).astype(np.float32)


def fit(test: str, values) -> Sketch:
    return catalog.load(catalog.DRIFT[test].code).fit(values, settings=SETTINGS)


def content(sketch: Sketch) -> tuple[str, dict[str, bytes]]:
    facts, arrays = sketch.state()
    return json.dumps(facts), {name: array.tobytes() for name, array in arrays.items()}


every_test = pytest.mark.parametrize("test", catalog.DRIFT)


@every_test
def test_parts_merge_to_the_same_bits_in_any_order(test: str) -> None:
    reference = fit(test, sample(test, 500, seed=0))
    values = sample(test, 1300, seed=1)
    bounds = itertools.pairwise((0, 1, 700, 700, 1111, 1300))
    parts = [reference.of(values[start:end]) for start, end in bounds]
    whole = content(reference.of(values))
    for order in itertools.islice(itertools.permutations(parts), 0, 120, 7):
        merged = order[0]
        for part in order[1:]:
            merged = merged.merge(part)
        assert content(merged) == whole
    left, right = parts[0].merge(parts[1]), parts[2].merge(parts[3].merge(parts[4]))
    assert content(left.merge(right)) == whole


@every_test
def test_rows_in_another_order_give_the_same_bits(test: str) -> None:
    values = list(sample(test, 1300, seed=1))
    whole = fit(test, values if test == "categorical" else np.asarray(values))
    random.Random(0).shuffle(values)
    assert content(fit(test, values if test == "categorical" else np.asarray(values))) == content(whole)


@every_test
def test_state_is_json_and_restores(test: str) -> None:
    sketch = fit(test, sample(test, 300, seed=0))
    facts, arrays = sketch.state()
    again = type(sketch).restore(json.loads(json.dumps(facts, allow_nan=False)), arrays)
    assert content(again) == content(sketch) and again.same_shape(sketch) and again.rows == 300


@every_test
def test_real_drift_is_found_and_its_effect_covers_the_truth(test: str) -> None:
    reference = fit(test, sample(test, 5000, seed=0))
    found = reference.compare(reference.of(sample(test, 5000, seed=1, shift=0.6)), SETTINGS)
    assert found.p_value < 0.001 and found.reason is None
    assert found.low < found.effect < found.high and found.score > 1
    assert (found.reference_rows, found.rows) == (5000, 5000)


@every_test
def test_no_drift_is_not_found(test: str) -> None:
    reference = fit(test, sample(test, 5000, seed=0))
    found = reference.compare(reference.of(sample(test, 5000, seed=1)), SETTINGS)
    assert found.p_value > 0.2 and found.score < 0.5 and found.low <= found.effect


@every_test
@pytest.mark.parametrize("rows, other", [(0, 300), (300, 0), (49, 300), (300, 49), (0, 0)])
def test_few_rows_are_no_answer_and_no_crash(test: str, rows: int, other: int) -> None:
    reference = fit(test, sample(test, rows, seed=0))
    found = reference.compare(reference.of(sample(test, other, seed=1)), SETTINGS)
    assert found.p_value is None and found.score is None and "needed" in found.reason
    json.dumps(found.to_json(), allow_nan=False)


@every_test
def test_a_constant_column_is_stable(test: str) -> None:
    one = {"numeric": 3.5, "mean": 3.5, "categorical": "same", "embedding": np.ones(8, dtype=np.float32)}[test]
    reference = fit(test, [one] * 300)
    if test == "embedding":
        # Equal rows are one unit: three hundred copies are no evidence.
        assert "few groups" in reference.compare(reference.of([one] * 300), SETTINGS).reason
        return
    found = reference.compare(reference.of([one] * 300), SETTINGS)
    assert found.p_value == 1.0 and found.effect == 0.0
    other = reference.of([3.6 if test in ("numeric", "mean") else "other"] * 100)
    assert reference.compare(other, SETTINGS).p_value < 1e-6


@every_test
def test_uneven_windows_are_handled(test: str) -> None:
    large = fit(test, sample(test, 30_000, seed=0))
    for shift, low, high in ((0.0, 0.05, 1.0), (1.2, 0.0, 0.01)):
        assert low <= large.compare(large.of(sample(test, 100, seed=1, shift=shift)), SETTINGS).p_value <= high
