"""Every way of sharing the whole way from training to answers, and what of it the bundle holds."""

import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from safetensors.numpy import load_file

from mtlops.bundle import Bundle, diff
from mtlops.files import read_json, sha256_tree
from mtlops.model.encoders import load_trunk
from mtlops.serving.passes import open_session
from mtlops.serving.runtime import Runtime
from mtlops.steps.evaluate import evaluate
from mtlops.steps.export import export
from mtlops.steps.train import train
from tests.tiny_suite import Workspace

pytestmark = pytest.mark.e2e

SCHEMES = {
    "hard": ("model.sharing=hard",),
    "heads": ("model.sharing=hard", "model.tuned_layers=0"),
    "embeddings": (
        "model.sharing=hard", "model.tuned_layers=all", "model.tune_embeddings=true", "train.balancing=pcgrad",
    ),
    "hierarchical": (
        "model.sharing=hierarchical", "model.tuned_layers=all", "model.depths={mood: 1, topic: 2}",
        "model.successive_weight=0.01", "train.balancing=uncertainty", "model.pooling=first-last",
    ),
    "l2": ("model.sharing=soft", "model.pooling=first-last", "train.balancing=dwa"),
    "cross-stitch": ("model.sharing=soft", "model.soft=cross-stitch", "model.pooling=mean", "train.balancing=gradnorm"),
}  # fmt: skip
FIXED = ("train.epochs=2", "train.trunk_learning_rate=0.001", "export.tolerance=0.00001")
TEXTS = ["a very good film", "the law", "bad phone battery and a bad screen"]


@pytest.fixture
def work(finished: Workspace, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(finished.root, tmp_path / "project")))


def _train(work: Workspace, *overrides: str) -> str:
    train(
        work.params(*FIXED, *overrides), **work.paths("prepared", "encoder", "cache"),
        out=work.root / "models/trained", report=work.root / "reports/training.json",
    )  # fmt: skip
    return sha256_tree(work.root / "models/trained")


def _bundle(work: Workspace, *overrides: str) -> Bundle:
    params, root = work.params(*FIXED, *overrides), work.root
    evaluate(
        params, **work.paths("prepared", "encoder", "trained", "cache", "decision"),
        report=root / "reports/evaluation.json",
    )  # fmt: skip
    export(
        params, **work.paths("prepared", "encoder", "trained", "evaluation", "decision"),
        out=work.bundle, report=root / "reports/export.json",
    )  # fmt: skip
    return Bundle.open(work.bundle)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_whole_way(work: Workspace, scheme: str) -> None:
    before = Bundle.open(Path(shutil.copytree(work.bundle, work.root / "before")))
    before_trunk = load_file(before.folder / "trunk/model.safetensors")
    first = _train(work, *SCHEMES[scheme])
    assert _train(work, *SCHEMES[scheme]) == first
    report = read_json(work.root / "reports/training.json", made_by="train")["sharing"]
    assert (report["parameters"] > 0) == (scheme != "heads") == bool(report["epochs"])
    bundle = _bundle(work, *SCHEMES[scheme])

    manifest, is_frozen = bundle.manifest, scheme == "heads"
    assert manifest["trunk_is_frozen"] == is_frozen
    assert (work.bundle / "trunk/columns.safetensors").exists() == (scheme in ("l2", "cross-stitch"))
    is_folded = scheme in ("hard", "embeddings", "hierarchical")
    assert ("base_sha256" in manifest["trunk"]) == is_folded
    assert manifest["trunk"]["trunk_sha256"] == manifest["files"]["trunk/model.safetensors"]
    trunk = load_file(work.bundle / "trunk/model.safetensors")
    same = {name for name, tensor in trunk.items() if np.array_equal(tensor, before_trunk[name])}
    lowest = {"hard": 1, "embeddings": -1, "hierarchical": 0}.get(scheme, 3)
    assert all((name in same) == (_layer(name) < lowest) for name in trunk)
    load_trunk(work.bundle / "trunk")
    assert diff(before, bundle)["trunk"].files == ("identical" if is_frozen else "changed")

    runtime = Runtime(bundle)
    answers = runtime.predict(TEXTS)
    assert set(answers) == {"mood", "grade", "stars", "about", "topic"}
    for tasks in (["topic"], ["mood"], ["mood", "topic"], ["stars", "grade"]):
        for name, found in runtime.predict(TEXTS, tasks=tasks).items():
            wanted, got = (o.probabilities if o.values is None else o.values for o in (answers[name], found))
            assert np.allclose(wanted, got, atol=1e-5)
    if scheme == "hierarchical":
        _check_that_layers_above_do_not_run(bundle, work.root)


def _layer(name: str) -> int:
    parts = name.split(".")
    return int(parts[parts.index("layer") + 1]) if "layer" in parts else -1


def _check_that_layers_above_do_not_run(bundle: Bundle, folder: Path) -> None:
    """With layers 2 and 3 of the served graph made not-a-number, a task that ends at layer 1 still answers."""
    poisoned = onnx.load(bundle.folder / "model.onnx")
    names = {f"trunk.layers.{i}.norm.weight" for i in (1, 2)}
    found = [tensor for tensor in poisoned.graph.initializer if tensor.name in names]
    assert {tensor.name for tensor in found} == names
    for tensor in found:
        shape = onnx.numpy_helper.to_array(tensor).shape
        tensor.CopyFrom(onnx.numpy_helper.from_array(np.full(shape, np.nan, dtype=np.float32), tensor.name))
    onnx.save(poisoned, folder / "poisoned.onnx")
    runtime = Runtime(bundle)
    expected = runtime.predict(TEXTS, tasks=["mood"])["mood"].probabilities
    runtime.session = open_session(folder / "poisoned.onnx", "CPUExecutionProvider", threads=1)
    assert np.array_equal(runtime.predict(TEXTS, tasks=["mood"])["mood"].probabilities, expected)
    deep = runtime.predict(TEXTS, tasks=["mood", "grade"])
    assert np.isnan(deep["grade"].probabilities).all()
    assert np.array_equal(deep["mood"].probabilities, expected)
