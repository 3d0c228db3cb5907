"""Which rows are worth a label, against values worked out by hand and samples with a known shift."""

import numpy as np
import pytest

from mtlops.decoding import Outputs
from mtlops.drift.embeddings import Embeddings
from mtlops.drift.finding import Settings
from mtlops.drift.usefulness import spread, uncertainty, usefulness

SETTINGS = Settings(level=0.05, effect_floor=0.02, embedding_floor=0.002, bins=10, min_rows=50)


def _outputs(*rows: tuple[float, ...]) -> Outputs:
    p = np.asarray(rows, dtype=np.float32)
    return Outputs(probabilities=p, labels=p.argmax(axis=1))


def test_uncertainty_is_the_share_of_the_largest_entropy() -> None:
    found = uncertainty(_outputs((1.0, 0.0), (0.5, 0.5), (0.9, 0.1)))
    assert found == pytest.approx([0.0, 1.0, 0.468996], abs=1e-5)
    several = Outputs(probabilities=np.asarray([[0.5, 1.0]], np.float32), labels=np.asarray([[True, True]]))
    assert uncertainty(several) == pytest.approx([0.5], abs=1e-6)
    assert uncertainty(Outputs(values=np.zeros(2, np.float32))) == pytest.approx([1.0, 1.0])


def test_affinity_is_the_mean_of_the_kernel() -> None:
    random = np.random.default_rng(0)
    vectors, asked = random.normal(size=(400, 8)).astype(np.float32), random.normal(size=(20, 8)).astype(np.float32)
    sketch = Embeddings.fit(vectors, settings=SETTINGS)
    squares = ((asked[:, None] - vectors) ** 2).sum(axis=2)
    exact = np.exp(-squares / (2 * sketch.bandwidth**2)).mean(axis=1)
    np.testing.assert_allclose(sketch.affinity(asked), exact, atol=0.06)


def test_rows_that_are_new_and_many_score_higher() -> None:
    random = np.random.default_rng(1)
    known = random.normal(size=(500, 8)).astype(np.float32)
    crowd = (random.normal(size=(60, 8)) * 0.3 + 4).astype(np.float32)
    asked = np.concatenate([known[:60], crowd])
    outputs = _outputs(*[(0.5, 0.5)] * len(asked))
    found = usefulness(outputs, asked, reference=Embeddings.fit(known, settings=SETTINGS))
    assert found.drift[60:].min() > found.drift[:60].max()
    assert found.score[60:].mean() > 2 * found.score[:60].mean()
    sure = usefulness(_outputs(*[(1.0, 0.0)] * len(asked)), asked, reference=Embeddings.fit(known, settings=SETTINGS))
    assert sure.score.max() < 1e-9


def test_the_queue_asks_no_question_twice() -> None:
    vectors = np.asarray([[1, 0], [1, 0.01], [0, 1], [-1, 0]], dtype=np.float32)
    assert spread(np.asarray([1.0, 0.99, 0.5, 0.1]), vectors, most=3) == [0, 2, 3]
    assert sorted(spread(np.ones(4), vectors, most=9)) == [0, 1, 2, 3]
    assert spread(np.ones(0), vectors[:0], most=2) == []
