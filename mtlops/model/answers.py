"""Logits that a model gave to rows of the data, kept on disk, so that no step computes again what another did.

`evaluate`, `export` and the update of a bundle ask models the same questions: what a champion, or a baseline that it
had to beat, answered when it was judged is asked again whenever it is a parent. A file's name is a hash of everything
that its bits depend on, and the file ends with a checksum, so nothing stale or broken is ever read.
"""

import hashlib
import logging
import math
import os
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlops.bundle import code_digest
from mtlops.files import atomic_path

KEPT = 1024
"""Files that stay, the last used ones: one is a task's logits of one split, some ten kilobytes."""

_CHECKSUM_BYTES = 4

logger = logging.getLogger(__name__)


class Answers:
    """The answers below one folder.

    Args:
        folder: where files lie; made when the first one is written.
        identity: what the logits depend on beside tensors and rows: trunk, layers, device.
    """

    def __init__(self, folder: Path, *, identity: str) -> None:
        self.folder = folder
        self._identity = f"{identity}/{torch.__version__}/{torch.get_num_threads()}/{code_digest()}"

    def path(self, tensors: Mapping[str, Tensor], row_ids: Sequence[str]) -> Path:
        """Returns the file of what these tensors answer to these rows, whether it is there or not."""
        name = hashlib.sha256(self._identity.encode())
        for key in sorted(tensors):
            values = tensors[key].detach().cpu().contiguous()
            name.update(f"/{key}/{values.dtype}/{tuple(values.shape)}/".encode())
            name.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
        name.update("\n".join(row_ids).encode())
        return self.folder / f"{name.hexdigest()[:32]}.f32"

    def read(self, path: Path, shape: tuple[int, ...]) -> NDArray[np.float32] | None:
        """Returns the logits (N, C), or (N, W, C) of words, of a file; None when it is not there or damaged."""
        try:
            content = path.read_bytes()
        except FileNotFoundError:
            return None
        values, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
        if len(values) != 4 * math.prod(shape) or _checksum(values) != checksum:
            logger.warning("%s: is damaged; its logits are computed again.", path)
            return None
        os.utime(path)
        return np.frombuffer(values, dtype="<f4").reshape(shape)

    def write(self, path: Path, logits: NDArray[np.float32]) -> None:
        """Keeps logits, and of all files the `KEPT` last used ones.

        Raises:
            PlatformError: the file cannot be written.
        """
        values = logits.astype("<f4").tobytes()
        with atomic_path(path) as part:
            part.write_bytes(values + _checksum(values))
        used = sorted(self.folder.glob("*.f32"), key=_last_used)
        for old in used[:-KEPT]:
            old.unlink(missing_ok=True)


def _checksum(values: bytes) -> bytes:
    return zlib.crc32(values).to_bytes(_CHECKSUM_BYTES, "little")


def _last_used(path: Path) -> int:
    """When a file was last used; 0 for one that another process has removed meanwhile."""
    try:
        return path.stat().st_mtime_ns
    except FileNotFoundError:
        return 0
