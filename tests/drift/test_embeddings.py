"""The maximum mean discrepancy of stored sums."""

import numpy as np
import pytest

from mtlops.drift import embeddings
from mtlops.drift.embeddings import Embeddings
from mtlops.errors import ArtefactError
from tests.drift.test_sketches import SETTINGS


def fit(values, keys=None) -> Embeddings:
    return Embeddings.fit(values, keys=keys, settings=SETTINGS)


def normal(num_rows: int, *, seed: int, width: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(num_rows, width)).astype(np.float32)


def test_effect_agrees_with_the_exact_discrepancy_of_the_kernel() -> None:
    x, y = normal(2000, seed=0), normal(2000, seed=1) + np.float32(0.25)
    reference = fit(x)
    found = reference.compare(reference.of(y), SETTINGS)
    exact = _mmd_squared(x, y, reference.bandwidth)
    assert found.effect == pytest.approx(exact, rel=0.25)
    assert found.low < exact < found.high


def test_bandwidth_is_the_median_distance() -> None:
    x = normal(400, seed=3)
    distances = np.sqrt(((x[:, None] - x[None]) ** 2).sum(-1))[np.triu_indices(400, k=1)]
    assert fit(x).bandwidth == pytest.approx(np.median(distances), rel=1e-4)


def test_rows_of_one_author_are_no_independent_evidence() -> None:
    """Eighty authors a side who differ among themselves: no drift, but rows taken alone look like one."""
    alarms = {"rows": 0, "authors": 0}
    for seed in range(16):
        rng = np.random.default_rng(seed)
        samples, names = [], []
        for side in "ab":
            styles = rng.normal(size=(80, 16)) * 1.0
            author = rng.integers(80, size=1500)
            samples.append((styles[author] + rng.normal(size=(1500, 16))).astype(np.float32))
            names.append([f"{seed}{side}{a}" for a in author])
        for kind, keys in (("rows", (None, None)), ("authors", names)):
            reference = fit(samples[0], keys[0])
            found = reference.compare(reference.of(samples[1], keys=keys[1]), SETTINGS)
            alarms[kind] += found.p_value < 0.05
    assert alarms["rows"] > 8 and alarms["authors"] <= 3, alarms


def test_sums_of_other_frequencies_are_refused() -> None:
    facts, arrays = fit(normal(100, seed=0)).state()
    with pytest.raises(ArtefactError, match="other random frequencies"):
        Embeddings.restore({**facts, "frequencies": "0" * 16}, arrays)


def test_a_rows_features_do_not_depend_on_its_neighbours() -> None:
    x = normal(1500, seed=5, width=384)
    reference = fit(x)
    alone = [reference.of(x[k : k + 1]) for k in (0, 511, 512, 1499)]
    for k, sketch in zip((0, 511, 512, 1499), alone, strict=True):
        rest = reference.of(np.delete(x, k, axis=0))
        assert np.array_equal(rest.merge(sketch).sums, reference.sums)


def test_blocks_fold_with_the_number_of_rows() -> None:
    assert [embeddings._num_blocks(rows) for rows in (64, 127, 128, 255, 256, 10**6)] == [16, 16, 32, 32, 64, 64]


def _mmd_squared(x: np.ndarray, y: np.ndarray, bandwidth: float) -> float:
    def kernel(a, b):
        squares = (a**2).sum(1)[:, None] + (b**2).sum(1) - 2 * a @ b.T
        return np.exp(-squares / (2 * bandwidth**2))

    n = len(x)
    within = [(kernel(a, a).sum() - n) / (n * (n - 1)) for a in (x, y)]
    return float(sum(within) - 2 * kernel(x, y).mean())
