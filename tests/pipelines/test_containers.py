"""Finding a container engine, and pipelines for another image. tests/test_containers.py runs real containers."""

import inspect
import os
from pathlib import Path

import pytest
import yaml
from kfp.local import docker_task_handler

from components.image import IMAGE
from mtlops.errors import ArtefactError, PlatformError
from pipelines import containers
from pipelines.__main__ import main
from pipelines.compiling import compile_text, image_of, with_image
from pipelines.containers import open_containers
from tests.clones import ROOT

PARAMS = str(ROOT / "tests/data_files/params.yaml")


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without an engine; returns the only folder in which programs are looked for."""
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setattr(containers, "_sockets", lambda: [tmp_path / "docker.sock"])
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def open_and_close(folder: Path) -> None:
    with open_containers(IMAGE, data=None, work=folder):
        pass


def test_engine_that_does_not_answer_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(PlatformError, match=r"none\.sock: no container engine answers"):
        open_and_close(tmp_path)
    assert os.environ["DOCKER_HOST"].endswith("none.sock")


def test_machine_without_an_engine_is_said(nowhere: Path) -> None:
    with pytest.raises(PlatformError, match="no container engine answers. Start Docker, install podman, or set DOCKER"):
        open_and_close(nowhere)


def test_podman_that_cannot_serve_is_said(nowhere: Path) -> None:
    podman = nowhere / "podman"
    podman.write_text("#!/bin/sh\necho 'Error: no space left' >&2\nexit 125\n")
    podman.chmod(0o755)
    with pytest.raises(PlatformError, match=r"podman system service does not answer \(Error: no space left\)"):
        open_and_close(nowhere)
    assert "DOCKER_HOST" not in os.environ


def test_command_says_it_with_the_exit_code_of_a_platform(nowhere: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled = ["--pipeline", str(ROOT / "pipelines/compiled/training.yaml")]
    assert main(["run", "--runner", "docker", "--params", PARAMS, "--workspace", str(nowhere / "runs"), *compiled]) == 5
    assert "no container engine answers" in capsys.readouterr().err
    assert not (nowhere / "runs").exists()


def test_image_is_for_containers_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--params", PARAMS, "--image", "mtlops:1"]) == 2
    assert "--image is for --runner docker" in capsys.readouterr().err


def test_pipeline_is_given_another_image() -> None:
    text = compile_text(IMAGE)
    assert image_of(text) == IMAGE
    other = with_image(text, "other:7")
    assert image_of(other) == "other:7"
    assert list(yaml.safe_load_all(with_image(other, IMAGE))) == list(yaml.safe_load_all(text))


def test_pipeline_of_several_images_needs_a_choice() -> None:
    text = compile_text(IMAGE).replace(f"image: {IMAGE}", "image: other:7", 1)
    with pytest.raises(ArtefactError, match=rf"names 2 images \({IMAGE}, other:7\). Choose by --image"):
        image_of(text)


def test_kfp_is_replaced_where_it_still_is() -> None:
    theirs = inspect.signature(docker_task_handler.run_docker_container)
    assert [*theirs.parameters] == ["client", "image", "command", "volumes", "container_run_args"]
