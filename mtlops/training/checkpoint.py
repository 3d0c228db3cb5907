"""Saving a training run so that it can be killed at any moment and goes on to the same bytes."""

import json
import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from mtlops.files import atomic_path

logger = logging.getLogger(__name__)


class Resumable(Protocol):
    """Something whose state is part of a run's: tensors by name, and plain JSON values."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns everything that a resume needs."""

    def restore(self, tensors: dict[str, Tensor], values: dict[str, Any], /) -> None:
        """Goes back to what `state` returned."""


@dataclass(frozen=True)
class Position:
    """Where a run stands: the next step to take."""

    epoch: int = 1
    step: int = 0


class Checkpoint:
    """The one checkpoint of a run.

    Args:
        folder: where checkpoints lie.
        run: names everything that the run's result depends on; another run's checkpoint is never read.
    """

    def __init__(self, folder: Path, *, run: str) -> None:
        self.path = folder / f"checkpoint-{run[:16]}.safetensors"

    def save(self, learners: Mapping[str, Resumable], position: Position) -> None:
        """Writes the state of all learners, and whatever else goes by a name, in one atomic step."""
        tensors: dict[str, Tensor] = {}
        progress: dict[str, Any] = {}
        for task, learner in learners.items():
            state, progress[task] = learner.state()
            tensors |= {f"{task}/{name}": tensor.cpu().contiguous() for name, tensor in state.items()}
        state_text = json.dumps({"position": vars(position), "progress": progress})
        with atomic_path(self.path) as part:
            _write(part, tensors, metadata={"state": state_text})

    def restore(self, learners: Mapping[str, Resumable]) -> Position:
        """Brings learners to the saved state and returns the position; the start when there is none."""
        if not self.path.exists():
            return Position()
        try:
            with safe_open(self.path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            logger.warning("%s: damaged checkpoint (%s): training starts anew", self.path, error)
            return Position()
        states: dict[str, dict[str, Tensor]] = {task: {} for task in learners}
        for name, tensor in tensors.items():
            task, _, own = name.partition("/")
            states[task][own] = tensor
        for task, learner in learners.items():
            learner.restore(states[task], state["progress"][task])
        position = Position(**state["position"])
        logger.info("resumed epoch=%d step=%d from %s", position.epoch, position.step, self.path.name)
        return position

    def remove(self) -> None:
        """Removes the checkpoint; call it when the result is safe."""
        self.path.unlink(missing_ok=True)


def _write(path: Path, tensors: dict[str, Tensor], *, metadata: dict[str, str]) -> None:
    """Writes tensors without a copy of all of them in memory; an error of the disk is an `OSError` again."""
    try:
        save_file(tensors, path, metadata=metadata)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1]))) from error
