"""Every adapter from params.yaml through train, evaluate, export and an answer, on all five kinds of task."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from mtlops import catalog
from mtlops.bundle import Bundle, diff
from mtlops.files import sha256_tree
from mtlops.model.predictor import Predictor
from mtlops.serving.runtime import Runtime
from mtlops.steps.evaluate import evaluate
from mtlops.steps.export import export
from mtlops.steps.train import train
from tests.tiny_suite import Workspace

pytestmark = pytest.mark.e2e


def _train(work: Workspace, *overrides: str, out: str = "models/trained") -> None:
    train(
        work.params("train.epochs=1", *overrides), **work.paths("prepared", "encoder", "cache"),
        out=work.root / out, report=work.root / "reports/training.json",
    )  # fmt: skip


def _export(work: Workspace, *overrides: str, out: str) -> Bundle:
    params, root = work.params("train.epochs=1", "export.tolerance=0.00001", *overrides), work.root
    evaluate(
        params, **work.paths("prepared", "encoder", "trained", "cache", "decision"),
        report=root / "reports/evaluation.json",
    )  # fmt: skip
    export(
        params, **work.paths("prepared", "encoder", "trained", "evaluation", "decision"),
        out=root / out, report=root / "reports/export.json",
    )  # fmt: skip
    return Bundle.open(root / out)


@pytest.mark.parametrize("drop", [0, 1])
def test_pooling_first_last_the_whole_way(finished: Workspace, tmp_path: Path, drop: int) -> None:
    """The first layer's mean is each task's own with adapters in it, and comes out of the cache without."""
    work = Workspace(Path(shutil.copytree(finished.root, tmp_path / "project")))
    chosen = ("model.pooling=first-last", f"model.adapter_drop={drop}", "export.variants=[int8]")
    _train(work, *chosen)
    bundle = _export(work, *chosen, out="models/pooled")
    assert {facts["pooling"] for facts in bundle.manifest["tasks"].values()} == {"first-last"}
    texts = ["a very good film", "the law"]
    runtime, predictor = Runtime(bundle), Predictor(**work.paths("trained", "encoder", "cache"))
    for task in runtime.tasks:
        assert np.allclose(runtime.logits(texts, task.name), predictor.logits_of_texts(texts, task.name), atol=1e-5)


@pytest.mark.parametrize("adapter", catalog.ADAPTERS)
def test_the_whole_way_and_one_task_retrained_changes_no_other_bit(
    finished: Workspace, tmp_path: Path, adapter: str
) -> None:
    work = Workspace(Path(shutil.copytree(finished.root, tmp_path / "project")))
    chosen = (f"model.adapter={adapter}", "model.adapter_drop=0")
    _train(work, *chosen)
    first = sha256_tree(work.root / "models/trained")
    _train(work, *chosen)
    assert sha256_tree(work.root / "models/trained") == first
    before = _export(work, *chosen, out="models/before")
    answers = Runtime(before).predict(["a very good film", "the law"])
    assert set(answers) == {"mood", "grade", "stars", "about", "topic"}

    _train(work, *chosen, "train.seed=9", out="models/other")
    shutil.copytree(
        work.root / "models/other/tasks/topic", work.root / "models/trained/tasks/topic", dirs_exist_ok=True
    )
    after = _export(work, *chosen, out="models/after")
    found = diff(before, after)
    assert (found.pop("topic").outputs, found.pop("trunk").files) == ("changed", "identical")
    assert {(d.files, d.outputs) for d in found.values()} == {("identical", "identical")}
