"""How many rows pass through the model at once: planned from what a pass keeps, halved when memory runs out.

What a pass keeps for its backward pass grows with its rows, by an amount that two small forward passes tell for any
adapter; so the largest pass that fits is known before the first step. `recompute` trades a forward pass for most of it
(Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost", arXiv:1604.06174).
"""

import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from mtlops.errors import UsageError
from mtlops.model import multitask
from mtlops.model.predictor import Backbone
from mtlops.params import Train
from mtlops.training.learner import Learner

USED_SHARE = 0.8
"""Share of the memory there is that training plans with; what else runs there has the rest."""

PEAK_SHARE = 2.2
"""Memory of a pass at its peak, over what it keeps for its backward pass: gradients, intermediate products and what the
allocator does not give back. Measured on a CPU (docs/training.md)."""

LAYERS_AT_ONCE = 3
"""With `recompute`, layers whose products are in memory at the same time, in effect. Measured likewise."""

ENOUGH_ROWS = 16
"""Rows a pass from which on more of them make it hardly faster; with fewer, recomputing layers pays."""

_PROBES = (2, 4)

logger = logging.getLogger(__name__)


@dataclass
class Room:
    """What a pass may hold.

    Attributes:
        rows: (row, task) pairs at most; 0: all of a step.
        recompute: whether layers are computed again for the backward pass.
        predicted_bytes: of a full pass, at its peak; 0 where nothing was planned.
        budget_bytes: what it had to fit into.
    """

    rows: int
    recompute: bool = False
    predicted_bytes: float = 0.0
    budget_bytes: float = 0.0

    def halve(self, step_rows: int) -> None:
        """Makes passes of a step of so many rows half as large.

        Raises:
            UsageError: they hold one row already.
        """
        rows = min(self.rows or step_rows, step_rows)
        if rows <= 1:
            raise UsageError(
                "out of memory: not even one row fits. Use train.recompute: true, a smaller encoder.max_tokens, or a "
                "machine with more memory."
            )
        self.rows = rows // 2
        logger.warning("out of memory: rows_per_pass=%d from now on; the step is taken again", self.rows)

    def facts(self) -> dict[str, float | int | bool]:
        """Returns it for the training report, sizes in megabytes."""
        return {
            "rows_per_pass": self.rows,
            "recompute": self.recompute,
            "predicted_mb": round(self.predicted_bytes / 1e6, 1),
            "budget_mb": round(self.budget_bytes / 1e6, 1),
        }


def is_out_of_memory(error: BaseException) -> bool:
    """Returns whether an error says that memory could not be had, on a GPU or on a CPU."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "bad_alloc" in str(error))


def plan(learners: Mapping[str, Learner], backbone: Backbone, *, train: Train, max_tokens: int) -> Room:
    """Returns the largest pass up to `train.rows_per_pass` that fits into the memory that training may use.

    Layers are recomputed when `train.recompute` says so, or where it is `auto` and otherwise fewer than `ENOUGH_ROWS`
    rows would fit.

    Raises:
        UsageError: not even one row fits.
    """
    most = train.rows_per_pass or sum(min(train.batch_size, len(of.train.row_ids)) for of in learners.values())
    budget = _budget(train, backbone.device)
    # A pass of a task that tags words keeps the last layer's values of all tokens: the most of all.
    first, rooms = max(learners.values(), key=lambda learner: learner.task.per_word), []
    for recompute in (False, True) if train.recompute == "auto" else (train.recompute is True,):
        fixed, per_row = _bytes(first, backbone, recompute=recompute, max_tokens=max_tokens)
        rows = min(most, int((budget - fixed) / per_row))
        rooms.append(Room(rows, recompute, fixed + max(1, rows) * per_row, budget))
        if rows >= min(most, ENOUGH_ROWS):
            break
    room = max(rooms, key=lambda room: room.rows)
    if room.rows < 1:
        raise UsageError(
            f"params.yaml: train.memory_gb: training takes {room.predicted_bytes / 1e9:.3f} GB with one row of "
            f"{max_tokens} tokens a pass, and there are {budget / 1e9:.3f}. Give more, or use a smaller "
            f"encoder.max_tokens."
        )
    logger.info(
        "memory rows_per_pass=%d recompute=%s predicted_mb=%.0f budget_mb=%.0f",
        room.rows, room.recompute, room.predicted_bytes / 1e6, budget / 1e6,
    )  # fmt: skip
    return room


def peak_bytes(device: torch.device) -> int:
    """Returns the most memory that this process has held so far, on the GPU that it computes on or at all."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _budget(train: Train, device: torch.device) -> float:
    if train.memory_gb is not None:
        return train.memory_gb * 1e9
    if device.type == "cuda":
        return USED_SHARE * torch.cuda.get_device_properties(device).total_memory
    return USED_SHARE * _machine_bytes()


def _machine_bytes() -> int:
    """The memory of this machine, or what its container may use. Not what is free just now: runs are to be alike."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    files = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")
    said = [path.read_text(encoding="ascii").strip() for path in files if path.exists()]
    return min([machine, *(int(text) for text in said if text.isdigit())])


def _bytes(learner: Learner, backbone: Backbone, *, recompute: bool, max_tokens: int) -> tuple[float, float]:
    """What training holds without any row, and what each row of a pass adds at the peak, in bytes."""
    of_probes = [_kept(learner, backbone, rows, recompute=recompute, max_tokens=max_tokens) for rows in _PROBES]
    per_row = (of_probes[1] - of_probes[0]) / (_PROBES[1] - _PROBES[0])
    fixed = sum(p.numel() * p.element_size() for p in backbone.cache.trunk.parameters())
    if recompute:
        _, whole = _bytes(learner, backbone, recompute=False, max_tokens=max_tokens)
        return float(fixed), PEAK_SHARE * per_row + LAYERS_AT_ONCE * whole / len(backbone.pairs.layers)
    return float(fixed), PEAK_SHARE * per_row


def _kept(learner: Learner, backbone: Backbone, rows: int, *, recompute: bool, max_tokens: int) -> int:
    """The bytes that a forward pass of so many rows keeps for its backward pass."""
    pairs, device = backbone.pairs, backbone.device
    lines = max_tokens + int(pairs.has_first)
    state = torch.zeros(rows, lines, pairs.hidden * pairs.cut.vectors, device=device)
    mask = torch.ones(rows, max_tokens, dtype=torch.int64, device=device)
    bank = multitask.stack([pairs.adapter.bank(learner.tensors, training=True)])
    noise = pairs.adapter.noise(rows, torch.Generator().manual_seed(0))
    bank |= {name: values.to(device) for name, values in noise.items()}
    with _counted() as kept:
        if learner.task.per_word:
            multitask.token_logits(pairs.tokens(state, mask, bank, recompute=recompute), bank).sum()
        else:
            multitask.logits(pairs(state, mask, bank, recompute=recompute), bank).sum()
    return sum(kept.values())


@contextmanager
def _counted() -> Iterator[dict[int, int]]:
    """Yields the bytes of each storage that forward passes keep, by its address."""
    kept: dict[int, int] = {}
    held = []

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)  # so that no address is used twice
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield kept
