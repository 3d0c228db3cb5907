"""The continuous pipeline: as it is compiled, and run here: it gives the bundle that the command line gives."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from components.image import IMAGE
from mtlops.bundle import Bundle
from mtlops.cli import main as mtlops
from mtlops.errors import UsageError
from mtlops.registry import Registry
from pipelines.__main__ import main
from pipelines.compiling import check_compiled, compile_text, compiled_path
from pipelines.requests import WindowRequest, read_request, with_window
from tests.clones import ROOT
from tests.steps.test_updates import ENOUGH
from tests.tiny_suite import Workspace, make_workspace, run_all
from tests.tiny_window import posts, write_window

TEXT = compile_text(IMAGE, pipeline="continuous")
DAG = next(yaml.safe_load_all(TEXT))["root"]


def test_committed_pipeline_is_up_to_date_and_ascii() -> None:
    check_compiled(TEXT, path=ROOT / compiled_path("continuous"))
    assert TEXT.isascii()


def test_tasks_wait_for_what_they_need() -> None:
    needs = {name: set(task.get("dependentTasks", ())) for name, task in DAG["dag"]["tasks"].items()}
    assert needs["admit"] == {"prepare"}
    assert needs["validate"] == {"admit"}
    assert needs["train"] == {"admit", "prepare", "validate"}
    assert needs["condition-2"] == {"evaluate", "export"}
    assert "cachingOptions" in DAG["dag"]["tasks"]["prepare"]
    assert not DAG["dag"]["tasks"]["train"]["cachingOptions"]


def test_parameters_are_those_of_a_request() -> None:
    assert set(DAG["inputDefinitions"]["parameters"]) == set(WindowRequest.__dataclass_fields__)


def test_a_request_without_what_it_needs_is_refused(tmp_path: Path) -> None:
    work = make_workspace(tmp_path / "project")
    write_window(work.root / "shift.jsonl")
    for tasks, window, registry, said in (
        ("", "shift.jsonl", "r", "give --tasks"),
        ("topic", "", "r", "give --window"),
        ("topic", "shift.jsonl", "", "give --registry"),
        ("topic", "gone.jsonl", "r", "not found"),
    ):
        request = read_request(work.params_file, tasks=tasks, registry=registry, data_repo=str(work.root))
        with pytest.raises(UsageError, match=said):
            with_window(request, window)


def test_a_request_names_the_content_of_its_window(tmp_path: Path) -> None:
    work = make_workspace(tmp_path / "project")
    digests = []
    for rows in (posts(), posts(), posts()[1:]):
        write_window(work.root / "shift.jsonl", rows)
        request = read_request(work.params_file, tasks="topic", registry="r", data_repo=str(work.root))
        digests.append(with_window(request, "shift.jsonl").window_md5)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.e2e
def test_it_updates_the_champion_as_the_command_line_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    work = make_workspace(tmp_path / "project")
    run_all(work)
    registry = str(work.root / "registry")
    first = Registry(registry).publish(work.bundle)
    Registry(registry).promote(first, expect=None, by="test", reason="the first")
    write_window(work.root / "shift.jsonl")
    sets = [word for override in ENOUGH for word in ("--set", override)]

    bundle = _by_command_line(work, sets, registry, monkeypatch)

    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("MTLOPS_WORK", str(work.root / "work"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    code = main([
        "run", "--pipeline", "continuous", "--tasks", "topic", "--window", "shift.jsonl", "--reason", "alert-7",
        "--registry", registry, "--params", str(work.params_file), *sets, "--quiet", "--json",
        "--workspace", str(work.root / "runs"), "--out", str(work.root / "piped"),
    ])  # fmt: skip
    assert code == 0, capsys.readouterr().err
    done = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [task["name"] for task in done["tasks"] if task["name"] == "show"] == ["show"]  # of the one task
    assert done["verdict"] == "PROMOTE"
    assert Bundle.open(work.root / "piped").id == bundle.id
    champion = Registry(registry).champion()
    assert champion is not None
    assert (champion.bundle_id, champion.previous, champion.reason) == (bundle.id, first, "alert-7")


def _by_command_line(work: Workspace, sets: list[str], registry: str, monkeypatch: pytest.MonkeyPatch) -> Bundle:
    monkeypatch.chdir(work.root)
    update = ["--tasks", "topic", "--from", "registry", "--window", "shift.jsonl"]
    for command in (["train", *update], ["evaluate"], ["export"]):
        assert mtlops([*command, "--quiet", "--registry", registry, *sets]) == 0
    return Bundle.open(work.bundle)


@pytest.mark.slow
@pytest.mark.e2e
def test_a_schedule_and_an_alert_at_once_give_one_run(tmp_path: Path) -> None:
    work = make_workspace(tmp_path / "project")
    run_all(work)
    registry = Registry(str(work.root / "registry"))
    registry.promote(registry.publish(work.bundle), expect=None, by="test", reason="the first")
    write_window(work.root / "shift.jsonl")
    sets = [word for override in ENOUGH for word in ("--set", override)]
    command = [
        sys.executable, "-m", "pipelines", "run", "--pipeline", "continuous", "--tasks", "topic", "--window",
        "shift.jsonl", "--registry", registry.url, "--params", str(work.params_file), *sets, "--quiet",
    ]  # fmt: skip
    both = [
        subprocess.Popen(
            [*command, "--reason", who, "--workspace", str(tmp_path / who), "--out", str(tmp_path / f"{who}-bundle")],
            cwd=ROOT, env=os.environ | {"MTLOPS_WORK": str(work.root / "work")}, stderr=subprocess.PIPE, text=True,
        )
        for who in ("schedule", "alert")
    ]  # fmt: skip
    said = [process.communicate(timeout=600)[1] for process in both]
    codes = [process.returncode for process in both]
    assert sorted(codes) == [0, 5], said
    assert "topic is being retrained already" in said[codes.index(5)]
    assert len(registry.history()) == 2
