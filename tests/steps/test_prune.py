"""Pruning a trained model on the tiny suite: smaller files, the same way on, one task at a time, and refusals."""

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from mtlops.bundle import Bundle, diff
from mtlops.cli import main
from mtlops.errors import UsageError
from mtlops.files import read_json, sha256_tree
from mtlops.model.predictor import Predictor
from mtlops.params import Params
from mtlops.serving.runtime import Runtime
from mtlops.steps.evaluate import evaluate
from mtlops.steps.export import export
from mtlops.steps.prune import prune
from mtlops.steps.train import train
from tests.tiny_suite import Workspace

pytestmark = pytest.mark.e2e

TASKS = ["mood", "grade", "stars", "about", "topic"]


@pytest.fixture
def work(finished: Workspace, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(finished.root, tmp_path / "project")))


def _export(work: Workspace, params: Params | None = None) -> Bundle:
    params, root = params or work.params("export.tolerance=0.00001"), work.root
    evaluate(
        params, **work.paths("prepared", "encoder", "trained", "cache", "decision"),
        report=root / "reports/evaluation.json",
    )  # fmt: skip
    export(
        params, **work.paths("prepared", "encoder", "trained", "evaluation", "decision"),
        out=root / "models/pruned", report=root / "reports/export.json",
    )  # fmt: skip
    return Bundle.open(root / "models/pruned")


def _units(work: Workspace, task: str) -> set[int]:
    tensors = load_file(work.root / "models/trained/tasks" / task / "adapter.safetensors")
    return {tensor.shape[0] for name, tensor in tensors.items() if name.endswith(".up")}


def test_half_the_units_and_the_whole_way_on(
    work: Workspace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work.root)
    untouched = Path(shutil.copytree("models/trained", "models/untouched"))
    assert main(["prune", "--keep", "0.5", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert list(printed["tasks"]) == TASKS and printed["keep"] == 0.5
    report = read_json(work.root / "reports/pruning.json", made_by="mtlops prune")
    assert report["pruned"] == printed["tasks"] and (work.root / "reports/pruning.html").exists()
    for name in TASKS:
        cost = printed["tasks"][name]
        assert cost["units"] == [4, 2] and cost["parameters"][1] < cost["parameters"][0]
        assert cost["change"] == pytest.approx(cost["valid"][1] - cost["valid"][0], abs=1e-6)
        assert _units(work, name) == {2}
        facts = read_json(work.root / "models/trained/tasks" / name / "task.json", made_by="mtlops prune")
        assert facts["pruned"] == {"from_units": 4, "to_units": 2} and facts["best_epoch"] >= 1
    before = sum(f.stat().st_size for f in untouched.rglob("adapter.safetensors"))
    after = sum(f.stat().st_size for f in (work.root / "models/trained").rglob("adapter.safetensors"))
    assert after < before
    first = sha256_tree(work.root / "models/trained")
    main(["prune", "--trained", str(untouched), "--quiet"])
    assert sha256_tree(work.root / "models/trained") == first
    assert set(Runtime(_export(work)).predict(["a very good film"])) == set(TASKS)


def test_one_task_pruned_changes_no_other_answer(work: Workspace) -> None:
    before = _export(work)
    shutil.move(before.folder, work.root / "models/before")
    prune(
        work.params().only(["topic"]), keep=0.25, **work.paths("prepared", "encoder", "trained", "cache"),
        out=work.root / "models/trained", report=work.root / "reports/pruning.json",
    )  # fmt: skip
    assert _units(work, "topic") == {1} and _units(work, "mood") == {4}
    found = diff(Bundle.open(work.root / "models/before"), _export(work))
    assert (found.pop("topic").files, found.pop("trunk").files) == ("changed", "identical")
    for difference in found.values():
        assert difference.files == "identical" and difference.largest is not None and difference.largest < 1e-6


def test_what_cannot_be_pruned_is_refused_and_stays(work: Workspace) -> None:
    paths = work.paths("prepared", "encoder", "trained", "cache") | {
        "out": work.root / "models/trained", "report": work.root / "reports/pruning.json",
    }  # fmt: skip
    before = sha256_tree(work.root / "models/trained")
    for keep in (0.0, 1.5, float("nan")):
        with pytest.raises(UsageError, match="must be above 0 and at most 1"):
            prune(work.params(), keep=keep, **paths)
    with pytest.raises(UsageError, match="no task 'mood' like the one in params.yaml"):
        prune(work.params("suite.tasks.mood.classes=[sad, glad]"), **paths)
    assert sha256_tree(work.root / "models/trained") == before
    for chosen, message in (
        ("model.adapter=ia3", "'ia3' has no bottleneck units"),
        ("model.adapter=fusion", "no bottleneck units to remove. Use model.fusion_keep"),
        (("model.sharing=hard", "model.tuned_layers=0"), "trained heads alone, which have nothing to remove"),
    ):
        params = work.params(*([chosen] if isinstance(chosen, str) else chosen), "train.epochs=1")
        train(
            params, **work.paths("prepared", "encoder", "cache"), out=work.root / "models/trained",
            report=work.root / "reports/training.json",
        )  # fmt: skip
        with pytest.raises(UsageError, match=message):
            prune(params, **paths)


@pytest.mark.parametrize("scheme", [("hard",), ("hierarchical", "model.depths={mood: 2}"), ("soft", "model.soft=l2")])
def test_trained_layers_lose_heads_and_units_and_go_the_whole_way_on(work: Workspace, scheme: tuple[str, ...]) -> None:
    params = work.params(f"model.sharing={scheme[0]}", *scheme[1:], "train.epochs=1", "export.tolerance=0.00001")
    root, paths = work.root, work.paths("prepared", "encoder", "cache")
    train(params, **paths, out=root / "models/trained", report=root / "reports/training.json")
    before = {name: tensor.shape for name, tensor in load_file(root / "models/trained/shared.safetensors").items()}
    options = {**work.paths("prepared", "encoder", "trained", "cache"), "out": root / "models/trained"}
    with pytest.raises(UsageError, match="shares the layers that would be pruned"):
        prune(params.only(["mood"]), **options, report=root / "reports/pruning.json")
    found = prune(params, keep=0.5, **options, report=root / "reports/pruning.json")
    assert list(found.tasks) == TASKS
    report = read_json(root / "reports/pruning.json", made_by="mtlops prune")
    assert {(tuple(of["heads"]), tuple(of["units"])) for of in report["layers"].values()} == {((4, 2), (64, 32))}
    assert all(cost.parameters[1] < 0.6 * cost.parameters[0] for cost in found.tasks.values())
    after = {name: tensor.shape for name, tensor in load_file(root / "models/trained/shared.safetensors").items()}
    assert after == before  # readers of the files find what they expect

    bundle = _export(Workspace(root), params)
    runtime, predictor = Runtime(bundle), Predictor(**work.paths("trained", "encoder", "cache"))
    texts = ["a very good film", "the law"]
    for task in runtime.tasks:
        assert np.allclose(runtime.logits(texts, task.name), predictor.logits_of_texts(texts, task.name), atol=1e-5)
    graph = onnx.load(bundle.folder / "model.onnx")
    shapes = {tuple(tensor.dims) for tensor in graph.graph.initializer}
    assert (16, 32) in shapes or (32, 16) in shapes


def test_keeping_all_writes_the_same_tensors(work: Workspace) -> None:
    before = {f: load_file(f) for f in (work.root / "models/trained").rglob("*.safetensors")}
    pruned = prune(
        work.params(), keep=1.0, **work.paths("prepared", "encoder", "trained", "cache"),
        out=work.root / "models/trained", report=work.root / "reports/pruning.json",
    )  # fmt: skip
    assert all(cost.change == 0.0 and cost.units == (4, 4) for cost in pruned.tasks.values())
    for file, tensors in before.items():
        after = load_file(file)
        assert after.keys() == tensors.keys() and all(np.array_equal(after[n], t) for n, t in tensors.items())
