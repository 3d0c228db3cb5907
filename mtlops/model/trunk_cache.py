"""What the frozen trunk makes of a row, computed once and kept on disk: its values at the cut, and their end's mean.

A row's value is a pure function of the row: it is always computed in a batch of the one fixed shape that
its length calls for (padded with copies), because matrix products of another shape may round otherwise.
So a warm cache, a cold one and one filled by another run give the same bits.

Below one folder per (trunk, tokenizer, cut, length limit, kind of device, precision) lie `shards.Shards`: a line a
token, before them one with the first layer's mean where the pooling reads it, and in `pooled` the trunk's mean-pooled
vector of those rows that somebody asked it for.
"""

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlops.data.tokenisation import Tokenizer, pad
from mtlops.model.encoders import Trunk
from mtlops.model.multitask import PairModel
from mtlops.model.pooling import mean
from mtlops.model.shards import Shards, evict
from mtlops.model.sharing.anatomy import Sharing

logger = logging.getLogger(__name__)

_LAYOUT = 3
_TOKENS_PER_BATCH = 1024
"""As cheap a token as larger batches on a CPU; an update's few rows of many lengths fill them better."""

_LENGTH_STEP = 8
_SHARD_TOKENS = 1 << 16
_LOG_SECONDS = 5.0

_T = TypeVar("_T")


class TrunkCache:
    """By row: what lies at the cut for each real token, and the whole trunk's mean.

    Args:
        folder: where shards lie.
        trunk: the frozen encoder, on the device that computes.
        pairs: what lies above the cut.
        tokenizer: the trunk's tokenizer.
        identity: what else the values depend on (hashes of trunk and tokenizer, length limit, device).
        precision: how values at the cut are kept, `float32` or `float16`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        trunk: Trunk,
        pairs: PairModel | Sharing,
        tokenizer: Tokenizer,
        identity: str,
        precision: str = "float32",
    ) -> None:
        first = "/first" if pairs.has_first else ""
        what = f"{_LAYOUT}/{identity}/{precision}/{pairs.depth}/{pairs.cut.name}{first}/{trunk.config}"
        self._root = folder
        self.folder = folder / f"trunk-{hashlib.sha256(what.encode()).hexdigest()[:16]}"
        self.trunk, self._pairs, self._tokenizer = trunk, pairs, tokenizer
        self._width = trunk.config.hidden_size * pairs.cut.vectors
        self._tokens = Shards(self.folder, width=self._width, dtype=precision)
        self._pooled = Shards(self.folder / "pooled", width=trunk.config.hidden_size)
        self._asked: set[str] = set()
        self.rows_computed = 0

    def refresh(self) -> None:
        """Takes up the shards that other processes have finished."""
        self._tokens.refresh()

    def length(self, row_id: str) -> int:
        """Returns the number of tokens of a row that `fill` has seen."""
        return self._tokens.length(row_id) - self._num_in_front

    def fill(self, row_ids: Sequence[str], texts: Sequence[str]) -> None:
        """Computes the rows that are missing; killed at any moment, finished shards stay."""
        self._asked.update(row_ids)
        missing = {r: t for r, t in zip(row_ids, texts, strict=True) if r not in self._tokens}
        if not missing:
            return
        names, ids = list(missing), self._tokenizer.ids(list(missing.values()))
        progress = _Progress("trunk", len(names))
        for shard in _shards([len(tokens) for tokens in ids]):
            rows = [i for batch in shard for i in batch]
            values = (of_row for batch in shard for of_row in self._compute([ids[i] for i in batch]))
            self._tokens.write([(names[i], len(ids[i]) + self._num_in_front) for i in rows], values)
            progress.add(len(rows))
        self.rows_computed += len(names)

    def batch(self, row_ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns the state and mask of some rows, padded to the longest: (B, S, V) float32 and (B, S) int64.

        The state is as `state` of what lies above gives it: where it has the first layer's mean, (B, 1 + S, V).
        """
        return self._padded(row_ids, max(map(self.length, row_ids)))

    def pooled(self, row_ids: Sequence[str]) -> NDArray[np.float32]:
        """Returns the trunk's mean-pooled vectors (N, H), without any adapter, of rows that `fill` has seen."""
        missing = [row_id for row_id in dict.fromkeys(row_ids) if row_id not in self._pooled]
        progress = _Progress("pooled", len(missing))
        for shard in _shards([self.length(row_id) for row_id in missing]):
            rows = [missing[i] for batch in shard for i in batch]
            values = (vector for batch in shard for vector in self._pool([missing[i] for i in batch]))
            self._pooled.write([(row_id, 1) for row_id in rows], values)
            progress.add(len(rows))
        return np.concatenate([self._pooled.lines(row_id) for row_id in row_ids])

    def evict(self, *, limit_bytes: float) -> int:
        """Removes what was not used for longest, of any trunk, until the cache fits; returns the bytes removed.

        What this run has asked for stays.
        """
        used = self._tokens.touch(row_id for row_id in self._asked if row_id in self._tokens)
        used |= self._pooled.touch(row_id for row_id in self._asked if row_id in self._pooled)
        return evict(sorted(self._root.glob("trunk-*")), limit_bytes=limit_bytes, keep=used)

    def _padded(self, row_ids: Sequence[str], longest: int) -> tuple[Tensor, Tensor]:
        values = np.zeros((len(row_ids), longest + self._num_in_front, self._width), dtype=np.float32)
        mask = np.zeros((len(row_ids), longest), dtype=np.int64)
        for row, row_id in enumerate(row_ids):
            lines = self._tokens.lines(row_id)
            values[row, : len(lines)] = lines
            mask[row, : len(lines) - self._num_in_front] = 1
        return torch.from_numpy(values), torch.from_numpy(mask)

    @torch.inference_mode()
    def _compute(self, ids: list[list[int]]) -> Iterator[NDArray[np.float32]]:
        length = _bucket(max(map(len, ids)))
        full: list[Sequence[int]] = [*_filled_up(ids, length)]
        arrays = pad(full, pad_id=self._tokenizer.pad_id, length=length)
        input_ids, mask = (torch.from_numpy(array).to(self._device) for array in arrays)
        values = self._pairs.state(self.trunk, input_ids, mask).float().cpu().numpy()
        for row, tokens in enumerate(ids):
            yield values[row, : len(tokens) + self._num_in_front]

    @torch.inference_mode()
    def _pool(self, row_ids: list[str]) -> Iterator[NDArray[np.float32]]:
        length = _bucket(max(map(self.length, row_ids)))
        values, mask = (part.to(self._device) for part in self._padded(_filled_up(row_ids, length), length))
        vectors = mean.pool(self._pairs.frozen(values, mask), mask).float().cpu().numpy()
        for row in range(len(row_ids)):
            yield vectors[row : row + 1]

    @property
    def _num_in_front(self) -> int:
        """Lines of a row before those of its tokens."""
        return int(self._pairs.has_first)

    @property
    def _device(self) -> torch.device:
        return next(self.trunk.parameters()).device


class _Progress:
    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._started = self._reported = time.monotonic()

    def add(self, rows: int) -> None:
        """Counts rows, and may log."""
        self._done += rows
        now = time.monotonic()
        if now - self._reported > _LOG_SECONDS:
            self._reported = now
            rate = self._done / (now - self._started)
            logger.info(
                "%s rows=%d/%d rows_per_second=%.0f eta_seconds=%.0f",
                self._what, self._done, self._total, rate, (self._total - self._done) / rate,
            )  # fmt: skip


def _bucket(length: int) -> int:
    return -(-length // _LENGTH_STEP) * _LENGTH_STEP


def _rows_per_batch(length: int) -> int:
    return max(1, _TOKENS_PER_BATCH // length)


def _filled_up(batch: list[_T], length: int) -> list[_T]:
    """The batch with copies of its first element, so that its shape depends on its rows' length alone."""
    return batch + batch[:1] * (_rows_per_batch(length) - len(batch))


def _shards(lengths: Sequence[int]) -> Iterator[list[list[int]]]:
    """Yields shards of about _SHARD_TOKENS tokens; a shard is a list of batches of row positions of one bucket."""
    order = sorted(range(len(lengths)), key=lambda i: (_bucket(lengths[i]), i))
    shard: list[list[int]] = []
    tokens = 0
    while order:
        bucket = _bucket(lengths[order[0]])
        batch = [i for i in order[: _rows_per_batch(bucket)] if _bucket(lengths[i]) == bucket]
        order = order[len(batch) :]
        shard.append(batch)
        tokens += sum(lengths[i] for i in batch)
        if tokens >= _SHARD_TOKENS:
            yield shard
            shard, tokens = [], 0
    if shard:
        yield shard
