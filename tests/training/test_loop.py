"""Training learns, touches only its own task, and survives being stopped at any step."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mtlops import catalog
from mtlops.errors import UsageError
from mtlops.model.predictor import Backbone
from mtlops.params import Model, Train
from mtlops.tasks import Task
from mtlops.training import loop
from mtlops.training.checkpoint import Checkpoint
from mtlops.training.fusion import prepare_second_stage, prune
from mtlops.training.learner import Learner, Rows
from tests.tiny_encoder import WORDS, write_prepared_encoder

TASKS = {
    "tone": Task("tone", "binary", ("bad", "good")),
    "length": Task("length", "regression"),
    "rank": Task("rank", "ordinal", ("short", "middle", "long")),
    "words": Task("words", "multilabel", ("film", "phone")),
}
TRAIN = Train(epochs=3, batch_size=8, learning_rate=0.02, checkpoint_seconds=1e-9, threads=1)


class _Killed(BaseException):
    """Stands for the process being killed."""


def _texts() -> list[str]:
    random = np.random.default_rng(0)
    return [" ".join(random.choice(WORDS, size=random.integers(2, 14))) for _ in range(64)]


def _labels(text: str) -> dict[str, object]:
    words = text.split()
    return {
        "tone": "good" if words[0] < "i" else "bad",
        "length": float(len(words)),
        "rank": ["short", "middle", "long"][min(2, len(words) // 5)],
        "words": [w for w in ("film", "phone") if w in words],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("b")
    write_prepared_encoder(folder / "encoder", hidden=32)
    return folder


def _backbone(folder: Path, model: Model) -> Backbone:
    made = Backbone(folder / "encoder", cache=folder / "cache", model=model, max_tokens=16)
    made.cache.fill([f"r{i}" for i in range(64)], _texts())
    return made


@pytest.fixture(scope="module")
def backbone(folder: Path) -> Backbone:
    return _backbone(folder, Model(adapter_drop=1, bottleneck=8))


def _learners(backbone: Backbone, names: tuple[str, ...] = tuple(TASKS), train: Train = TRAIN) -> dict[str, Learner]:
    texts = _texts()
    learners = {}
    for name in names:
        labels = TASKS[name].encode([_labels(text)[name] for text in texts])
        rows = [Rows([f"r{i}" for i in part], labels[part.start : part.stop]) for part in (range(48), range(48, 64))]
        tensors = backbone.pairs.init(TASKS[name], torch.Generator().manual_seed(0))
        learners[name] = Learner(
            TASKS[name],
            tensors,
            train=rows[0],
            valid=rows[1],
            params=train,
            learning_rate=train.learning_rate or 0.02,
            device=torch.device("cpu"),
        )
    return learners


def _fit(backbone: Backbone, folder: Path, learners: dict[str, Learner], train: Train = TRAIN) -> dict[str, Learner]:
    loop.fit(learners, backbone, train=train, checkpoint=Checkpoint(folder, run="r"))
    return learners


def test_every_kind_learns(backbone: Backbone, tmp_path: Path) -> None:
    for learner in _fit(backbone, tmp_path, _learners(backbone)).values():
        losses = [epoch["train_loss"] for epoch in learner.progress.epochs]
        assert losses[-1] < losses[0], learner.task.name


@pytest.mark.slow
@pytest.mark.parametrize("adapter", sorted(set(catalog.ADAPTERS) - {"fusion"}))
def test_every_adapter_learns_and_each_task_as_if_alone(folder: Path, tmp_path: Path, adapter: str) -> None:
    backbone = _backbone(folder, Model(adapter=adapter, adapter_drop=1, bottleneck=8))
    together = _fit(backbone, tmp_path / "a", _learners(backbone, ("words", "length")))
    for learner in together.values():
        losses = [epoch["train_loss"] for epoch in learner.progress.epochs]
        assert losses[-1] < losses[0], learner.task.name
        assert learner.progress.best_epoch > 0
    alone = _fit(backbone, tmp_path / "b", _learners(backbone, ("words",)))["words"]
    for name, tensor in together["words"].tensors.items():
        assert torch.allclose(alone.tensors[name], tensor, atol=1e-4), name


def test_fusion_trains_only_its_own_tensors_and_reports_what_it_listens_to(folder: Path, tmp_path: Path) -> None:
    first = _backbone(folder, Model(adapter_drop=1, bottleneck=8))
    sources = _fit(first, tmp_path / "a", _learners(first, ("tone", "length", "words")))
    backbone = _backbone(folder, Model(adapter="fusion", adapter_drop=1, fusion_keep=2))
    prepare_second_stage(backbone, sources)
    learner = _fit(backbone, tmp_path / "b", _learners(backbone, ("words",)))["words"]
    assert not any("up" in name or "down" in name for name in learner.tensors)
    served = backbone.pairs.adapter.bank(learner.in_label_units(learner.best), training=False)
    for position, source in enumerate(sources.values()):
        assert torch.equal(served["layers.2.up"][position], source.best["layers.2.up"])
    fused = prune(learner, backbone, served)
    shares, kept = (fused.report["layers"]["1"][key] for key in ("shares", "kept"))
    assert sum(shares.values()) == pytest.approx(1, abs=1e-5)
    [left_out] = shares.keys() - set(kept)
    assert shares[left_out] <= min(shares[name] for name in kept)
    assert fused.tensors["layers.1.up"].shape[0] == 2
    answers = backbone.logits(learner.valid.row_ids, fused.tensors)
    assert fused.report["value_with_kept"] == learner.primary_value(answers)


@pytest.mark.slow
@pytest.mark.parametrize("drop", ["robust", "stochastic"])
def test_drawn_drops_leave_layers_out_and_each_task_as_if_alone(folder: Path, tmp_path: Path, drop: str) -> None:
    train = TRAIN.model_copy(update={"adapter_drop": drop, "adapter_drop_rate": 0.5})
    backbone = _backbone(folder, Model(adapter_drop=0, bottleneck=8))
    together = _fit(backbone, tmp_path / "a", _learners(backbone, train=train), train)["tone"]
    alone = _fit(backbone, tmp_path / "b", _learners(backbone, ("tone",), train), train)["tone"]
    fixed = _fit(backbone, tmp_path / "c", _learners(backbone, ("tone",)))["tone"]
    for name, tensor in together.tensors.items():
        assert torch.allclose(alone.tensors[name], tensor, atol=1e-4), name
    assert not torch.allclose(fixed.tensors["layers.0.up"], together.tensors["layers.0.up"], atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "drop", "kill_at"),
    [("pfeiffer", "fixed", kill_at) for kill_at in (1, 5, 7, 13)]
    + [("masked", "robust", 9), ("prefix", "stochastic", 5)],
)
def test_killed_and_resumed_ends_with_the_same_bits(
    folder: Path, tmp_path: Path, adapter: str, drop: str, kill_at: int
) -> None:
    backbone = _backbone(folder, Model(adapter=adapter, adapter_drop=1))
    train = TRAIN.model_copy(update={"adapter_drop": drop, "adapter_drop_rate": 0.5})
    whole = _fit(backbone, tmp_path / "whole", _learners(backbone, train=train), train)

    class KilledAt(Checkpoint):
        saves = 0

        def save(self, *arguments: object) -> None:
            super().save(*arguments)
            KilledAt.saves += 1
            if KilledAt.saves == kill_at:
                raise _Killed

    with pytest.raises(_Killed):
        loop.fit(
            _learners(backbone, train=train), backbone, train=train, checkpoint=KilledAt(tmp_path / "cut", run="r")
        )
    resumed = _fit(backbone, tmp_path / "cut", _learners(backbone, train=train), train)
    for name in TASKS:
        assert resumed[name].progress == whole[name].progress
        for key, tensor in whole[name].best.items():
            assert torch.equal(resumed[name].best[key], tensor), (name, key)


def test_a_task_trained_alone_takes_the_same_path(backbone: Backbone, tmp_path: Path) -> None:
    together = _fit(backbone, tmp_path / "a", _learners(backbone))["tone"]
    alone = _fit(backbone, tmp_path / "b", _learners(backbone, ("tone",)))["tone"]
    for name, tensor in together.tensors.items():
        assert torch.allclose(alone.tensors[name], tensor, atol=1e-4), name


def test_best_epoch_is_kept_and_patience_stops(backbone: Backbone, tmp_path: Path) -> None:
    train = TRAIN.model_copy(update={"epochs": 30, "patience": 2})
    learner = _fit(backbone, tmp_path, _learners(backbone, ("tone",), train), train)["tone"]
    values = [epoch[learner.primary] for epoch in learner.progress.epochs]
    best = learner.progress.best_epoch
    assert learner.progress.stopped and len(values) == best + train.patience
    assert values[best - 1] == max(values) == learner.progress.best_value


@pytest.mark.parametrize("blend", [1.0, 0.3])
def test_an_epoch_is_judged_by_what_is_kept(backbone: Backbone, tmp_path: Path, blend: float) -> None:
    names = ("tone", "length")
    before = {
        name: backbone.pairs.adapter.bank(of.in_label_units(of.best), training=False)
        for name, of in _fit(backbone, tmp_path / "a", _learners(backbone, names)).items()
    }
    learners = _learners(backbone, names)
    for name, learner in learners.items():
        learner.start_from(before[name], blend=blend)
    for name, learner in _fit(backbone, tmp_path / "b", learners).items():
        best = backbone.pairs.adapter.bank(learner.in_label_units(learner.best), training=False)
        kept = learner.blended(best)
        assert all(torch.allclose(kept[n], torch.lerp(before[name][n], best[n], blend)) for n in best)
        logits = backbone.logits(learner.valid.row_ids, kept)
        assert learner.best_logits is not None and np.array_equal(learner.best_logits, logits)
        assert learner.primary_value(logits) == learner.progress.best_value


def test_regression_is_answered_in_label_units(backbone: Backbone, tmp_path: Path) -> None:
    train = TRAIN.model_copy(update={"epochs": 12, "patience": 12})
    learner = _fit(backbone, tmp_path, _learners(backbone, ("length",), train), train)["length"]
    answers = backbone.logits(learner.valid.row_ids, learner.in_label_units(learner.best))[:, 0]
    assert abs(answers.mean() - learner.valid.labels.mean()) < 1.5


def test_infinite_loss_names_task_and_row(backbone: Backbone, tmp_path: Path) -> None:
    train = TRAIN.model_copy(update={"learning_rate": 1e30})
    with pytest.raises(UsageError, match=r"task tone: the loss is not finite at its step \d .first row r"):
        _fit(backbone, tmp_path, _learners(backbone, ("tone",), train), train)


def test_damaged_checkpoint_starts_anew(backbone: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "checkpoint-r.safetensors").write_bytes(b"half a file")
    assert _fit(backbone, tmp_path, _learners(backbone, ("tone",)))["tone"].progress.epochs
    assert "damaged checkpoint" in caplog.text
