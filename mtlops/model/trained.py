"""The folder of a trained model: one set of files per task, so that a task can be replaced alone.

model.json      encoder, `model` section, length limit, tasks
shared.safetensors  what the tasks trained together, where they did
tasks/<task>/   adapter.safetensors, head.safetensors, task.json
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from mtlops.bundle import Bundle
from mtlops.decoding import Calibration
from mtlops.errors import ArtefactError
from mtlops.files import atomic_path, read_json, write_json
from mtlops.model.adapters.anatomy import Tensors
from mtlops.params import Model
from mtlops.tasks import Task

SCHEMA_VERSION = 1
SHARED_FILE = "shared.safetensors"
TASK_FILES = ("adapter.safetensors", "head.safetensors", "task.json")
"""The files of one task, in a trained model and in a bundle."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained model as it lies in its folder.

    Attributes:
        encoder: content of the encoder folder's `encoder.json`.
        model: section `model` of the params it was trained with.
        max_tokens: the length limit it was trained with.
        tasks: tasks in suite order.
        tensors: every task's tensors by name; heads give logits in label units.
        calibrations: how each task's logits become answers.
        shared: what the tasks trained together, by name; empty where they share nothing trainable.
    """

    encoder: dict[str, Any]
    model: Model
    max_tokens: int
    tasks: tuple[Task, ...]
    tensors: dict[str, Tensors]
    calibrations: dict[str, Calibration]
    shared: Tensors = field(default_factory=dict)


def save_task(folder: Path, task: Task, tensors: Mapping[str, Tensor], *, facts: Mapping[str, Any]) -> None:
    """Writes one task's files below `folder`; `facts` go into its task.json."""
    target = folder / "tasks" / task.name
    target.mkdir(parents=True, exist_ok=True)
    for part, wanted in (("adapter", "layers."), ("head", "head.")):
        chosen = {name: tensor for name, tensor in tensors.items() if name.startswith(wanted)}
        save_tensors(target / f"{part}.safetensors", chosen)
    write_json(target / "task.json", {"name": task.name, **task.facts(), **facts})


def save_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes named tensors as a safetensors file in one atomic step."""
    with atomic_path(path) as part:
        part.write_bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def save_model(
    folder: Path,
    *,
    encoder: dict[str, Any],
    model: Model,
    max_tokens: int,
    tasks: tuple[Task, ...],
    shared: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes what the tasks trained together, and model.json, which makes the folder complete; write tasks first."""
    if shared:
        save_tensors(folder / SHARED_FILE, shared)
    value = {
        "schema_version": SCHEMA_VERSION,
        "encoder": encoder,
        "model": model.model_dump(),
        "max_tokens": max_tokens,
        "tasks": [task.name for task in tasks],
    }
    write_json(folder / "model.json", value)


def restore_model(bundle: Bundle, folder: Path) -> None:
    """Writes the folder of the trained model that a bundle was exported from, as `train` wrote it.

    Raises:
        ArtefactError: the bundle's tasks trained weights together, which cannot be told apart any more.
    """
    manifest = bundle.manifest
    if not manifest["trunk_is_frozen"] or manifest["sharing"] != "adapters":
        raise ArtefactError(
            f"{bundle.folder}: its tasks share trained weights (model.sharing: {manifest['sharing']}), so none can be "
            f"replaced alone. Train the whole suite again."
        )
    for task in bundle.tasks:
        copy_task(bundle.folder, folder, task.name)
    save_model(
        folder, encoder=dict(manifest["trunk"]), model=Model.model_validate(manifest["params"]["model"]),
        max_tokens=manifest["max_tokens"], tasks=bundle.tasks,
    )  # fmt: skip


def copy_task(source: Path, folder: Path, task: str) -> None:
    """Copies one task's files, byte for byte, from below one folder to below another."""
    target = folder / "tasks" / task
    target.mkdir(parents=True, exist_ok=True)
    for name in TASK_FILES:
        shutil.copyfile(source / "tasks" / task / name, target / name)


def load_model(folder: Path) -> TrainedModel:
    """Returns the trained model in `folder`.

    Raises:
        ArtefactError: a file is missing, damaged or of another version.
    """
    value = read_json(folder / "model.json", made_by="mtlops train")
    if value["schema_version"] != SCHEMA_VERSION:
        raise ArtefactError(
            f"{folder}/model.json: schema_version {value['schema_version']}, this mtlops reads {SCHEMA_VERSION}. "
            f"Run `mtlops train` again."
        )
    facts = {name: read_json(folder / "tasks" / name / "task.json", made_by="mtlops train") for name in value["tasks"]}
    tasks = tuple(Task.from_facts(name, found) for name, found in facts.items())
    model = Model.model_validate(value["model"])
    return TrainedModel(
        encoder=value["encoder"],
        model=model,
        max_tokens=value["max_tokens"],
        tasks=tasks,
        tensors={task.name: _read_tensors(folder / "tasks" / task.name) for task in tasks},
        calibrations={name: Calibration.from_facts(found) for name, found in facts.items()},
        shared=_read_file(folder / SHARED_FILE) if model.shares_weights else {},
    )


def _read_tensors(folder: Path) -> Tensors:
    return {**_read_file(folder / "adapter.safetensors"), **_read_file(folder / "head.safetensors")}


def _read_file(path: Path) -> Tensors:
    try:
        tensors: Tensors = load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}). Run `mtlops train` again.") from None
    return tensors
