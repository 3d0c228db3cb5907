"""evaluate against a champion: two really trained bundles, measured on the same rows, each by its own graph."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mtlops import catalog
from mtlops.bundle import Bundle
from mtlops.cli import main
from mtlops.data.prepared import read_split
from mtlops.errors import ArtefactError
from mtlops.evaluation.gate import decide
from mtlops.files import read_json, write_json
from mtlops.params import Params
from mtlops.registry import Registry
from mtlops.serving.runtime import Runtime
from mtlops.steps.evaluate import evaluate
from mtlops.steps.train import train
from tests.tiny_suite import Workspace

OTHER = ("train.seed=9", "train.epochs=3", "train.learning_rate=0.02")
"""What the challenger is trained with, so that it is another model than the champion."""

Content = dict[str, Any]


@pytest.fixture(scope="module")
def registry(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry whose champion is the finished project's bundle."""
    url = str(tmp_path_factory.mktemp("registry") / "registry")
    bundle_id = Registry(url).publish(finished.bundle)
    Registry(url).promote(bundle_id, expect=None, by="test", reason="the first")
    return url


@pytest.fixture(scope="module")
def challenger(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same suite and data that was trained otherwise."""
    root = tmp_path_factory.mktemp("challenger")
    train(finished.params(*OTHER), **finished.paths("prepared", "encoder", "cache"), out=root / "trained",
          report=root / "training.json")  # fmt: skip
    return root / "trained"


@pytest.fixture(scope="module")
def judge(finished: Workspace, registry: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple]:
    """A function that evaluates a model against the champion: evaluation.json, decision.json and their folder."""

    def run(trained: Path, params: Params | None = None, *, url: str = registry) -> tuple[Content, Content, Path]:
        folder = tmp_path_factory.mktemp("reports")
        evaluate(params or finished.params(*OTHER), **finished.paths("prepared", "encoder", "cache"), trained=trained,
                 registry=url, report=folder / "evaluation.json", decision=folder / "decision.json")  # fmt: skip
        return *(read_json(folder / f"{n}.json", made_by="") for n in ("evaluation", "decision")), folder

    return run


@pytest.fixture(scope="module")
def judged(judge: Callable[..., tuple], challenger: Path) -> tuple[Content, Content, Path]:
    return judge(challenger)


def test_the_champion_s_own_numbers_stand_in_the_report(judged: tuple, finished: Workspace, challenger: Path) -> None:
    """The classic bug compares the challenger with itself: here each side is a different real model."""
    evaluation = judged[0]
    champion = Runtime(Bundle.open(finished.bundle))
    assert evaluation["champion"]["bundle_id"] == champion.bundle_id
    for task in champion.tasks:
        test = read_split(finished.root / "data/prepared", task.name, "test")
        answers = champion.predict(test["text"].to_pylist())[task.name]
        kind = catalog.KINDS[task.kind]
        own = catalog.load(kind.metrics)(task, task.encode(test["label"].to_pylist()), answers)
        found = evaluation["tasks"][task.name]
        theirs = {metric: interval["value"] for metric, interval in found["champion"]["metrics"].items()}
        ours = {metric: interval["value"] for metric, interval in found["metrics"].items()}
        assert theirs == pytest.approx(own, abs=1e-4)
        assert not found["champion"]["is_identical"]
        assert any(abs(theirs[metric] - ours[metric]) > 1e-3 for metric in ours), task.name
        change = found["champion"]["change"]
        assert change["value"] == pytest.approx(ours[kind.primary] - theirs[kind.primary], abs=2e-6)
        assert change["low"] <= change["value"] <= change["high"]


def test_the_decision_can_be_made_again_from_the_evaluation_alone(judged: tuple) -> None:
    evaluation, decision, _ = judged
    again = json.loads(json.dumps(decide(evaluation), default=vars))
    assert {"schema_version": 1, **again} == decision
    assert decision["champion"] == evaluation["champion"]["bundle_id"]
    assert {task["kind"] for task in decision["tasks"].values()} == {"compared"}
    assert evaluation["gate"]["alpha"] == 0.05
    assert all(len(task["rows_sha256"]) == 64 for task in evaluation["tasks"].values())


def test_reasons_name_both_numbers_and_the_rows(judged: tuple) -> None:
    evaluation, decision, _ = judged
    for name, task in evaluation["tasks"].items():
        ours, theirs = (side["metrics"][task["primary"]]["value"] for side in (task, task["champion"]))
        words = f"{name}: {task['primary']} {ours:.4f} against the champion's {theirs:.4f} on the same "
        words += f"{task['rows']['test']} test rows"
        assert any(reason.startswith(words) for reason in decision["tasks"][name]["reasons"])


def test_the_same_inputs_give_the_same_bytes(judged: tuple, judge: Callable[..., tuple], challenger: Path) -> None:
    _, _, first = judged
    _, _, second = judge(challenger)
    for name in ("evaluation.json", "decision.json", "evaluation.html", "decision.html"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name


def test_the_champion_s_own_model_is_identical_to_it(judge: Callable[..., tuple], finished: Workspace) -> None:
    evaluation, decision, _ = judge(finished.root / "models/trained", finished.params())
    for task in evaluation["tasks"].values():
        assert task["champion"]["is_identical"]
        assert task["champion"]["change"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert decision["verdict"] == "HOLD"
    assert "Every task is identical to the champion" in decision["reasons"][0]


def test_one_retrained_task_is_the_only_one_compared(
    judge: Callable[..., tuple], finished: Workspace, challenger: Path, tmp_path: Path
) -> None:
    mixed = Path(shutil.copytree(finished.root / "models/trained", tmp_path / "trained"))
    shutil.rmtree(mixed / "tasks/topic")
    shutil.copytree(challenger / "tasks/topic", mixed / "tasks/topic")
    evaluation, decision, _ = judge(mixed, finished.params())
    identical = {name: task["champion"]["is_identical"] for name, task in evaluation["tasks"].items()}
    assert identical == {name: name != "topic" for name in identical}
    assert "identical" in decision["tasks"]["mood"]["reasons"][0] or decision["tasks"]["mood"]["verdict"] != "PROMOTE"


def test_new_removed_and_changed_tasks_are_named(
    judge: Callable[..., tuple], finished: Workspace, challenger: Path, tmp_path: Path
) -> None:
    """The champion has all five tasks; a model without one of them, and with other classes in another, meets it."""
    evaluation, decision, _ = judge(challenger, finished.params(*OTHER).only(["mood", "topic"]))
    assert evaluation["champion"]["removed"] == ["grade", "stars", "about"]
    assert decision["verdict"] != "PROMOTE"
    assert {name for name, task in decision["tasks"].items() if task["kind"] == "removed"} == {
        "grade",
        "stars",
        "about",
    }
    url = str(tmp_path / "other")
    other = _bundle_with_other_classes(finished.bundle, tmp_path / "bundle")
    Registry(url).promote(Registry(url).publish(other), expect=None, by="test", reason="other classes")
    evaluation, decision, _ = judge(challenger, url=url)
    kinds = {name: task["kind"] for name, task in decision["tasks"].items()}
    assert kinds == {"mood": "compared", "grade": "compared", "stars": "compared", "about": "compared",
                     "topic": "classes-changed"}  # fmt: skip
    assert evaluation["tasks"]["topic"]["champion"] is None
    assert any("other classes" in reason for reason in decision["tasks"]["topic"]["reasons"])


def _bundle_with_other_classes(bundle: Path, target: Path) -> Path:
    shutil.copytree(bundle, target)
    manifest = read_json(target / "manifest.json", made_by="")
    manifest["tasks"]["topic"]["classes"] = ["sport", "space", "cooking"]
    write_json(target / "manifest.json", manifest)
    return target


def test_an_empty_registry_is_like_none(
    judge: Callable[..., tuple], challenger: Path, tmp_path: Path, finished: Workspace
) -> None:
    evaluation, decision, _ = judge(challenger, url=str(tmp_path / "empty"))
    assert evaluation["champion"] is None and decision["champion"] is None
    assert {task["kind"] for task in decision["tasks"].values()} == {"new"}
    assert not (tmp_path / "empty").exists()


@pytest.mark.parametrize("damage", ["model.onnx", "tasks/mood/head.safetensors", "golden.json"])
def test_a_damaged_champion_is_an_error_and_never_no_champion(
    judge: Callable[..., tuple], finished: Workspace, challenger: Path, tmp_path: Path, damage: str
) -> None:
    url = tmp_path / "registry"
    bundle_id = Registry(url).publish(finished.bundle)
    Registry(url).promote(bundle_id, expect=None, by="test", reason="the first")
    digest = Bundle.open(finished.bundle).manifest["files"][damage]
    blob = url / "blobs" / digest
    content = bytearray(blob.read_bytes())
    blob.unlink()
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    reports = {"report": tmp_path / "e.json", "decision": tmp_path / "d.json"}
    with pytest.raises(ArtefactError, match=digest[:8]):
        evaluate(finished.params(*OTHER), **finished.paths("prepared", "encoder"), cache=tmp_path / "cache",
                 trained=challenger, registry=str(url), **reports)  # fmt: skip
    assert not (tmp_path / "d.json").exists()


def test_a_disabled_gate_does_not_ask_the_champion(
    judge: Callable[..., tuple], finished: Workspace, challenger: Path
) -> None:
    evaluation, decision, _ = judge(challenger, finished.params(*OTHER, "gates.mode=disabled"))
    assert decision["verdict"] == "PROMOTE"
    assert decision["champion"] == evaluation["champion"]["bundle_id"]
    assert all(task["champion"] is None for task in evaluation["tasks"].values())


def test_the_command_finds_the_champion_and_says_6(
    finished: Workspace, registry: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(finished.root)
    monkeypatch.setenv("MTLOPS_REGISTRY", registry)
    arguments = ["--report", str(tmp_path / "e.json"), "--decision", str(tmp_path / "d.json"), "--quiet"]
    assert main(["evaluate", *arguments]) == 0
    assert read_json(tmp_path / "d.json", made_by="")["champion"] == Bundle.open(finished.bundle).id
    assert main(["evaluate", *arguments, "--exit-code"]) == 6
    assert main(["evaluate", *arguments, "--exit-code", "--registry", str(tmp_path / "none")]) == 0
