"""What a task minimises: torch's own losses as oracles, closed forms, and reasons where a key does not fit."""

import math

import numpy as np
import pytest
import torch
from torch.nn import functional

from mtlops import catalog
from mtlops.params import Train
from mtlops.tasks import Task
from mtlops.training.objective import Objective, balanced_weights

TASKS = {
    "binary": Task("t", "binary", ("n", "p")),
    "multiclass": Task("t", "multiclass", ("a", "b", "c")),
    "multilabel": Task("t", "multilabel", ("a", "b", "c")),
    "ordinal": Task("t", "ordinal", ("l", "m", "h")),
    "regression": Task("t", "regression"),
    "tagging": Task("t", "tagging", ("O", "B-x", "I-x")),
}
ROWS, WORDS = 12, 5


def _labels(kind: str) -> np.ndarray:
    random = np.random.default_rng(1)
    if kind == "regression":
        return random.normal(size=ROWS).astype(np.float32)
    if kind == "multilabel":
        return (random.random((ROWS, 3)) < 0.3).astype(np.float32)
    if kind == "tagging":
        return np.where(np.arange(WORDS) < random.integers(1, WORDS + 1, (ROWS, 1)), random.integers(0, 3, WORDS), -1)
    return random.integers(0, TASKS[kind].num_outputs, ROWS)


def _logits(kind: str, seed: int = 0) -> torch.Tensor:
    words = (WORDS,) if kind == "tagging" else ()
    return torch.randn(ROWS, *words, TASKS[kind].num_outputs, generator=torch.Generator().manual_seed(seed))


def _objective(kind: str, **train: object) -> Objective:
    return Objective(TASKS[kind], _labels(kind), Train(**train))


def test_every_kind_is_covered() -> None:
    assert set(TASKS) == set(catalog.KINDS)


@pytest.mark.parametrize("kind", TASKS)
def test_by_default_it_is_the_loss_of_the_kind(kind: str) -> None:
    labels, logits = torch.from_numpy(_labels(kind)), _logits(kind)
    objective = _objective(kind)
    assert torch.equal(objective(logits, labels), catalog.load(catalog.KINDS[kind].loss)(logits, labels))
    assert not objective.ignored and objective.class_weight is None


@pytest.mark.parametrize("kind", ["binary", "multiclass"])
def test_smoothing_and_weights_of_classes_are_those_of_torch(kind: str) -> None:
    labels, logits = torch.from_numpy(_labels(kind)), _logits(kind)
    smooth = _objective(kind, label_smoothing=0.1)(logits, labels)
    assert torch.equal(smooth, functional.cross_entropy(logits, labels, reduction="none", label_smoothing=0.1))
    weighed = _objective(kind, class_weights="balanced")
    assert weighed.class_weight is not None
    expected = functional.cross_entropy(logits, labels, reduction="none", weight=weighed.class_weight)
    assert torch.allclose(weighed(logits, labels), expected)


def test_smoothing_and_weights_of_a_multilabel_task_are_those_of_torch() -> None:
    labels, logits = torch.from_numpy(_labels("multilabel")), _logits("multilabel")
    objective = _objective("multilabel", label_smoothing=0.2, class_weights="balanced")
    expected = functional.binary_cross_entropy_with_logits(
        logits, labels * 0.8 + 0.1, reduction="none", pos_weight=objective.class_weight
    ).mean(1)
    assert torch.allclose(objective(logits, labels), expected)
    assert torch.allclose(objective.class_weight, (ROWS - labels.sum(0)) / labels.sum(0))


def test_weights_of_an_ordinal_task_multiply_its_rows() -> None:
    labels, logits = torch.from_numpy(_labels("ordinal")), _logits("ordinal")
    weighed, plain = _objective("ordinal", class_weights="balanced"), _objective("ordinal")
    assert torch.allclose(weighed(logits, labels), plain(logits, labels) * weighed.class_weight[labels])


def test_keys_that_do_not_fit_are_left_out_with_a_reason() -> None:
    for kind, ignored in (("ordinal", {"label_smoothing"}), ("regression", {"label_smoothing", "class_weights"})):
        objective = _objective(kind, label_smoothing=0.3, class_weights="balanced")
        assert set(objective.ignored) == ignored and all(objective.ignored.values())
    labels, logits = torch.from_numpy(_labels("regression")), _logits("regression")
    assert torch.equal(objective(logits, labels), _objective("regression")(logits, labels))


def test_balanced_weights_in_a_closed_form() -> None:
    weights = balanced_weights(np.array([0, 0, 0, 1]), num_classes=3)
    assert weights.tolist() == pytest.approx([4 / (2 * 3), 4 / 2, 1.0])
    assert weights[[0, 0, 0, 1]].mean() == pytest.approx(1.0)
    labels = np.array([[1, 0, 1], [0, 0, 1], [0, 0, 1], [0, 0, 1]], dtype=np.float32)
    assert balanced_weights(labels, num_classes=3).tolist() == [3.0, 1.0, 1.0]


def test_classes_of_words_are_weighed_over_words() -> None:
    labels = np.array([[0, 0, 0], [1, -1, -1]])
    assert balanced_weights(labels, num_classes=3, is_per_word=True).tolist() == pytest.approx([4 / 6, 4 / 2, 1.0])
    weighed = _objective("tagging", class_weights="balanced", label_smoothing=0.1)
    words, logits = torch.from_numpy(_labels("tagging")), _logits("tagging")
    expected = [
        functional.cross_entropy(
            of_row[tags >= 0], tags[tags >= 0], reduction="none", weight=weighed.class_weight, label_smoothing=0.0
        ).mean()
        for of_row, tags in zip(logits, words, strict=True)
    ]
    plain = _objective("tagging", class_weights="balanced")
    assert torch.allclose(plain(logits, words), torch.stack(expected))
    assert not torch.allclose(weighed(logits, words), plain(logits, words))


def test_a_teacher_without_a_word_says_nothing_about_it() -> None:
    logits, teacher, labels = _logits("tagging"), _logits("tagging", 5), torch.from_numpy(_labels("tagging"))
    teacher[:, 2:] = float("nan")
    found = _objective("tagging", distil_weight=1.0)(logits, labels, teacher)
    expected = _objective("tagging", distil_weight=1.0)(logits[:, :2], labels[:, :2], teacher[:, :2])
    assert torch.allclose(found, expected)


def test_distillation_in_a_closed_form() -> None:
    logits, teacher = torch.tensor([[0.0, 0.0]]), torch.tensor([[2.0 * math.log(3.0), 0.0]])
    found = _objective("binary", distil_weight=0.25, distil_temperature=2.0)(logits, torch.tensor([0]), teacher)
    divergence = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    assert found.item() == pytest.approx(0.75 * math.log(2.0) + 0.25 * 4.0 * divergence, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("kind", ["binary", "multiclass", "ordinal"])
def test_distillation_of_classes_is_torch_s_divergence(kind: str, temperature: float) -> None:
    logits, teacher, labels = _logits(kind), _logits(kind, 5), torch.from_numpy(_labels(kind))
    found = _objective(kind, distil_weight=1.0, distil_temperature=temperature)(logits, labels, teacher)
    ours, theirs = (functional.log_softmax(x / temperature, dim=1) for x in (logits, teacher))
    expected = temperature**2 * functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(1)
    assert torch.allclose(found, expected, atol=1e-6)


def test_distillation_of_a_multilabel_task_is_one_of_two_classes_each() -> None:
    logits, teacher = _logits("multilabel"), _logits("multilabel", 5)
    labels = torch.from_numpy(_labels("multilabel"))
    found = _objective("multilabel", distil_weight=1.0, distil_temperature=3.0)(logits, labels, teacher)
    pair = catalog.load(catalog.KINDS["binary"].divergence)
    columns = [
        pair(*(torch.stack([x[:, c], torch.zeros(ROWS)], dim=1) for x in (logits, teacher)), 3.0) for c in range(3)
    ]
    assert torch.allclose(found, torch.stack(columns).mean(0), atol=1e-6)


@pytest.mark.parametrize("kind", TASKS)
def test_a_student_that_only_listens_ends_at_its_teacher(kind: str) -> None:
    teacher, labels = _logits(kind, 5), torch.from_numpy(_labels(kind))
    logits = _logits(kind).requires_grad_()
    objective = _objective(kind, distil_weight=1.0)
    optimizer = torch.optim.Adam([logits], lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        objective(logits, labels, teacher).sum().backward()
        optimizer.step()
    assert objective(logits, labels, teacher).abs().max() < 1e-4
    if kind in ("multilabel", "regression"):
        assert torch.allclose(logits, teacher, atol=0.02)
    else:
        assert torch.allclose(logits.softmax(-1), teacher.softmax(-1), atol=0.01)


def test_the_size_of_the_teacher_s_gradient_does_not_depend_on_the_temperature() -> None:
    sizes = []
    for temperature in (20.0, 40.0):
        logits = _logits("multiclass").requires_grad_()
        objective = _objective("multiclass", distil_weight=1.0, distil_temperature=temperature)
        objective(logits, torch.zeros(ROWS, dtype=torch.int64), _logits("multiclass", 5)).sum().backward()
        assert logits.grad is not None
        sizes.append(logits.grad.norm().item())
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)
