"""The profiling pipeline: as it is compiled, and run here part by part; its report is that of the commands."""

import json
from pathlib import Path

import pytest
import yaml

from components.image import IMAGE
from mtlops.bundle import Bundle
from mtlops.files import read_json
from mtlops.registry import Registry
from mtlops.steps.log_parts import merge_log, profile_log
from pipelines.__main__ import main
from pipelines.compiling import check_compiled, compile_text, compiled_path
from pipelines.requests import LogRequest
from tests.clones import ROOT
from tests.watch.logs import MOOD, World, Writer, write_bundle

TEXT = compile_text(IMAGE, pipeline="profiling")
DAG = next(yaml.safe_load_all(TEXT))["root"]
PARAMS = """
suite:
  name: small
  tasks:
    mood: {kind: multiclass, source: a.csv, label: mood, classes: [bad, fair, good]}
"""


def test_committed_pipeline_is_up_to_date_and_ascii() -> None:
    check_compiled(TEXT, path=ROOT / compiled_path("profiling"))
    assert TEXT.isascii()


def test_its_parameters_are_those_of_a_request_and_merge_waits_for_every_part() -> None:
    assert set(DAG["inputDefinitions"]["parameters"]) == set(LogRequest.__dataclass_fields__)
    tasks = DAG["dag"]["tasks"]
    assert set(tasks) == {"for-loop-1", "merge"} and tasks["merge"]["dependentTasks"] == ["for-loop-1"]
    assert not tasks["merge"]["cachingOptions"]


@pytest.mark.parametrize(
    "missing, said",
    [("--log", "give --log URL"), ("--registry", "give --registry"), ("--since", "give --since"),
     ("--until", "give --until")],
)  # fmt: skip
def test_what_is_missing_is_said(missing: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS)
    given = {"--log": "log", "--registry": "registry", "--since": "2026-03-01", "--until": "2026-03-02"}
    options = [word for pair in given.items() if pair[0] != missing for word in pair]
    assert main(["run", "--pipeline", "profiling", "--params", str(tmp_path / "params.yaml"), *options]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.e2e
def test_run_here_it_gives_the_report_of_a_single_pass(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    bundle: Bundle = write_bundle(tmp_path / "bundle")
    registry = Registry(str(tmp_path / "registry"))
    registry.publish(bundle.folder)
    registry.promote(bundle.id, expect=None, by="test", reason="first")
    writer = Writer(tmp_path / "log", bundle.id, per_day=600.0)
    for seed in range(6):
        writer.traffic(World(seed, shift=1.0 if seed > 2 else 0.0), 100, tasks=[MOOD])
    (tmp_path / "params.yaml").write_text(PARAMS)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(ROOT)
    arguments = ["--log", str(tmp_path / "log"), "--registry", str(tmp_path / "registry"), "--since", "2026-03-01",
                 "--until", "2026-03-01"]  # fmt: skip
    assert main(["run", "--pipeline", "profiling", "--params", str(tmp_path / "params.yaml"), "--parts", "3",
                 "--workspace", str(tmp_path / "runs"), "--out", str(tmp_path / "out"), "--quiet", "--json",
                 *arguments]) == 0  # fmt: skip
    done = json.loads(capsys.readouterr().out)
    assert sorted(task["name"] for task in done["tasks"]) == ["merge", "profile", "profile", "profile"]
    profile_log(log=str(tmp_path / "log"), part="1/1", since="2026-03-01", until="2026-03-01", out=tmp_path / "whole",
                bundle=bundle.folder)  # fmt: skip
    from mtlops.params import read_params

    single = merge_log(read_params(tmp_path / "params.yaml"), parts=[tmp_path / "whole"], log=str(tmp_path / "log"),
                       bundle=bundle.folder, report=tmp_path / "single/drift.json")  # fmt: skip
    report = read_json(tmp_path / "out/drift.json", made_by="the pipeline")
    assert report == json.loads(json.dumps(single)) and done["level"] == report["level"] == "drifted"
