"""What is measured of a task: intervals around values, margins resampled together, each class."""

import numpy as np
import pytest

from mtlops.decoding import Outputs, decode
from mtlops.evaluation.scores import Scores, score
from mtlops.params import Gates
from mtlops.tasks import Task

GATES = Gates(resamples=300, floor={"tone": 0.5})
ROWS = {"train": 10, "valid": 5, "test": 200}
TONE = Task("tone", "multiclass", ("bad", "mixed", "good"))


def _answers(labels: np.ndarray, *, right: float, seed: int) -> Outputs:
    """Answers that are right on this share of the rows, with matching confidence."""
    random = np.random.default_rng(seed)
    answers = np.where(random.random(len(labels)) < right, labels, random.integers(0, 3, size=len(labels)))
    return decode(TONE, np.log(0.15 + 0.55 * np.eye(3, dtype=np.float32)[answers]).astype(np.float32))


@pytest.fixture(scope="module")
def scores() -> Scores:
    labels = np.random.default_rng(0).integers(0, 3, size=200)
    model, simpler = _answers(labels, right=0.8, seed=1), _answers(labels, right=0.3, seed=2)
    return score(
        TONE, labels, groups=[f"g{i // 2}" for i in range(200)], model=model,
        baselines={"majority": simpler, "same": model}, rows=ROWS, gates=GATES,
    )  # fmt: skip


def test_every_interval_holds_its_value(scores: Scores) -> None:
    for intervals in (scores.metrics, *scores.baselines.values(), scores.margins):
        for name, found in intervals.items():
            assert found.low <= found.value <= found.high, name


def test_facts_of_the_task_are_recorded(scores: Scores) -> None:
    assert (scores.kind, scores.primary, scores.floor, scores.groups) == ("multiclass", "macro_f1", 0.5, 100)
    assert scores.rows == ROWS
    assert list(scores.baselines) == ["majority", "same"]


def test_the_margin_of_a_model_over_itself_is_exactly_0(scores: Scores) -> None:
    margin = scores.margins["same"]
    assert (margin.value, margin.low, margin.high) == (0, 0, 0)
    assert scores.margins["majority"].low > 0


def test_each_class_has_precision_recall_and_f1(scores: Scores) -> None:
    assert scores.confusion is not None
    bad = scores.classes["bad"]
    assert bad.rows == scores.confusion[0].sum()
    assert bad.recall == pytest.approx(scores.confusion[0, 0] / scores.confusion[0].sum())
    assert bad.precision == pytest.approx(scores.confusion[0, 0] / scores.confusion[:, 0].sum())
    assert np.mean([c.f1 for c in scores.classes.values()]) == pytest.approx(scores.metrics["macro_f1"].value)


def test_the_same_rows_and_seed_give_the_same_scores() -> None:
    labels = np.random.default_rng(0).integers(0, 3, size=40)
    answers = _answers(labels, right=0.7, seed=1)
    arguments = {"groups": [str(i) for i in range(40)], "model": answers, "baselines": {}, "rows": ROWS}
    first, second = (score(TONE, labels, **arguments, gates=GATES) for _ in range(2))
    other = score(TONE, labels, **arguments, gates=GATES.model_copy(update={"seed": 1}))
    assert first.metrics == second.metrics != other.metrics


def test_a_regression_has_no_classes_and_a_multilabel_task_has_2_by_2_counts() -> None:
    labels = np.random.default_rng(0).normal(size=30).astype(np.float32)
    arguments = {"groups": [str(i) for i in range(30)], "baselines": {}, "rows": ROWS, "gates": GATES}
    value = Task("value", "regression")
    found = score(value, labels, model=decode(value, labels[:, None]), **arguments)
    assert (found.confusion, dict(found.classes), found.floor) == (None, {}, None)
    several = Task("several", "multilabel", ("x", "y"))
    truth = np.stack([labels > 0, labels > 1], axis=1).astype(np.float32)
    found = score(several, truth, model=decode(several, truth * 4 - 2), **arguments)
    assert found.confusion is not None
    assert found.confusion.shape == (2, 2, 2)
    assert [c.f1 for c in found.classes.values()] == [1.0, 1.0]
