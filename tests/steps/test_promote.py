"""promote: only what the gate, the limits and the registry all agree on becomes champion."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from mtlops.bundle import Bundle, diff
from mtlops.errors import ArtefactError, UsageError, VerdictError
from mtlops.files import read_json, write_json
from mtlops.registry import ChampionChangedError, Registry
from mtlops.signatures import Verifier
from mtlops.steps.evaluate import evaluate
from mtlops.steps.export import export
from mtlops.steps.promote import Promoted, promote
from mtlops.steps.train import train
from tests.small_bundles import make_bundle, write_reports
from tests.tiny_suite import Workspace


class Project:
    """A folder with a bundle, its reports and a registry."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.bundle, self.registry = folder, folder / "candidate", str(folder / "registry")

    def export(self, *, topic: int, champion: str | None = None, verdict: str = "PROMOTE") -> str:
        """Makes a new candidate; the manifest says what the decision says."""
        shutil.rmtree(self.bundle, ignore_errors=True)
        bundle_id = make_bundle(self.bundle, tasks={"topic": topic}, verdict=verdict)
        write_reports(self.folder, self.bundle, champion=champion, verdict=verdict)
        return bundle_id

    def change(self, report: str, **facts: object) -> None:
        path = self.folder / f"{report}.json"
        write_json(path, read_json(path, made_by="") | facts)

    def promote(self, **options: object) -> Promoted:
        paths = {"decision": self.folder / "decision.json", "export": self.folder / "export.json"}
        return promote(registry=self.registry, bundle=self.bundle, **paths, **options)  # type: ignore[arg-type]

    def champion(self) -> str | None:
        entry = Registry(self.registry).champion()
        return entry.bundle_id if entry else None


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_real_bundle_becomes_champion(finished: Workspace, tmp_path: Path) -> None:
    reports = shutil.copytree(finished.root / "reports", tmp_path / "reports")
    promoted = promote(
        registry=str(tmp_path / "registry"), bundle=finished.bundle,
        decision=reports / "decision.json", export=reports / "export.json", by="ann",
    )  # fmt: skip
    assert promoted.bundle_id == Bundle.open(finished.bundle).id
    assert (promoted.version, promoted.previous, promoted.is_new, promoted.tags) == (1, None, True, ())
    [entry] = Registry(tmp_path / "registry").history()
    decision = json.loads((reports / "decision.json").read_text())
    assert (entry.by, entry.verdict, entry.reason) == ("ann", "PROMOTE", decision["reasons"][0])
    assert entry.report is not None
    assert entry.report["decision"] == decision
    assert entry.report["export"]["bundle"]["id"] == promoted.bundle_id


@pytest.mark.slow
def test_retrained_task_adds_its_own_files_and_the_graph_only(finished: Workspace, tmp_path: Path) -> None:
    registry = Registry(tmp_path / "registry")
    before = registry.publish(finished.bundle)
    work = Workspace(Path(shutil.copytree(finished.root, tmp_path / "work")))
    params, other = work.params(), work.params("train.seed=1").only(["topic"])
    train(other, **work.paths("prepared", "encoder", "cache"), out=tmp_path / "topic", report=tmp_path / "t.json")
    for path in (tmp_path / "topic/tasks/topic").iterdir():
        shutil.copyfile(path, work.root / "models/trained/tasks/topic" / path.name)
    evaluate(params, **work.paths("prepared", "encoder", "trained", "cache", "decision"), report=tmp_path / "e.json")
    arguments = work.paths("prepared", "encoder", "trained", "cache", "decision")
    export(params, **arguments, evaluation=tmp_path / "e.json", out=work.bundle, report=tmp_path / "x.json")

    after = registry.publish(work.bundle)
    bundles = {bundle.id: bundle for bundle in registry.bundles()}
    own = {name for name, file in bundles[after].files.items() if file.bundles == 1}
    assert after != before
    assert {"tasks/topic/adapter.safetensors", "tasks/topic/head.safetensors", "model.onnx", "golden.json"} <= own
    whole_suite = {"model.onnx", "golden.json", "card.md"}
    assert {name for name in own - whole_suite if not name.startswith(("tasks/topic/", "reference/topic/"))} == set()
    added = sum(bundles[after].files[name].bytes for name in own) + (work.bundle / "manifest.json").stat().st_size
    assert bundles[after].added_bytes == added
    parts = diff(Bundle.open(finished.bundle), Bundle.open(work.bundle))
    assert {name for name, part in parts.items() if part.files != "identical"} == {"topic"}


def test_next_champion_was_compared_with_the_last(project: Project) -> None:
    first = project.export(topic=1)
    project.promote()
    second = project.export(topic=2, champion=first)
    promoted = project.promote(reason="new data")
    assert (promoted.bundle_id, promoted.previous, promoted.version) == (second, first, 2)
    assert Registry(project.registry).history()[1].reason == "new data"


def test_promoting_twice_is_the_same_as_once(project: Project) -> None:
    first = project.export(topic=1)
    assert project.promote().is_new
    again = project.promote()
    assert (again.bundle_id, again.version, again.is_new) == (first, 1, False)


@pytest.mark.parametrize("verdict", ["HOLD", "REJECT"])
def test_other_verdicts_are_refused_before_anything_is_published(project: Project, verdict: str) -> None:
    project.export(topic=1, verdict=verdict)
    with pytest.raises(VerdictError, match=f"the verdict is {verdict}: all good To overrule it: --force"):
        project.promote()
    assert not Path(project.registry).exists()


def test_force_is_written_into_the_history(project: Project) -> None:
    bundle_id = project.export(topic=1, verdict="REJECT")
    with pytest.raises(UsageError, match="--force needs --reason"):
        project.promote(force=True)
    assert project.promote(force=True, reason="the old one is down").bundle_id == bundle_id
    [entry] = Registry(project.registry).history()
    assert (entry.verdict, entry.reason) == ("REJECT", "forced over REJECT: the old one is down")


def test_broken_limit_is_refused_unless_forced(project: Project) -> None:
    project.export(topic=1)
    project.change("export", limits={"passed": False, "reasons": ["12 ms are more than 10."]})
    with pytest.raises(VerdictError, match="the bundle breaks a limit: 12 ms are more than 10."):
        project.promote()
    assert project.promote(force=True, reason="why").is_new


def test_report_without_limits_is_refused(project: Project) -> None:
    project.export(topic=1)
    write_json(project.folder / "export.json", {"bundle": {"id": Bundle.open(project.bundle).id}})
    with pytest.raises(ArtefactError, match="says nothing about limits"):
        project.promote()


def test_decision_against_another_champion_is_stale(project: Project) -> None:
    first = project.export(topic=1)
    project.promote()
    project.export(topic=2, champion=None)
    with pytest.raises(ChampionChangedError, match=f"was made against champion none, but .* it is {first}. Run"):
        project.promote()
    assert Registry(project.registry).ids() == [first]
    project.promote(force=True, reason="it must be")
    third = project.export(topic=3, champion=first)
    with pytest.raises(ChampionChangedError, match=f"was made against champion {first}, but"):
        project.promote()
    assert project.champion() != third


def test_reports_about_another_bundle_are_refused_even_by_force(project: Project) -> None:
    project.export(topic=1)
    project.change("export", bundle={"id": "0" * 16})
    for options in ({}, {"force": True, "reason": "why"}):
        with pytest.raises(ArtefactError, match="is about bundle 0000000000000000, but"):
            project.promote(**options)
    project.export(topic=1)
    tasks = read_json(project.folder / "decision.json", made_by="")["tasks"]
    tasks["topic"]["verdict"] = "HOLD"
    project.change("decision", tasks=tasks)
    with pytest.raises(ArtefactError, match=r"says PROMOTE \(mood PROMOTE, topic HOLD\), but .* was exported with"):
        project.promote()
    assert project.champion() is None


def test_removed_task_is_in_the_decision_only(project: Project) -> None:
    project.export(topic=1)
    tasks = read_json(project.folder / "decision.json", made_by="")["tasks"]
    project.change("decision", tasks=tasks | {"gone": {"verdict": "PROMOTE", "reasons": [], "kind": "removed"}})
    assert project.promote().is_new


@pytest.mark.parametrize("name", ["decision.json", "export.json", "candidate/manifest.json"])
@pytest.mark.parametrize("content", [None, "", "{}"])
def test_missing_and_damaged_inputs_are_named(project: Project, name: str, content: str | None) -> None:
    project.export(topic=1)
    (project.folder / name).unlink()
    if content is not None:
        (project.folder / name).write_text(content)
    with pytest.raises(ArtefactError, match=name):
        project.promote()


def test_damaged_bundle_is_not_promoted(project: Project) -> None:
    project.export(topic=1)
    (project.bundle / "model.onnx").write_bytes(b"")
    with pytest.raises(ArtefactError, match="model.onnx: its sha256 is not the one"):
        project.promote()
    assert not Path(project.registry).exists()


def test_a_bundle_is_signed_before_it_becomes_champion_and_a_wrong_key_changes_nothing(
    project: Project, tmp_path: Path
) -> None:
    project.export(topic=1)
    key = tmp_path / "key.pem"
    with pytest.raises(UsageError, match="key.pem: cannot be read"):
        project.promote(sign=key)
    assert project.champion() is None
    subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", key], check=True)
    promoted = project.promote(sign=key)
    subprocess.run(["openssl", "pkey", "-in", key, "-pubout", "-out", tmp_path / "pub"], check=True)
    verifying = Registry(project.registry, verifier=Verifier(tmp_path / "pub"))
    assert verifying.manifest(promoted.bundle_id)["verdict"] == "PROMOTE"
