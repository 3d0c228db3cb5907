"""Git tags stand at commits whose dvc.lock names the bundle, and dvc finds the bundle by them."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml

from mtlops.bundle import Bundle
from mtlops.cli import main
from mtlops.errors import ArtefactError, UsageError
from mtlops.git_tags import dvc_digest, plan_tags
from tests.clones import ROOT, Clone, same_files
from tests.small_bundles import make_bundle, write_reports

STAGES = {
    "stages": {"export": {"cmd": "true", "outs": ["models/candidate"]}},
    "artifacts": yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["artifacts"],
}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A repository with a bundle that DVC knows, committed."""
    project = Clone(tmp_path_factory.mktemp("original") / "project", library=ROOT)
    make_bundle(project.folder / "models/candidate", tasks={"topic": 1})
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump(STAGES), encoding="utf-8")
    project.run("git", "init", "--quiet")
    project.run("dvc", "init", "--quiet")
    commit(project)
    return project


@pytest.fixture
def project(original: Clone, tmp_path: Path) -> Clone:
    return Clone(shutil.copytree(original.folder, tmp_path / "project", symlinks=True), library=ROOT)


def commit(project: Clone) -> None:
    project.run("dvc", "commit", "--quiet", "--force")
    project.commit("bundle")


def promote(project: Clone, *options: str, champion: str | None = None) -> int:
    bundle = project.folder / "models/candidate"
    paths = write_reports(project.folder / "reports", bundle, champion=champion)
    arguments = [f"--{name}={path}" for name, path in paths.items()]
    arguments += [f"--bundle={bundle}", f"--registry={project.folder / 'registry'}", "--quiet", "--git-tag", *options]
    return main(["promote", *arguments])


def tags(project: Clone) -> list[str]:
    return project.run("git", "tag", "--list").split()


@pytest.mark.slow
def test_dvc_finds_the_promoted_bundle(
    project: Clone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@localhost")
    first = Bundle.open(project.folder / "models/candidate").id
    assert promote(project) == 0
    assert "git tag bundle#prod#1" in capsys.readouterr().out
    assert tags(project) == ["bundle#prod#1", "bundle@v0.0.1"]
    assert first in project.run("git", "tag", "-n", "--list", "bundle@v0.0.1")
    assert promote(project) == 0
    assert tags(project) == ["bundle#prod#1", "bundle@v0.0.1"]

    make_bundle(project.folder / "models/candidate", tasks={"topic": 2})
    commit(project)
    assert promote(project, champion=first) == 0
    assert tags(project) == ["bundle#prod#1", "bundle#prod#2", "bundle@v0.0.1", "bundle@v0.0.2"]
    got = tmp_path / "got"
    project.run("dvc", "artifacts", "get", ".", "bundle", "--stage", "prod", "--out", str(got))
    same_files([got, project.folder / "models/candidate"])
    project.run("dvc", "artifacts", "get", ".", "bundle", "--rev", "v0.0.1", "--out", str(tmp_path / "old"))
    assert Bundle.open(tmp_path / "old").id == first


def test_bundle_that_head_does_not_name_is_neither_tagged_nor_promoted(
    project: Clone, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bundle(project.folder / "models/candidate", tasks={"topic": 2})
    assert promote(project) == 4
    assert "dvc.lock at HEAD: names another content of models/candidate" in capsys.readouterr().err
    project.run("dvc", "commit", "--quiet", "--force")
    assert promote(project) == 4
    assert tags(project) == []
    assert not (project.folder / "registry").exists()


def test_digest_is_that_of_dvc(project: Clone) -> None:
    lock = yaml.safe_load((project.folder / "dvc.lock").read_text(encoding="utf-8"))
    assert dvc_digest(project.folder / "models/candidate") == lock["stages"]["export"]["outs"][0]["md5"]


def test_what_is_missing_is_said(project: Clone, tmp_path: Path) -> None:
    bundle = project.folder / "models/candidate"
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump(STAGES | {"artifacts": {}}), encoding="utf-8")
    project.commit("no artifacts")
    with pytest.raises(UsageError, match="names no artifact with path models/candidate"):
        plan_tags(bundle)
    project.run("git", "rm", "--quiet", "--cached", "dvc.lock")
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump(STAGES), encoding="utf-8")
    (project.folder / "dvc.lock").rename(tmp_path / "dvc.lock")
    project.commit("no lock")
    with pytest.raises(ArtefactError, match="dvc.lock: is not in git"):
        plan_tags(bundle)
    make_bundle(tmp_path / "bundle")
    with pytest.raises(UsageError, match="lies in no git repository"):
        plan_tags(tmp_path / "bundle")


def test_without_gto_it_says_what_to_install(project: Clone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scmrepo.git", None)
    with pytest.raises(UsageError, match=r"Install `mtlops\[pipelines\]`"):
        plan_tags(project.folder / "models/candidate")
