"""Training together: it learns, keeps one best epoch for all, and survives being stopped at any round."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mtlops import catalog
from mtlops.model.predictor import Backbone
from mtlops.params import Model, Train
from mtlops.tasks import Task
from mtlops.training.batches import batches_per_task
from mtlops.training.checkpoint import Checkpoint
from mtlops.training.joint import Joint, fit_together
from mtlops.training.learner import Learner, Rows
from tests.tiny_encoder import WORDS, write_prepared_encoder

TASKS = {
    "tone": Task("tone", "binary", ("bad", "good")),
    "length": Task("length", "regression"),
    "words": Task("words", "multilabel", ("film", "phone")),
}
SCHEMES = {
    "hard": Model(sharing="hard"),
    "heads": Model(sharing="hard", tuned_layers=0),
    "embeddings": Model(sharing="hard", tuned_layers="all", tune_embeddings=True),
    "hierarchical": Model(
        sharing="hierarchical", tuned_layers="all", depths={"tone": 1, "words": 2}, successive_weight=0.01
    ),
    "l2": Model(sharing="soft", soft="l2"),
    "cross-stitch": Model(sharing="soft", soft="cross-stitch"),
}
TRAIN = Train(epochs=2, batch_size=8, learning_rate=0.01, trunk_learning_rate=1e-3, checkpoint_seconds=1e-9, threads=1)
ROWS = {"tone": 48, "length": 48, "words": 20}
"""One task has fewer rows: it is absent from some rounds."""


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
        "words": [w for w in ("film", "phone") if w in words],
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("b")
    write_prepared_encoder(folder / "encoder", hidden=32)
    return folder


class Run:
    """Learners of some tasks and what they share, ready to train."""

    def __init__(self, folder: Path, model: Model, train: Train = TRAIN, names: tuple[str, ...] = tuple(TASKS)) -> None:
        self.train, texts = train, _texts()
        self.backbone = Backbone(folder / "encoder", cache=folder / "cache", model=model, max_tokens=16, tasks=names)
        self.backbone.fill([f"r{i}" for i in range(64)], texts)
        steps = batches_per_task({n: ROWS[n] for n in names}, train.batch_size, train.sampling_temperature)
        self.learners = {}
        for name in names:
            labels = TASKS[name].encode([_labels(text)[name] for text in texts])
            parts = [Rows([f"r{i}" for i in p], labels[p.start : p.stop]) for p in (range(ROWS[name]), range(48, 64))]
            self.learners[name] = Learner(
                TASKS[name],
                self.backbone.above.init(TASKS[name], torch.Generator().manual_seed(0)),
                train=parts[0],
                valid=parts[1],
                params=train,
                learning_rate=train.learning_rate or 0.01,
                steps_per_epoch=steps[name],
                device=torch.device("cpu"),
            )
        self.joint = Joint(
            self.backbone, self.learners, train=train, weights={"tone": 2.0, "length": 1.0, "words": 1.0}
        )

    def fit(self, checkpoint: Checkpoint) -> "Run":
        fit_together(self.learners, self.joint, self.backbone, train=self.train, checkpoint=checkpoint)
        return self

    def tensors(self) -> dict[str, torch.Tensor]:
        own = {f"{t}/{n}": tensor for t, learner in self.learners.items() for n, tensor in learner.best.items()}
        return own | self.joint.best


@pytest.mark.slow
@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_scheme_learns(folder: Path, tmp_path: Path, scheme: str) -> None:
    train = TRAIN.model_copy(update={"epochs": 5, "patience": 5, "learning_rate": 0.03})
    run = Run(folder, SCHEMES[scheme], train).fit(Checkpoint(tmp_path, run="r"))
    for learner in run.learners.values():
        losses = [epoch["train_loss"] for epoch in learner.progress.epochs]
        assert losses[-1] < losses[0], learner.task.name
    start = run.backbone.sharing.start()
    assert all(not torch.equal(run.joint.tensors[name], tensor) for name, tensor in start.items())


def _kill(folder: Path, tmp_path: Path, model: Model, train: Train, kill_at: int) -> tuple[Run, Run]:
    """The same run uninterrupted, and killed at its n-th checkpoint and resumed."""

    class KilledAt(Checkpoint):
        saves = 0

        def save(self, *arguments: object) -> None:
            super().save(*arguments)
            KilledAt.saves += 1
            if KilledAt.saves == kill_at:
                raise _Killed

    whole = Run(folder, model, train).fit(Checkpoint(tmp_path / "whole", run="r"))
    with pytest.raises(_Killed):
        Run(folder, model, train).fit(KilledAt(tmp_path / "cut", run="r"))
    return whole, Run(folder, model, train).fit(Checkpoint(tmp_path / "cut", run="r"))


def _same(a: Run, b: Run) -> None:
    assert a.joint.progress == b.joint.progress
    assert all(a.learners[name].progress == b.learners[name].progress for name in a.learners)
    assert a.tensors().keys() == b.tensors().keys()
    assert [name for name, tensor in a.tensors().items() if not torch.equal(tensor, b.tensors()[name])] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("scheme", "kill_at"),
    [("hard", 1), ("hard", 11), ("hierarchical", 7), *((scheme, 11) for scheme in list(SCHEMES)[1:])],
)
def test_killed_and_resumed_ends_with_the_same_bits(folder: Path, tmp_path: Path, scheme: str, kill_at: int) -> None:
    """In the middle of an epoch, at its end, and in the next one, where successive regularisation has a past."""
    _same(*_kill(folder, tmp_path, SCHEMES[scheme], TRAIN, kill_at))


@pytest.mark.slow
@pytest.mark.parametrize("balancing", catalog.BALANCERS)
def test_every_balancer_resumes_with_the_same_bits(folder: Path, tmp_path: Path, balancing: str) -> None:
    train = TRAIN.model_copy(update={"balancing": balancing, "sampling_temperature": 3.0, "epochs": 3})
    whole, resumed = _kill(folder, tmp_path, SCHEMES["hard"], train, 14)
    _same(whole, resumed)
    weights = [epoch["loss_weights"] for epoch in whole.joint.progress.epochs]
    assert (weights[0] != weights[-1]) == (balancing in ("uncertainty", "dwa", "gradnorm"))


def test_unfreezing_and_layer_rates_hold_for_the_trunk(folder: Path, tmp_path: Path) -> None:
    train = TRAIN.model_copy(update={"unfreeze": "gradual", "epochs": 2, "layer_decay": 0.5})
    whole, resumed = _kill(folder, tmp_path, SCHEMES["embeddings"], train, 9)
    _same(whole, resumed)
    start, now = whole.backbone.sharing.start(), whole.joint.tensors
    moved = {name for name, tensor in start.items() if not torch.equal(tensor, now[name])}
    assert moved == {name for name in start if name.startswith(("layers.2.", "layers.1."))}
    settings = whole.joint.optimizer.settings.values()
    peaks = {round(setting.rate / train.trunk_learning_rate, 6) for setting in settings}
    assert peaks == {1.0, 0.5, 0.25, 0.125}


def test_one_best_epoch_for_all_and_everything_goes_back_to_it(folder: Path, tmp_path: Path) -> None:
    train = TRAIN.model_copy(update={"epochs": 30, "patience": 2, "trunk_learning_rate": 5e-3})
    run = Run(folder, SCHEMES["hard"], train).fit(Checkpoint(tmp_path, run="r"))
    progress = run.joint.progress
    means = [epoch["mean_primary"] for epoch in progress.epochs]
    assert progress.stopped and len(means) == progress.best_epoch + 2 and means[progress.best_epoch - 1] == max(means)
    values = {}
    for name, learner in run.learners.items():
        assert learner.progress.best_epoch == progress.best_epoch
        own = learner.in_label_units(learner.best)
        logits = run.backbone.shared_logits(learner.valid.row_ids, own, shared=run.joint.best, task=name)
        values[name] = learner.primary_value(logits)
        assert values[name] == learner.progress.best_value
    assert (2 * values["tone"] + values["length"] + values["words"]) / 4 == pytest.approx(max(means))


def test_heads_alone_are_each_task_alone(folder: Path, tmp_path: Path) -> None:
    """Where nothing is shared, a task takes the same path with others and without, and stops for itself."""
    together = Run(folder, SCHEMES["heads"]).fit(Checkpoint(tmp_path / "a", run="r")).learners["words"]
    alone = Run(folder, SCHEMES["heads"], names=("words",)).fit(Checkpoint(tmp_path / "b", run="r")).learners["words"]
    assert alone.progress == together.progress
    assert all(torch.equal(alone.best[name], tensor) for name, tensor in together.best.items())


def test_l2_weight_brings_the_columns_together(folder: Path, tmp_path: Path) -> None:
    def distance(weight: float) -> float:
        model = SCHEMES["l2"].model_copy(update={"soft_weight": weight})
        run = Run(folder, model).fit(Checkpoint(tmp_path / str(weight), run="r"))
        tensors = run.joint.tensors
        parts = [n.removeprefix("columns.tone.") for n in tensors if n.startswith("columns.tone.")]
        both = [(tensors[f"columns.tone.{n}"], tensors[f"columns.length.{n}"]) for n in parts]
        return sum(float((a - b).detach().square().sum()) for a, b in both)

    assert distance(0.0) > 2 * distance(1.0) > 0


def test_successive_weight_keeps_the_trunk_near_the_last_epoch(folder: Path, tmp_path: Path) -> None:
    def change(weight: float) -> float:
        model = SCHEMES["hierarchical"].model_copy(update={"successive_weight": weight})
        run = Run(folder, model).fit(Checkpoint(tmp_path / str(weight), run="r"))
        start = run.backbone.sharing.start()
        return sum(float((run.joint.tensors[n] - t).detach().square().sum()) for n, t in start.items())

    assert change(0.0) > 1.5 * change(10.0)


def test_weight_decay_leaves_vectors_and_stitches_alone(folder: Path) -> None:
    run = Run(folder, SCHEMES["cross-stitch"])
    settings = run.joint.optimizer.settings
    for name, tensor in run.joint.tensors.items():
        assert bool(settings[name].weight_decay) == (
            name.startswith("columns.") and name.endswith(".weight") and tensor.ndim == 2
        )
    stitches = {settings[name].rate for name in settings if name.startswith("stitch.")}
    assert stitches == {TRAIN.stitch_learning_rate}
