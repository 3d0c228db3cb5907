"""The loop on DVC: a labelled window becomes a revision of the data, and its commit reproduces the updated bundle."""

import json
import shutil
from pathlib import Path

import pytest

from mtlops.bundle import Bundle
from tests.clones import Clone, set_value
from tests.steps.test_updates import ENOUGH
from tests.tiny_window import write_window

pytestmark = pytest.mark.e2e


def test_a_commit_reproduces_the_updated_bundle(clone: Clone, tmp_path: Path) -> None:
    shutil.copytree(clone.folder, tmp_path / "project", symlinks=True)
    project = Clone(tmp_path / "project")
    folder, params = project.folder, project.folder / "params.yaml"
    mtlops = f"{Path('.venv/bin/mtlops')}"
    project.run(mtlops, "promote", "--quiet")
    parent = Bundle.open(folder / "models/candidate").id

    write_window(folder / "shift.jsonl")
    project.run(mtlops, "admit", "shift.jsonl", "--tasks", "topic", "--alert", "alert-7", "--quiet")
    project.run(".venv/bin/dvc", "add", "--quiet", "data/windows/shift")
    (folder / "shift.jsonl").unlink()
    set_value(params, "data:\n", "data:\n  labelled: [data/windows/shift]\n")
    set_value(params, "retrain: {}\n", f"retrain:\n  tasks: [topic]\n  parent: '{parent}'\n")
    for override in ENOUGH:
        section, _, value = override.partition(".")
        key, _, value = value.partition("=")
        _set(params, section, key, value)
    project.run(".venv/bin/dvc", "repro", "--quiet")
    made = Bundle.open(folder / "models/candidate")
    assert made.manifest["parent"] == parent
    assert made.manifest["lineage"]["windows"]["shift"]["alert"] == "alert-7"
    assert json.loads((folder / "reports/decision.json").read_text())["verdict"] == "PROMOTE"
    project.run(mtlops, "promote", "--quiet")
    assert "up to date" in project.run(".venv/bin/dvc", "repro")
    project.commit("topic learns the shift")

    project.run("git", "checkout", "--quiet", "HEAD~1")
    project.run(".venv/bin/dvc", "checkout", "--quiet", code=None)
    project.run("git", "checkout", "--quiet", "main")
    for out in ("models", "data/prepared", "data/windows/shift", "data/cache"):
        shutil.rmtree(folder / out, ignore_errors=True)
    project.run(".venv/bin/dvc", "checkout", "--quiet", "data/windows/shift.dvc")
    project.run(".venv/bin/dvc", "repro", "--quiet", "--force", "--no-run-cache")
    assert Bundle.open(folder / "models/candidate").id == made.id


def _set(params: Path, section: str, key: str, value: str) -> None:
    text = params.read_text(encoding="utf-8")
    inner = f"\n{section}:\n"
    start = text.index(inner) + len(inner)
    end = text.find("\n\n", start)
    lines = [line for line in text[start:end].splitlines() if not line.startswith(f"  {key}:")]
    params.write_text(text[:start] + "\n".join([*lines, f"  {key}: {value}"]) + text[end:], encoding="utf-8")
