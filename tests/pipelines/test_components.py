"""Components called in this process, with real Kubeflow artifacts."""

import json
import re
import shutil
from pathlib import Path

import pytest
from kfp import dsl

from components.prepare import prepare
from components.show import show
from tests.clones import ROOT, Clone, same_files
from tests.tiny_suite import Workspace

PARAMS = (ROOT / "tests/data_files/params.yaml").read_text(encoding="utf-8")


def run_prepare(folder: Path, **arguments: str) -> tuple[str, Path, Path]:
    prepared, encoder = (dsl.Artifact(name=name, uri=str(folder / name)) for name in ("prepared", "encoder"))
    digest = prepare.python_func(prepared=prepared, encoder=encoder, params=PARAMS, **arguments)[0]
    return digest, Path(prepared.path), Path(encoder.path)


@pytest.fixture
def repository(finished: Workspace, tmp_path: Path) -> Clone:
    """A user's data repository: one file in git, one in DVC, an encoder in git."""
    folder = tmp_path / "repository"
    shutil.copytree(finished.root / "data/sources", folder / "data/sources")
    repository = Clone(folder, library=ROOT)
    repository.run("git", "init", "--quiet")
    repository.run("dvc", "init", "--quiet")
    repository.run("dvc", "add", "--quiet", "data/sources/reviews.csv")
    repository.commit("data")
    repository.run("git", "tag", "v1")
    (folder / "data/sources/reviews.csv").unlink()
    (folder / "data/sources/posts.jsonl").write_text("not what v1 holds")
    repository.commit("damage")
    return repository


def test_prepare_reads_a_revision_of_a_data_repository(
    repository: Clone, finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MTLOPS_WORK", str(tmp_path / "work"))
    _, prepared, encoder = run_prepare(tmp_path, data_repo=str(repository.folder), data_rev="v1")
    same_files([prepared, finished.root / "data/prepared"])
    same_files([encoder, finished.root / "data/encoder"])


def test_prepare_reads_a_folder_and_names_its_content(finished: Workspace, tmp_path: Path) -> None:
    digests = [run_prepare(tmp_path / name, data_repo=str(finished.root))[0] for name in ("a", "b")]
    assert digests[0] == digests[1]
    only_topic = run_prepare(tmp_path / "c", data_repo=str(finished.root), tasks="topic")
    assert only_topic[0] != digests[0]
    assert list(json.loads((only_topic[1] / "manifest.json").read_text())["tasks"]) == ["topic"]


def test_show_copies_every_metric_the_confusion_matrix_and_the_page(finished: Workspace, tmp_path: Path) -> None:
    reports = dsl.Artifact(name="reports", uri=str(finished.root / "reports"))
    facts = json.loads((finished.root / "reports/evaluation.json").read_text())["tasks"]
    for task, expected in facts.items():
        metrics, confusion = dsl.Metrics(name="m", uri="m"), dsl.ClassificationMetrics(name="c", uri="c")
        page = dsl.HTML(name="p", uri=str(tmp_path / f"{task}.html"))
        show.python_func(reports=reports, metrics=metrics, confusion=confusion, page=page, task=task)
        assert {name: value["value"] for name, value in expected["metrics"].items()}.items() <= metrics.metadata.items()
        assert bool(confusion.metadata) == bool(expected.get("confusion")), task
        assert "champion_change" not in metrics.metadata
        shown = Path(page.path).read_text(encoding="utf-8")
        assert f"<h1>Evaluation: {task}</h1>" in shown
        assert not [other for other in facts if other != task and f"<h3><span>{other}</span>" in shown]
        assert set(re.findall(r'href="([^"]*)"', shown)) <= {
            f"#{place}" for place in re.findall(r'id="([^"]*)"', shown)
        }


def test_show_logs_the_change_against_the_champion(finished: Workspace, tmp_path: Path) -> None:
    evaluation = json.loads((finished.root / "reports/evaluation.json").read_text())
    task = evaluation["tasks"]["mood"]
    change = {"value": -0.25, "low": -0.5, "high": 0.125}
    task["champion"] = {
        "bundle_id": "0123456789abcdef", "metrics": task["baselines"]["majority"], "change": change,
        "p_better": 0.9, "p_worse": 0.1, "is_identical": False,
    }  # fmt: skip
    evaluation["champion"] = {"bundle_id": "0123456789abcdef", "url": "registry", "removed": []}
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    metrics = dsl.Metrics(name="m", uri="m")
    show.python_func(
        reports=dsl.Artifact(name="reports", uri=str(tmp_path)), metrics=metrics, task="mood",
        confusion=dsl.ClassificationMetrics(name="c", uri="c"), page=dsl.HTML(name="p", uri=str(tmp_path / "p.html")),
    )  # fmt: skip
    logged = [metrics.metadata[f"champion_change{end}"] for end in ("", "_low", "_high")]
    assert logged == list(change.values())
    assert metrics.metadata["champion_macro_f1"] == task["baselines"]["majority"]["macro_f1"]["value"]
    assert "Against the champion" in (tmp_path / "p.html").read_text(encoding="utf-8")
