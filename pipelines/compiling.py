"""Pipelines as the YAML that Kubeflow reads."""

import re
import tempfile
from pathlib import Path
from typing import Any

import yaml
from kfp import compiler

from mtlops.errors import ArtefactError, UsageError
from mtlops.files import write_text
from pipelines.continuous import continuous_pipeline
from pipelines.profiling import profiling_pipeline
from pipelines.training import training_pipeline

PIPELINES = {"training": training_pipeline, "continuous": continuous_pipeline, "profiling": profiling_pipeline}
"""The pipelines by name."""

COMPILED = Path("pipelines/compiled/training.yaml")
"""The committed training pipeline, compiled for the default image."""


def compiled_path(pipeline: str) -> Path:
    """Returns where a pipeline, compiled for the default image, is committed."""
    return COMPILED.with_name(f"{pipeline}.yaml")


def compile_text(image: str, *, accelerator: str = "", pipeline: str = "training") -> str:
    """Returns a compiled pipeline: the same arguments give the same text, in ASCII.

    Raises:
        UsageError: `image` has no fixed tag or digest.
    """
    _refuse_moving_image(image)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pipeline.yaml"
        compiler.Compiler().compile(PIPELINES[pipeline](image, accelerator=accelerator), str(path))
        text = path.read_text(encoding="utf-8")
    if not text.isascii():
        raise UsageError("the compiled pipeline is not ASCII, and Kubeflow may not store it: find the character.")
    return text


def write_compiled(text: str, *, path: Path = COMPILED) -> None:
    """Writes a compiled pipeline in one atomic step."""
    write_text(path, text)


def read_compiled(path: Path) -> str:
    """Returns the text of a compiled pipeline.

    Raises:
        ArtefactError: there is no such file.
    """
    if not path.is_file():
        raise ArtefactError(f"{path}: not found. Run `python -m pipelines compile` first.")
    return path.read_text(encoding="utf-8")


def check_compiled(text: str, *, path: Path = COMPILED) -> None:
    """Does nothing when the file holds `text`.

    Raises:
        ArtefactError: it is missing or holds something else.
    """
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        raise ArtefactError(f"{path}: is not what the code compiles to. Run `python -m pipelines compile`.")


def _refuse_moving_image(image: str) -> None:
    """A tag that moves would let one cache key stand for several codes."""
    if re.fullmatch(r"\S+@sha256:[0-9a-f]{64}", image):
        return
    tag = re.fullmatch(r"[^\s@]*?[^\s@:/]+:(\w[\w.-]{0,127})", image)
    if not tag or tag[1] == "latest":
        raise UsageError(
            f"MTLOPS_IMAGE: {image!r} has no fixed version. Give name:version (not latest) or name@sha256:..."
        )


def without_cached_data(text: str) -> str:
    """Returns a compiled pipeline whose `prepare` always runs: what a schedule on a moving branch needs."""
    documents = list(yaml.safe_load_all(text))
    documents[0]["root"]["dag"]["tasks"]["prepare"]["cachingOptions"] = {}
    return yaml.safe_dump_all(documents, sort_keys=True)


def image_of(text: str) -> str:
    """Returns the image that a compiled pipeline runs its tasks in.

    Raises:
        ArtefactError: there is not exactly one.
    """
    images = {container["image"] for container in _containers(next(yaml.safe_load_all(text)))}
    if len(images) != 1:
        raise ArtefactError(
            f"the pipeline names {len(images)} images ({', '.join(sorted(images))}). Choose by --image."
        )
    return str(images.pop())


def with_image(text: str, image: str) -> str:
    """Returns a compiled pipeline whose tasks all run in `image`."""
    documents = list(yaml.safe_load_all(text))
    for container in _containers(documents[0]):
        container["image"] = image
    return yaml.safe_dump_all(documents, sort_keys=True)


def _containers(pipeline: Any) -> list[Any]:
    return [e["container"] for e in pipeline["deploymentSpec"]["executors"].values() if "container" in e]
