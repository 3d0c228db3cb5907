"""The craft inside real training: who learns how fast, what is frozen, copies and a teacher, and being killed."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mtlops.errors import UsageError
from mtlops.model.predictor import Backbone
from mtlops.params import Augmentation, Model, Train
from mtlops.tasks import Task
from mtlops.training import craft, loop
from mtlops.training.augmentation import augment
from mtlops.training.checkpoint import Checkpoint
from mtlops.training.learner import Learner, Rows
from tests.tiny_encoder import WORDS, write_prepared_encoder

TASKS = {
    "tone": Task("tone", "binary", ("bad", "good")),
    "length": Task("length", "regression"),
    "rank": Task("rank", "ordinal", ("short", "middle", "long")),
    "words": Task("words", "multilabel", ("film", "phone")),
}
EVERYTHING = Train(
    epochs=3, batch_size=8, learning_rate=0.02, checkpoint_seconds=1e-9, threads=1, schedule="cosine", layer_decay=0.7,
    unfreeze="gradual", label_smoothing=0.1, class_weights="balanced", teacher="a bundle", distil_temperature=3.0,
    augmentation=Augmentation(copies=1, word_dropout=0.2, word_swap=1),
)  # fmt: skip


class _Killed(BaseException):
    """Stands for the process being killed."""


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("b")
    write_prepared_encoder(folder / "encoder", hidden=32)
    return Backbone(
        folder / "encoder", cache=folder / "cache", model=Model(adapter_drop=0, bottleneck=8), max_tokens=16
    )


def _texts() -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, size=random.integers(2, 14))) for _ in range(64)]


def _labels(task: Task) -> np.ndarray:
    words = [text.split() for text in _texts()]
    return task.encode(
        {
            "tone": ["good" if w[0] < "i" else "bad" for w in words],
            "length": [float(len(w)) for w in words],
            "rank": [["short", "middle", "long"][min(2, len(w) // 5)] for w in words],
            "words": [[name for name in ("film", "phone") if name in w] for w in words],
        }[task.name]
    )


def _teacher(task: Task, row_ids: list[str]) -> np.ndarray:
    seeds = [sum(map(ord, row_id)) for row_id in row_ids]
    return np.stack([np.random.default_rng(s).normal(size=task.num_outputs) for s in seeds]).astype(np.float32)


def _learners(backbone: Backbone, train: Train, names: tuple[str, ...] = tuple(TASKS)) -> dict[str, Learner]:
    row_ids, texts, learners = [f"r{i}" for i in range(64)], _texts(), {}
    backbone.cache.fill(row_ids, texts)
    for name in names:
        task, labels = TASKS[name], _labels(TASKS[name])
        copies = augment(row_ids[:48], texts[:48], labels[:48], settings=train.augmentation, seed=train.seed)
        backbone.cache.fill(copies.row_ids, copies.texts)
        rows = Rows(copies.row_ids, copies.labels), Rows(row_ids[48:], labels[48:])
        if train.teacher:
            for part in rows:
                part.teacher = _teacher(task, part.row_ids)
        tensors = backbone.pairs.init(task, torch.Generator().manual_seed(0))
        learners[name] = Learner(
            task, tensors, train=rows[0], valid=rows[1], params=train, learning_rate=0.02, device=torch.device("cpu")
        )
    return learners


def _fit(backbone: Backbone, folder: Path, learners: dict[str, Learner], train: Train) -> dict[str, Learner]:
    loop.fit(learners, backbone, train=train, checkpoint=Checkpoint(folder, run="r"))
    return learners


def _changed(learner: Learner, before: dict[str, torch.Tensor]) -> set[str]:
    return {name.split(".")[1] for name, t in learner.tensors.items() if not torch.equal(t, before[name])}


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_frozen_layers_keep_every_bit_until_their_epoch(backbone: Backbone, tmp_path: Path, epochs: int) -> None:
    train = Train(epochs=3, patience=9, batch_size=8, unfreeze="gradual", weight_decay=0.5)
    learners = _learners(backbone, train, ("tone",))
    before = {name: t.detach().clone() for name, t in learners["tone"].tensors.items()}
    # The schedule still spans three epochs, so that each run is the start of the longest.
    _fit(backbone, tmp_path, learners, train.model_copy(update={"epochs": epochs}))
    assert _changed(learners["tone"], before) == {"weight", "bias", *map(str, range(3 - epochs, 3))}


def test_a_thawed_layer_starts_with_fresh_moments(backbone: Backbone, tmp_path: Path) -> None:
    train = Train(epochs=2, batch_size=8, unfreeze="gradual")
    learner = _fit(backbone, tmp_path, _learners(backbone, train, ("tone",)), train)["tone"]
    moments = learner.state()[0]
    assert moments["step/layers.2.up"] == 2 * moments["step/layers.1.up"] == learner.progress.steps
    assert "step/layers.0.up" not in moments


def test_first_steps_are_as_long_as_the_layer_s_rate_says(backbone: Backbone) -> None:
    """Adam's first step has the length of the rate, whatever the gradient."""
    train = Train(epochs=1, batch_size=8, layer_decay=0.5, weight_decay=0.0, schedule="constant", warmup_share=0.0)
    learner = _learners(backbone, train, ("tone",))["tone"]
    before = {name: t.detach().clone() for name, t in learner.tensors.items()}
    for tensor in learner.tensors.values():
        tensor.grad = torch.ones_like(tensor)
    learner.step()
    steps = {name: (t - before[name]).abs().mean().item() for name, t in learner.tensors.items()}
    expected = {"layers.2.up": 0.02, "layers.1.up": 0.01, "layers.0.up": 0.005, "head.weight": 0.02}
    for name, step in expected.items():
        assert steps[name] == pytest.approx(step, rel=1e-3)


def test_tensors_of_all_layers_cannot_thaw_one_by_one(backbone: Backbone) -> None:
    rows = Rows(["r0"], np.array([0]))
    tensors = {"prefix.inner": torch.zeros(2, 2), "head.weight": torch.zeros(2, 2), "head.bias": torch.zeros(2)}
    for train in (Train(unfreeze="gradual"), Train(layer_decay=0.9)):
        with pytest.raises(UsageError, match="prefix.inner belong to all layers at once"):
            Learner(
                TASKS["tone"], dict(tensors), train=rows, valid=rows, params=train, learning_rate=0.1,
                device=torch.device("cpu"),
            )  # fmt: skip


def test_only_the_teacher_s_answers_are_learned_at_full_weight(backbone: Backbone, tmp_path: Path) -> None:
    train = Train(epochs=30, patience=30, batch_size=16, teacher="a bundle", distil_weight=1.0, distil_temperature=1.0)
    learner = _learners(backbone, train, ("tone",))["tone"]
    wrong = 1 - learner.train.labels
    learner.train.teacher = np.stack([4.0 - 8.0 * wrong, 8.0 * wrong - 4.0], axis=1).astype(np.float32)
    _fit(backbone, tmp_path, {"tone": learner}, train)
    answers = backbone.logits(learner.train.row_ids, learner.in_label_units(learner.tensors)).argmax(1)
    assert (answers == wrong).mean() > 0.9


def test_a_regression_listens_in_label_units(backbone: Backbone, tmp_path: Path) -> None:
    train = Train(epochs=20, patience=20, batch_size=8, teacher="a bundle", distil_weight=1.0)
    learner = _learners(backbone, train, ("length",))["length"]
    learner.train.teacher = learner.train.labels[:, None] + 100.0
    _fit(backbone, tmp_path, {"length": learner}, train)
    answers = backbone.logits(learner.train.row_ids, learner.in_label_units(learner.tensors))[:, 0]
    assert answers.mean() == pytest.approx(learner.train.labels.mean() + 100.0, abs=3.0)


@pytest.fixture(scope="module")
def whole(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Learner]:
    return _fit(backbone, tmp_path_factory.mktemp("whole"), _learners(backbone, EVERYTHING), EVERYTHING)


@pytest.mark.slow
@pytest.mark.parametrize("kill_at", [2, 15, 30])
def test_killed_with_everything_on_it_ends_with_the_same_bits(
    backbone: Backbone, whole: dict[str, Learner], tmp_path: Path, kill_at: int
) -> None:
    class KilledAt(Checkpoint):
        saves = 0

        def save(self, *arguments: object) -> None:
            super().save(*arguments)
            KilledAt.saves += 1
            if KilledAt.saves == kill_at:
                raise _Killed

    killed = KilledAt(tmp_path / "cut", run="r")
    with pytest.raises(_Killed):
        loop.fit(_learners(backbone, EVERYTHING), backbone, train=EVERYTHING, checkpoint=killed)
    resumed = _fit(backbone, tmp_path / "cut", _learners(backbone, EVERYTHING), EVERYTHING)
    for name in TASKS:
        assert resumed[name].progress == whole[name].progress
        for key, tensor in whole[name].tensors.items():
            assert torch.equal(resumed[name].tensors[key], tensor), (name, key)
            assert torch.equal(resumed[name].best[key], whole[name].best[key]), (name, key)


def test_each_task_as_if_alone_with_everything_on(
    backbone: Backbone, whole: dict[str, Learner], tmp_path: Path
) -> None:
    together = whole["rank"]
    alone = _fit(backbone, tmp_path / "b", _learners(backbone, EVERYTHING, ("rank",)), EVERYTHING)["rank"]
    for name, tensor in together.tensors.items():
        assert torch.allclose(alone.tensors[name], tensor, atol=1e-4), name


def test_the_report_says_what_was_used(backbone: Backbone) -> None:
    assert craft.used(Train()) == craft.used(Train(epochs=9, label_smoothing=0.0)) == {}
    found = craft.used(EVERYTHING)
    assert set(found) == {
        "schedule", "layer_decay", "unfreeze", "label_smoothing", "class_weights", "augmentation", "teacher",
        "distil_weight", "distil_temperature", "distil_tasks",
    }  # fmt: skip
    assert found["augmentation"] == {"copies": 1, "word_dropout": 0.2, "word_swap": 1}
    learners = _learners(backbone, EVERYTHING)
    of_task = {
        name: craft.used_by(learner, lambda row_ids, learner=learner: _teacher(learner.task, row_ids))
        for name, learner in learners.items()
    }
    assert set(of_task["length"]["ignored"]) == {"train.label_smoothing", "train.class_weights"}
    assert set(of_task["rank"]["ignored"]) == {"train.label_smoothing"} and "ignored" not in of_task["tone"]
    assert set(of_task["words"]["class_weights"]) == {"film", "phone"} and "class_weights" not in of_task["length"]
    for name, found in of_task.items():
        apart = found["distillation"]
        assert apart["change"] == apart["divergence"] == 0.0 and apart["rows"] == 16
        assert apart.get("agreement", 1.0) == 1.0 and ("agreement" in apart) == (name != "length")
