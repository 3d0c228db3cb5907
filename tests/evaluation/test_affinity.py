"""Affinity of tasks: known by its invariances, unbiased on few rows."""

import numpy as np
import pytest

from mtlops.evaluation.affinity import cka


def _vectors(seed: int, rows: int = 60, width: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def test_rotation_scale_and_shift_change_nothing() -> None:
    x = _vectors(0)
    turn, _ = np.linalg.qr(np.random.default_rng(1).normal(size=(12, 12)))
    assert cka(x, (7.0 * x @ turn + 3.0).astype(np.float32)) == pytest.approx(1.0, abs=1e-5)


def test_symmetric() -> None:
    x, y = _vectors(0), _vectors(1, width=5)
    assert cka(x, y) == pytest.approx(cka(y, x), abs=1e-12)


def test_unrelated_vectors_are_not_alike_even_in_more_dimensions_than_rows() -> None:
    found = [cka(_vectors(seed, 40, 384), _vectors(1000 + seed, 40, 384)) for seed in range(50)]
    assert abs(np.mean(found)) < 0.01


def test_a_shared_part_lies_between() -> None:
    common, own, other = _vectors(0, 400, 8), _vectors(1, 400, 8), _vectors(2, 400, 8)
    half = cka(np.hstack([common, own]), np.hstack([common, other]))
    assert 0.4 < half < 0.6


def test_vectors_that_are_all_the_same_are_like_nothing() -> None:
    assert cka(np.ones((10, 3), np.float32), _vectors(0, rows=10)) == 0.0
