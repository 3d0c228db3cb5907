"""An update of one task, run for real: what is trained, what is taken over to the bit, what is refused."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mtlops.bundle import Bundle, diff
from mtlops.cli import main
from mtlops.errors import ArtefactError, UsageError
from mtlops.export.graph import structure
from mtlops.files import read_json, sha256_tree
from mtlops.params import Params
from mtlops.registry import Registry
from mtlops.serving.runtime import Runtime
from mtlops.steps.admit import admit
from mtlops.steps.evaluate import evaluate
from mtlops.steps.export import export
from mtlops.steps.promote import Promoted, promote
from mtlops.steps.train import train
from tests.tiny_suite import Workspace
from tests.tiny_window import posts, write_window

# One update for all of them, in one process.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("updates")]

ENOUGH = (
    "retrain.epochs=30", "train.patience=30", "train.learning_rate=0.02", "gates.max_drop=null",
    "gates.seed_noise={topic: 0.0}", "retrain.blend=1",
)  # fmt: skip
"""What makes so small a model learn the window beyond doubt."""


@dataclass(frozen=True)
class Project:
    """A copy of the finished project with its bundle as champion and an update of `topic`."""

    work: Workspace
    registry: str
    parent: Bundle

    def params(self, *overrides: str) -> Params:
        return self.work.params(*ENOUGH, *overrides).retraining(["topic"], "registry")

    def train(self, params: Params, out: str = "models/trained") -> Path:
        root = self.work.root
        train(params, **self.work.paths("prepared", "encoder", "cache"), out=root / out, registry=self.registry,
              report=root / "reports/training.json")  # fmt: skip
        return root / out

    def evaluate(self, params: Params) -> str:
        done = evaluate(params, **self.work.paths("prepared", "encoder", "trained", "cache", "decision"),
                        registry=self.registry, report=self.work.root / "reports/evaluation.json")  # fmt: skip
        return done.verdict

    def export(self, params: Params, out: str = "models/candidate") -> Bundle:
        root = self.work.root
        export(params, **self.work.paths("prepared", "encoder", "trained", "cache", "evaluation", "decision"),
               registry=self.registry, out=root / out, report=root / "reports/export.json")  # fmt: skip
        return Bundle.open(root / out)

    def promote(self) -> Promoted:
        reports = {name: self.work.root / f"reports/{name}.json" for name in ("decision", "export")}
        return promote(registry=self.registry, bundle=self.work.bundle, **reports)


@pytest.fixture(scope="module")
def project(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Project:
    work = Workspace(tmp_path_factory.mktemp("update") / "project")
    shutil.copytree(finished.root, work.root)
    registry = str(work.root / "registry")
    store = Registry(registry)
    bundle_id = store.publish(work.bundle)
    store.promote(bundle_id, expect=None, by="test", reason="the first")
    admit(work.params(), rows=write_window(work.root / "shift.jsonl"), tasks=["topic"], alert="alert-7",
          windows=work.root / "data/windows", **work.paths("prepared"))  # fmt: skip
    made = Project(work, registry, Bundle.open(finished.bundle))
    params = made.params()
    made.train(params)
    made.evaluate(params)
    made.export(params)
    return made


def test_the_update_is_better_on_new_rows_and_may_be_promoted(project: Project) -> None:
    decision = read_json(project.work.root / "reports/decision.json", made_by="")
    assert decision["champion"] == project.parent.id
    assert decision["verdict"] == "PROMOTE", decision["reasons"]
    assert "topic, window shift" in decision["reasons"][0]
    task = read_json(project.work.root / "reports/evaluation.json", made_by="")["tasks"]["topic"]
    window = task["window"]
    ours, theirs = window["metrics"]["macro_f1"]["value"], window["champion"]["metrics"]["macro_f1"]["value"]
    assert window["name"] == "shift"
    assert window["rows"] >= 10
    assert ours > theirs + 0.3
    assert task["rows"]["test"] == 6  # known rows alone


def test_baselines_are_those_that_the_parent_had_to_beat(project: Project, finished: Workspace) -> None:
    theirs, ours = (
        read_json(work.root / "reports/evaluation.json", made_by="")["tasks"]["topic"]
        for work in (finished, project.work)
    )
    assert list(ours["baselines"]) == ["majority", "frozen"]
    assert all(theirs["baselines"][name] == metrics for name, metrics in ours["baselines"].items())
    assert ours["rows"]["train"] > theirs["rows"]["train"]
    assert theirs["drift"]["train"] and ours["drift"] is None  # its test rows are the parent's reference


def test_the_page_shows_both_sides(project: Project) -> None:
    page = (project.work.root / "reports/evaluation.html").read_text(encoding="utf-8")
    assert "What the update brings and costs" in page
    assert "new rows, window shift" in page
    assert page.count("identical to the bit") == 4


def test_every_other_task_is_its_parents_to_the_bit(project: Project) -> None:
    bundle = Bundle.open(project.work.bundle)
    found = diff(project.parent, bundle)
    assert found.pop("topic").files == "changed"
    assert {part.files for part in found.values()} == {"identical"}
    assert {part.outputs for name, part in found.items() if name != "trunk"} == {"identical"}
    ours, theirs = bundle.manifest["files"], project.parent.manifest["files"]
    changed = {name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)}
    whole = {"model.onnx", "golden.json", "card.md"}
    assert {name for name in changed if "/topic/" not in name} == whole
    texts = [row["body"] for row in posts()[::9]]
    for name in ("mood", "grade", "stars", "about"):
        answers = [Runtime(b, threads=1).logits(texts, name) for b in (bundle, project.parent)]
        assert np.array_equal(*answers)


def test_the_bundle_says_where_it_comes_from(project: Project) -> None:
    manifest = Bundle.open(project.work.bundle).manifest
    assert manifest["parent"] == project.parent.id
    assert manifest["lineage"]["retrained"] == {"topic": "shift"}
    assert manifest["lineage"]["windows"]["shift"]["alert"] == "alert-7"
    assert manifest["params"]["data"]["labelled"] == ["shift"]
    assert manifest["params"]["retrain"]["parent"] == project.parent.id
    for name, task in project.parent.manifest["tasks"].items():
        if name != "topic":
            assert manifest["tasks"][name] == {**task, "verdict": "PROMOTE"}
    card = (project.work.bundle / "card.md").read_text(encoding="utf-8")
    assert "new, window shift |" in card
    assert "| mood | taken over |" in card


def test_the_graph_without_tracing_is_the_traced_one(project: Project, tmp_path: Path) -> None:
    """A full export of the same tensors gives the same graph, byte for byte."""
    work = project.work
    shutil.copytree(work.root / "models/trained", tmp_path / "trained")
    (tmp_path / "trained/lineage.json").unlink()
    params = work.params(*ENOUGH)
    paths = work.paths("prepared", "encoder", "cache")
    reports = {"evaluation": tmp_path / "evaluation.json", "decision": tmp_path / "decision.json"}
    evaluate(params, **paths, trained=tmp_path / "trained", report=reports["evaluation"], decision=reports["decision"])
    export(params, **paths, **reports, trained=tmp_path / "trained", out=tmp_path / "bundle",
           report=tmp_path / "export.json")  # fmt: skip
    for name in ("model.onnx", "model.onnx.data"):
        assert (tmp_path / "bundle" / name).read_bytes() == (work.bundle / name).read_bytes()
    assert structure(work.bundle / "model.onnx") == project.parent.manifest["graph"]["structure"]


def test_the_same_update_gives_the_same_bytes(project: Project) -> None:
    made = sha256_tree(project.work.root / "models/trained")
    assert sha256_tree(project.train(project.params(), "models/again")) == made
    parent = str(project.work.root / "registry/bundles" / project.parent.id)
    by_folder = project.params().retraining(["topic"], parent)
    assert sha256_tree(project.train(by_folder, "models/again")) == made
    bundle = Bundle.open(project.work.bundle)
    assert project.export(project.params(), "models/other").id == bundle.id


def test_a_warm_start_goes_on_from_the_parent(project: Project) -> None:
    trained = project.train(project.params("retrain.start=warm", "train.learning_rate=1e-9"), "models/warm")
    before = load_file(project.parent.folder / "tasks/topic/adapter.safetensors")
    after = load_file(trained / "tasks/topic/adapter.safetensors")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_allclose(after[name], tensor, atol=1e-5)


@pytest.mark.parametrize("file", ["adapter.safetensors", "head.safetensors"])
def test_evaluate_refuses_an_update_that_changed_another_task(project: Project, file: str) -> None:
    path = project.work.root / "models/trained/tasks/mood" / file
    original = path.read_bytes()
    try:
        tensors = load_file(path)
        name = next(iter(tensors))
        tensors[name] = np.nextafter(tensors[name], np.float32(2))
        save_file(tensors, path)
        with pytest.raises(ArtefactError, match="task mood was not to change"):
            project.evaluate(project.params())
        with pytest.raises(ArtefactError, match="was not to change|was not to"):
            project.export(project.params(), "models/none")
    finally:
        path.write_bytes(original)
    assert not (project.work.root / "models/none").exists()


def test_what_cannot_be_updated_is_refused(project: Project, tmp_path: Path) -> None:
    for override, key in (("model.bottleneck=5", "model"), ("encoder.max_tokens=20", "encoder.max_tokens"),
                          ("suite.name=other", "suite.name")):  # fmt: skip
        with pytest.raises(UsageError, match=rf"params.yaml: {key}: is not that of the parent"):
            project.train(project.params(override), "models/none")
    with pytest.raises(UsageError, match="cannot go on from its served form"):
        project_of_prefix(project, tmp_path)
    with pytest.raises(ArtefactError, match="has no champion to update"):
        train(project.params(), **project.work.paths("prepared", "encoder", "cache"), registry=str(tmp_path / "empty"))
    with pytest.raises(UsageError, match="Name the registry that holds it"):
        train(project.params().retraining(["topic"], "beef"), **project.work.paths("prepared", "encoder", "cache"))


def project_of_prefix(project: Project, root: Path) -> None:
    """Trains a suite of prefixes and then tries to go on from what of them is served."""
    work, model = project.work, ("model.adapter=prefix", "model.bottleneck=null", "train.epochs=1")
    params, paths = work.params(*model), work.paths("prepared", "encoder", "cache")
    train(params, **paths, out=root / "trained", report=root / "training.json")
    evaluate(
        params, **paths, trained=root / "trained", report=root / "evaluation.json", decision=root / "decision.json"
    )
    export(params, **paths, trained=root / "trained", evaluation=root / "evaluation.json",
           decision=root / "decision.json", out=root / "bundle", report=root / "export.json")  # fmt: skip
    warm = work.params(*model, "retrain.start=warm").retraining(["topic"], str(root / "bundle"))
    train(warm, **paths, out=root / "warm", report=root / "training.json")


def test_changed_data_asks_for_training_again(project: Project, tmp_path: Path) -> None:
    prepared = tmp_path / "prepared"
    admit(project.work.params(), rows=write_window(tmp_path / "b.jsonl", posts(ending="that")), tasks=["topic"],
          windows=tmp_path / "windows", **project.work.paths("prepared"), out=prepared)  # fmt: skip
    with pytest.raises(ArtefactError, match="was trained on other data"):
        evaluate(project.params(), **project.work.paths("encoder", "trained", "cache"), prepared=prepared,
                 registry=project.registry, report=tmp_path / "evaluation.json")  # fmt: skip


def test_an_update_is_promoted_once_and_only_over_its_parent(project: Project) -> None:
    first, again = project.promote(), project.promote()
    assert (first.previous, first.is_new, again.is_new) == (project.parent.id, True, False)
    published = {bundle.id: bundle for bundle in Registry(project.registry).bundles()}[first.bundle_id]
    assert published.files["model.onnx.data"].bundles == 2
    assert len(Registry(project.registry).history()) == 2


def test_lineage_leads_back_to_the_first_data(project: Project, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = Bundle.open(project.work.bundle)
    project.promote()
    for name in (str(project.work.bundle), bundle.id[:8]):
        assert main(["lineage", name, "--registry", project.registry, "--json"]) == 0
        [newest, first] = json.loads(capsys.readouterr().out)
        assert (newest["bundle"], newest["parent"], first["bundle"]) == (bundle.id, project.parent.id, first["bundle"])
        assert (newest["retrained"], newest["windows"]["shift"]["alert"]) == ({"topic": "shift"}, "alert-7")
        assert "topic, window shift" in newest["promotions"][0]["evidence"][0]
        assert (first["bundle"], first["retrained"], first["promotions"][0]["reason"]) == (
            project.parent.id, None, "the first"
        )  # fmt: skip
        assert set(first["data"]["sources"]) == {"data/sources/reviews.csv", "data/sources/posts.jsonl"}
    assert main(["lineage", bundle.id, "--registry", project.registry]) == 0
    text = capsys.readouterr().out
    assert "retrained  topic on window shift" in text
    assert f"<- {project.parent.id}" in text


def test_the_command_line_admits_trains_judges_and_exports(
    project: Project, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = project.work.root
    monkeypatch.chdir(root)
    monkeypatch.delenv("MTLOPS_REGISTRY", raising=False)
    write_window(root / "later.jsonl", posts(ending="that"))
    assert (
        main(["train", "--quiet", "--json", "--tasks", "topic", "--from", "registry", "--window", "later.jsonl"]) == 0
    )
    assert list(json.loads(capsys.readouterr().out)["best"]) == ["topic"]
    lineage = read_json(root / "models/trained/lineage.json", made_by="")
    assert lineage["parent"] == Registry(project.registry).champion().bundle_id  # type: ignore[union-attr]
    assert lineage["retrained"] == {"topic": "later"}
    assert main(["evaluate", "--quiet"]) == 0
    assert main(["export", "--quiet"]) == 0
    assert Bundle.open(root / "models/candidate").manifest["parent"] == lineage["parent"]
    for wrong, said in (
        (["--from", "registry"], "which tasks are to be trained"),
        (["--tasks", "topic", "--window", "later.jsonl"], "--window is for updates"),
        (["--tasks", "topics", "--from", "registry"], "no task 'topics'"),
    ):
        assert main(["train", "--quiet", *wrong]) == 2
        assert said in capsys.readouterr().err


def test_update_does_it_all_in_one_process(
    finished: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    shutil.copytree(finished.root, root)
    monkeypatch.chdir(root)
    monkeypatch.delenv("MTLOPS_REGISTRY", raising=False)
    store = Registry("registry")
    store.promote(store.publish(root / "models/candidate"), expect=None, by="test", reason="the first")
    write_window(root / "shift.jsonl")
    settings = [word for setting in ENOUGH for word in ("--set", setting)]
    command = ["update", "--quiet", "--tasks", "topic", "--window", "shift.jsonl", "--promote"]
    assert main([*command, *settings, "--set", "gates.max_drop=0.001"]) == 6
    assert "so nothing was promoted; reports/decision.json says why" in capsys.readouterr().err
    with store.retraining(["topic"]):
        assert main([*command, *settings]) == 5
    assert "retrained already" in capsys.readouterr().err
    assert len(store.history()) == 1
    assert main([*command, *settings, "--json", "--reason", "alert-7"]) == 0
    done = json.loads(capsys.readouterr().out)
    assert list(done) == ["train", "evaluate", "export", "promote"]
    assert (done["evaluate"]["verdict"], done["promote"]["version"]) == ("PROMOTE", 2)
    champion = store.champion()
    assert champion is not None
    assert (champion.bundle_id, champion.reason) == (done["export"]["bundle_id"], "alert-7")
    assert main(["train", "--quiet", "--tasks", "topic", "--from", str(champion.previous), *settings]) == 0
    for step in ("evaluate", "export"):
        assert main([step, "--quiet", *settings]) == 0
    assert Bundle.open(root / "models/candidate").id == champion.bundle_id, "the steps one by one make another bundle"


def test_a_blend_lies_between_parent_and_update(project: Project) -> None:
    one_epoch = ("retrain.epochs=1", "retrain.fewest_steps=1")
    update = project.train(project.params(*one_epoch, "retrain.blend=1"), out="models/update")
    blended = project.train(project.params(*one_epoch, "retrain.blend=0.25"), out="models/blended")
    store = Registry(project.registry)
    parent = store.fetch(store.champion().bundle_id, project.work.root / "fetched")  # type: ignore[union-attr]
    folders = parent, update, blended
    before, whole, quarter = (load_file(folder / "tasks/topic/head.safetensors")["head.weight"] for folder in folders)
    assert np.allclose(quarter, 0.75 * before + 0.25 * whole, atol=1e-6)
    assert read_json(blended / "lineage.json", made_by="")["blend"] == 0.25
