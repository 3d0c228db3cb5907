"""Several processes that train as one: data parallel over the rows of every step.

    torchrun --nproc-per-node 2 -m mtlops train

Each process passes its share of a step's rows; gradients are added up, so all take the same optimiser step. Which rows
a step holds, and all random numbers, do not depend on how many processes there are: any number of them follow the same
path but for the order of adding, and a run may be resumed with another number. They share the folders of data, cache
and output.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from mtlops.training.learner import Learner

Sequenced = TypeVar("Sequenced", bound=Sequence[object] | NDArray[np.int64] | Tensor)

logger = logging.getLogger(__name__)

Running = tuple[float, int]


def running(learner: Learner) -> Running:
    """Returns the sum of the losses of the running epoch, and over how many rows."""
    return learner.progress.loss_sum, learner.progress.loss_rows


@dataclass(frozen=True)
class World:
    """The processes of a run, seen from one of them.

    Attributes:
        rank: of this process, from 0.
        size: number of processes.
        local_rank: of this process on its machine: the GPU that it takes.
        local_size: number of processes on its machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def join(cls, *, device: str) -> "World":
        """Returns the world that `torchrun` described in the environment, joined; a world of one without it.

        Args:
            device: `cpu` (gloo) or `cuda` (NCCL).
        """
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if any(name not in os.environ for name in names) or os.environ["WORLD_SIZE"] == "1":
            return cls()
        world = cls(*(int(os.environ[name]) for name in names))
        if not dist.is_initialized():
            dist.init_process_group("nccl" if device == "cuda" else "gloo")
        if not world.is_first:
            logging.getLogger("mtlops").setLevel(logging.WARNING)
        logger.info("processes=%d on_this_machine=%d", world.size, world.local_size)
        return world

    @property
    def is_first(self) -> bool:
        """Whether this process writes what the run makes."""
        return self.rank == 0

    def share(self, items: Sequenced) -> Sequenced:
        """Returns this process's share of some items, every `size`-th of them."""
        return items[self.rank :: self.size]  # type: ignore[return-value]

    def wait(self) -> None:
        """Returns when all processes have come here."""
        if self.size > 1:
            dist.barrier()

    def add_up(self, learners: Mapping[str, Learner], before: Mapping[str, Running], *, stop: bool) -> bool:
        """Adds up, over all processes and in place, the gradients and running losses of one step's tasks.

        Args:
            learners: of the tasks in the step.
            before: what `running` returned for each before the step.
            stop: whether this process was asked to stop.

        Returns:
            Whether any process was asked to stop.
        """
        if self.size == 1:
            return stop
        names = sorted(learners)
        tensors = [tensor for name in names for tensor in learners[name].tensors.values()]
        flat = torch.cat([(torch.zeros_like(t) if t.grad is None else t.grad).flatten() for t in tensors])
        added = [now - then for name in names for now, then in zip(running(learners[name]), before[name], strict=True)]
        numbers = torch.tensor([*added, float(stop)], dtype=torch.float64, device=flat.device)
        dist.all_reduce(flat)
        dist.all_reduce(numbers)
        for tensor, part in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
            tensor.grad = part.view_as(tensor)
        *sums, stops = numbers.tolist()
        for name, loss, rows in zip(names, sums[::2], sums[1::2], strict=True):
            progress = learners[name].progress
            progress.loss_sum, progress.loss_rows = before[name][0] + loss, before[name][1] + round(rows)
        return bool(stops)

    def gather(self, rows: NDArray[np.float32], *, total: int) -> NDArray[np.float32]:
        """Returns the rows (total, ...) that all processes computed for their `share`, in order."""
        if self.size == 1:
            return rows
        parts: list[NDArray[np.float32]] = [rows] * self.size
        dist.all_gather_object(parts, rows)
        whole = np.empty((total, *rows.shape[1:]), dtype=np.float32)
        for rank, part in enumerate(parts):
            whole[rank :: self.size] = part
        return whole

    def leave(self) -> None:
        """Ends the group, when nothing more is to be said."""
        if self.size > 1 and dist.is_initialized():
            dist.destroy_process_group()
