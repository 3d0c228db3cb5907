"""Adapters and heads of a bundle's tasks, stacked as its graph wants them: what a swap of a task replaces."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from mtlops.bundle import Bundle
from mtlops.errors import ArtefactError

Bank = Mapping[str, NDArray[np.float32]]
"""By the name of an input of the graph, (T, ...): a tensor of every task, in the order of their positions."""

TASK_FILES = ("adapter.safetensors", "head.safetensors")


def task_tensors(bundle: Bundle, task: str) -> dict[str, NDArray[np.float32]]:
    """Returns one task's tensors by their own names: `layers.3.down`, `head.weight`.

    Raises:
        ArtefactError: a file is missing or damaged.
    """
    folder = bundle.folder / "tasks" / task
    return {name: tensor for file in TASK_FILES for name, tensor in _read(folder / file).items()}


def stack(tasks: Sequence[Mapping[str, NDArray[np.float32]]]) -> Bank:
    """Returns the bank of tasks in this order.

    Tensors of different sizes are padded with zeros to the widest: units that add nothing, outputs that nobody reads.
    """
    return {f"bank.{name.replace('.', '_')}": _stacked([tensors[name] for tensors in tasks]) for name in tasks[0]}


def task_version(bundle: Bundle, task: str) -> str:
    """Returns what names a task's answers: 12 hex digits each of its adapter's and its head's sha256."""
    files = bundle.manifest["files"]
    return "-".join(files[f"tasks/{task}/{file}"][:12] for file in TASK_FILES)


def _stacked(tensors: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    shape = [max(sizes) for sizes in zip(*(tensor.shape for tensor in tensors), strict=True)]
    stacked = np.zeros((len(tensors), *shape), dtype=np.float32)
    for place, tensor in zip(stacked, tensors, strict=True):
        place[tuple(slice(size) for size in tensor.shape)] = tensor
    return stacked


def _read(path: Path) -> dict[str, NDArray[np.float32]]:
    try:
        return dict(load_file(path))
    except (SafetensorError, OSError, ValueError) as error:
        raise ArtefactError(f"{path}: cannot be read ({error}). Export or fetch the bundle again.") from None
