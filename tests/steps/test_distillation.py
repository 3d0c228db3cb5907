"""A teacher bundle and a smaller student on the tiny suite, through every step; and teachers that do not fit."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from mtlops.bundle import Bundle
from mtlops.errors import ArtefactError, UsageError
from mtlops.files import read_json, sha256_tree
from mtlops.serving.runtime import Runtime
from mtlops.steps.evaluate import evaluate
from mtlops.steps.export import export
from mtlops.steps.train import train
from tests.tiny_suite import Workspace, run_prepare

pytestmark = pytest.mark.e2e

TASKS = ["mood", "grade", "stars", "about", "topic"]


@pytest.fixture
def work(finished: Workspace, tmp_path: Path) -> Workspace:
    """A project whose first bundle lies in models/teacher."""
    work = Workspace(Path(shutil.copytree(finished.root, tmp_path / "project")))
    shutil.move(work.bundle, work.root / "models/teacher")
    return work


def _train(work: Workspace, *overrides: str) -> dict[str, Any]:
    train(
        work.params("model.adapter_drop=2", f"train.teacher={work.root}/models/teacher", *overrides),
        **work.paths("prepared", "encoder", "cache"), out=work.root / "models/trained",
        report=work.root / "reports/training.json",
    )  # fmt: skip
    report: dict[str, Any] = read_json(work.root / "reports/training.json", made_by="mtlops train")
    return report


def test_a_student_with_fewer_layers_learns_from_a_bundle(work: Workspace) -> None:
    teacher = Bundle.open(work.root / "models/teacher")
    settings = ("train.augmentation={copies: 1, word_dropout: 0.2}", "train.distil_weight=0.7")
    report = _train(work, *settings)
    assert report["craft"] == {
        "augmentation": {"copies": 1, "word_dropout": 0.2, "word_swap": 0}, "teacher": str(teacher.folder),
        "distil_weight": 0.7, "distil_temperature": 2.0, "distil_tasks": None, "teacher_bundle": teacher.id,
    }  # fmt: skip
    for name in TASKS:
        apart = report["tasks"][name]["distillation"]
        assert apart["rows"] > 0 and apart["divergence"] > 0
        assert apart["change"] == pytest.approx(apart["student"] - apart["teacher"], abs=2e-6)
    first, answers = sha256_tree(work.root / "models/trained"), sorted((work.root / "data/cache").glob("teacher-*/*"))
    assert len(answers) == 2 * len(TASKS)
    times = [file.stat().st_mtime_ns for file in answers]
    _train(work, *settings)
    assert sha256_tree(work.root / "models/trained") == first
    assert [file.stat().st_mtime_ns for file in answers] == times
    params, root = work.params(), work.root
    evaluate(
        params, **work.paths("prepared", "encoder", "trained", "cache", "decision"),
        report=root / "reports/evaluation.json",
    )  # fmt: skip
    export(
        params, **work.paths("prepared", "encoder", "trained", "evaluation", "decision"),
        out=work.bundle, report=root / "reports/export.json",
    )  # fmt: skip
    assert set(Runtime(Bundle.open(work.bundle)).predict(["a very good film"])) == set(TASKS)


def test_the_teacher_brings_the_student_closer(work: Workspace) -> None:
    more = ("train.epochs=12", "train.patience=12", "train.learning_rate=0.02")
    distances = {}
    for weight in ("0.000001", "1.0"):
        tasks = _train(work, *more, f"train.distil_weight={weight}", "train.distil_temperature=1")["tasks"]
        distances[weight] = {name: task["distillation"]["divergence"] for name, task in tasks.items()}
    assert sum(distances["1.0"].values()) < 0.5 * sum(distances["0.000001"].values())


def test_tasks_that_do_not_learn_from_it_are_trained_as_without_it(work: Workspace) -> None:
    report = _train(work, "train.distil_tasks=[mood, stars]")
    assert [name for name in TASKS if "distillation" in report["tasks"][name]] == ["mood", "stars"]
    taught = {name: sha256_tree(work.root / "models/trained/tasks" / name) for name in TASKS}
    _train(work, "train.teacher=null")
    alone = {name: sha256_tree(work.root / "models/trained/tasks" / name) for name in TASKS}
    assert [name for name in TASKS if alone[name] != taught[name]] == ["mood", "stars"]


def test_a_teacher_that_does_not_fit_is_refused(work: Workspace, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UsageError, match=r"its task 'mood' is binary of bad, good, here it is binary of good, bad"):
        _train(work, "suite.tasks.mood.classes=[good, bad]")
    with pytest.raises(ArtefactError, match=r"manifest.json: not found"):
        _train(work, f"train.teacher={work.root}/models/trained")
    with pytest.raises(UsageError, match="train.distil_tasks: no task 'moods' in suite.tasks. Did you mean 'mood'"):
        work.params("train.distil_tasks=[moods]")
    assert "another version of the data" not in caplog.text
    other = work.params("data.seed=5")
    run_prepare(work, other)
    _train(work, "data.seed=5", "train.epochs=1")
    assert "another version of the data" in caplog.text
