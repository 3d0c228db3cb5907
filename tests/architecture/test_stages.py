"""dvc.yaml names what each step really uses."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from mtlops.params import Params
from tests.architecture.stages import ROOT, STEPS, modules_of, sections_of, source_of

STAGES: dict[str, Any] = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
WITH_TIMES = {"reports/training.json", "reports/export.json"}


def test_stages_are_the_steps() -> None:
    assert tuple(STAGES) == STEPS
    assert [stage["cmd"] for stage in STAGES.values()] == [f"${{mtlops}} {step}" for step in STEPS]


@pytest.mark.parametrize("step", STEPS)
def test_deps_cover_the_code_of_the_step(step: str) -> None:
    needed = {source_of(module).as_posix() for module in modules_of(step)}
    named = {dep for dep in STAGES[step]["deps"] if dep.startswith("mtlops")}
    missing = sorted(file for file in needed if not any(_covers(dep, file) for dep in named))
    assert not missing, f"add to the deps of stage {step} in dvc.yaml: {missing}"


@pytest.mark.parametrize("step", [step for step in STEPS if step != "export"])
def test_deps_name_no_other_code(step: str) -> None:
    needed = {source_of(module).as_posix() for module in modules_of(step)}
    named = [dep for dep in STAGES[step]["deps"] if dep.startswith("mtlops") and Path(dep).suffix in ("", ".py")]
    assert all((ROOT / dep).exists() for dep in named)
    idle = [dep for dep in named if not any(_covers(dep, file) for file in needed)]
    assert not idle, f"remove from the deps of stage {step} in dvc.yaml: {idle}"


@pytest.mark.parametrize("step", STEPS)
def test_params_are_the_sections_that_the_step_reads(step: str) -> None:
    assert set(STAGES[step]["params"]) == sections_of(step)


def test_params_yaml_has_every_section() -> None:
    for path in ("params.yaml", "tests/data_files/params.yaml"):
        sections = yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))
        assert set(sections) == set(Params.model_fields), f"{path}: DVC refuses to run without a section"


def test_no_stage_depends_on_times() -> None:
    assert not WITH_TIMES & {dep for stage in STAGES.values() for dep in stage["deps"]}


def test_every_report_has_its_page() -> None:
    for stage in STAGES.values():
        for report in stage.get("metrics", []):
            assert str(Path(report).with_suffix(".html")) in stage["outs"]


def _covers(dep: str, file: str) -> bool:
    return file == dep or file.startswith(f"{dep}/")
