"""The compiled pipeline says what it should, and is the one that is committed."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf import json_format
from kfp.kubernetes import kubernetes_executor_config_pb2
from kfp.pipeline_spec import pipeline_spec_pb2

from components.image import IMAGE
from mtlops import __version__
from mtlops.errors import ArtefactError, UsageError
from pipelines.__main__ import main
from pipelines.compiling import COMPILED, check_compiled, compile_text, without_cached_data
from pipelines.training import RESOURCES
from tests.clones import ROOT

TEXT = compile_text(IMAGE)
PIPELINE, PLATFORM = yaml.safe_load_all(TEXT)
EDGES = {
    "prepare": set(),
    "validate": {"prepare"},
    "train": {"prepare", "validate"},
    "evaluate": {"prepare", "train"},
    "for-loop-1": {"evaluate"},
    "export": {"prepare", "train", "evaluate"},
    "condition-2": {"evaluate", "export"},
}


def executors(text: str = TEXT) -> dict[str, Any]:
    found: dict[str, Any] = next(yaml.safe_load_all(text))["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): value["container"] for name, value in found.items()}


def platform(text: str = TEXT) -> dict[str, Any]:
    found: dict[str, Any] = list(yaml.safe_load_all(text))[1]["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    return {name.removeprefix("exec-"): value for name, value in found.items()}


def test_committed_pipeline_is_up_to_date() -> None:
    check_compiled(TEXT, path=ROOT / COMPILED)


def test_every_compilation_gives_the_same_ascii_bytes() -> None:
    program = f"from pipelines.compiling import compile_text; print(compile_text({IMAGE!r}), end='')"
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", program]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, check=True)
        assert done.stdout == TEXT.encode("ascii")


def test_strict_parse_finds_no_unknown_field() -> None:
    spec = pipeline_spec_pb2.PipelineSpec()
    json_format.ParseDict(PIPELINE, spec, ignore_unknown_fields=False)
    deployment = pipeline_spec_pb2.PipelineDeploymentConfig()
    json_format.ParseDict(PIPELINE["deploymentSpec"], deployment, ignore_unknown_fields=False)
    json_format.ParseDict(PLATFORM, pipeline_spec_pb2.PlatformSpec(), ignore_unknown_fields=False)
    for executor in platform().values():
        config = kubernetes_executor_config_pb2.KubernetesExecutorConfig()
        json_format.ParseDict(executor, config, ignore_unknown_fields=False)


def test_tasks_wait_for_what_they_need() -> None:
    tasks = PIPELINE["root"]["dag"]["tasks"]
    assert {name: set(task.get("dependentTasks", [])) for name, task in tasks.items()} == EDGES


def test_promotion_alone_depends_on_registry_and_verdict() -> None:
    tasks = PIPELINE["root"]["dag"]["tasks"]
    conditions = {name: task["triggerPolicy"]["condition"] for name, task in tasks.items() if "triggerPolicy" in task}
    assert conditions == {"condition-2": "inputs.parameter_values['pipelinechannel--registry'] != ''"}
    [(name, inner)] = PIPELINE["components"]["comp-condition-2"]["dag"]["tasks"].items()
    assert inner["triggerPolicy"]["condition"] == (
        "inputs.parameter_values['pipelinechannel--evaluate-verdict'] == 'PROMOTE'"
    )
    [promote] = PIPELINE["components"][f"comp-{name}"]["dag"]["tasks"].values()
    assert promote["componentRef"]["name"] == "comp-promote"
    assert not promote["cachingOptions"].get("enableCache")


def test_pipeline_parameters_are_the_contract() -> None:
    parameters = set(PIPELINE["root"]["inputDefinitions"]["parameters"])
    assert parameters == {
        "data_repo", "data_rev", "params", "tasks", "reason", "registry", "data_md5", "code_digest",
    }  # fmt: skip
    outputs = PIPELINE["root"]["outputDefinitions"]
    assert (set(outputs["artifacts"]), set(outputs["parameters"])) == ({"bundle"}, {"verdict"})


@pytest.mark.parametrize("step", ["validate", "train", "evaluate", "export"])
def test_later_tasks_are_keyed_by_what_prepare_made(step: str) -> None:
    parameters = PIPELINE["root"]["dag"]["tasks"][step]["inputs"]["parameters"]
    assert parameters["data_md5"]["taskOutputParameter"] == {
        "outputParameterKey": "data_md5",
        "producerTask": "prepare",
    }
    assert parameters["code_digest"]["componentInputParameter"] == "code_digest"


def test_judging_is_never_cached() -> None:
    tasks = PIPELINE["root"]["dag"]["tasks"]
    cached = {name for name, task in tasks.items() if task.get("cachingOptions", {}).get("enableCache")}
    assert cached == {"prepare", "validate", "train"}


def test_every_task_has_the_image_and_its_resources() -> None:
    assert f"mtlops:{__version__}" == IMAGE
    for name, container in executors().items():
        assert container["image"] == IMAGE
        asked = container["resources"]
        assert (asked["resourceCpuRequest"], asked["resourceMemoryRequest"]) == RESOURCES[name]


def test_training_alone_gets_shared_memory() -> None:
    mounts = {name: executor.get("emptyDirMounts", []) for name, executor in platform().items()}
    assert mounts == {"train": [{"medium": "Memory", "mountPath": "/dev/shm", "volumeName": "shm"}]}


def test_accelerator_only_when_asked_for() -> None:
    assert "accelerator" not in TEXT
    text = compile_text(IMAGE, accelerator="nvidia.com/gpu")
    with_one = {name for name, container in executors(text).items() if "accelerator" in container["resources"]}
    assert with_one == {"train"}
    accelerator = executors(text)["train"]["resources"]["accelerator"]
    assert (accelerator["resourceType"], accelerator["resourceCount"]) == ("nvidia.com/gpu", "1")
    assert platform(text)["train"]["tolerations"] == [
        {"effect": "NoSchedule", "key": "nvidia.com/gpu", "operator": "Exists"}
    ]


def test_without_cached_data_changes_prepare_alone() -> None:
    pipeline, platform_spec = yaml.safe_load_all(without_cached_data(TEXT))
    assert platform_spec == PLATFORM
    assert pipeline["root"]["dag"]["tasks"]["prepare"].pop("cachingOptions") == {}
    expected = next(yaml.safe_load_all(TEXT))
    del expected["root"]["dag"]["tasks"]["prepare"]["cachingOptions"]
    assert pipeline == expected


@pytest.mark.parametrize(
    "image", ["mtlops:latest", "mtlops", "registry.local:5000/mtlops", "", "a b:1", "mtlops@sha256:12"]
)
def test_moving_image_is_refused(image: str) -> None:
    with pytest.raises(UsageError, match="no fixed version"):
        compile_text(image)


@pytest.mark.parametrize("image", ["registry.local:5000/team/mtlops:0.1.0", f"mtlops@sha256:{'0' * 64}"])
def test_fixed_image_is_taken(image: str) -> None:
    assert {container["image"] for container in executors(compile_text(image)).values()} == {image}


@pytest.mark.slow
def test_compile_command_takes_the_image_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLOPS_IMAGE", "other:7")
    monkeypatch.setenv("MTLOPS_ACCELERATOR", "amd.com/gpu")
    out = tmp_path / "training.yaml"
    assert main(["compile", "--out", str(out)]) == 0
    assert "other:7" in out.read_text()
    assert "amd.com/gpu" in out.read_text()
    assert main(["compile", "--out", str(out), "--check"]) == 0
    monkeypatch.setenv("MTLOPS_IMAGE", "other:8")
    assert main(["compile", "--out", str(out), "--check"]) == 4
    monkeypatch.setenv("MTLOPS_IMAGE", "other:latest")
    assert main(["compile", "--out", str(out)]) == 2


def test_missing_compiled_pipeline_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="python -m pipelines compile"):
        check_compiled(TEXT, path=tmp_path / "training.yaml")
