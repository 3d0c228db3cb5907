"""What the frozen trunk makes of a row, computed once and kept on disk: output at the cut, mean-pooled vector.

A row's value is a pure function of the row: it is always computed in a batch of the one fixed shape that
its length calls for (padded with copies), because matrix products of another shape may round otherwise.
So a warm cache, a cold one and one filled by another run give the same bits.

Layout, below one folder per (trunk, tokenizer, cut, length limit, kind of device): `<name>.f32`, row after row its
mean-pooled vector (with zeros where a cut has two vectors) and then one line a token, and `<name>.json`, which names
those rows and makes the shard count once it is there.
"""

import hashlib
import json
import logging
import time
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mtlops.data.tokenisation import Tokenizer, pad
from mtlops.files import atomic_path, write_json
from mtlops.model.encoders import Trunk
from mtlops.model.multitask import PairModel
from mtlops.model.pooling import mean
from mtlops.model.sharing.anatomy import Sharing

logger = logging.getLogger(__name__)

_TOKENS_PER_BATCH = 2048
_LENGTH_STEP = 8
_SHARD_TOKENS = 1 << 16
_LOG_SECONDS = 5.0


@dataclass(frozen=True)
class _Place:
    values: NDArray[np.float32]
    start: int
    length: int


class TrunkCache:
    """By row, float32: what lies at the cut for each real token, and the whole trunk's mean.

    Args:
        folder: where shards lie; one process writes a shard under a name made of its content's rows, so
            two processes can fill one folder at once.
        trunk: the frozen encoder, on the device that computes.
        pairs: what lies above the cut.
        tokenizer: the trunk's tokenizer.
        identity: what else the values depend on (hashes of trunk and tokenizer, length limit, device).
    """

    def __init__(
        self,
        folder: Path,
        *,
        trunk: Trunk,
        pairs: PairModel | Sharing,
        tokenizer: Tokenizer,
        identity: str,
    ) -> None:
        key = hashlib.sha256(f"{identity}/{pairs.depth}/{pairs.cut.name}/{trunk.config}".encode()).hexdigest()[:16]
        self.folder = folder / f"trunk-{key}"
        self.trunk, self._pairs, self._tokenizer = trunk, pairs, tokenizer
        self._hidden = trunk.config.hidden_size
        self._width = self._hidden * pairs.cut.vectors
        self._places: dict[str, _Place] = {}
        self.rows_computed = 0
        self._opened: set[str] = set()
        self.refresh()

    def refresh(self) -> None:
        """Takes up the shards that other processes have finished."""
        for index in sorted(self.folder.glob("*.json")):
            if index.name not in self._opened:
                self._open_shard(index)

    def length(self, row_id: str) -> int:
        """Returns the number of tokens of a row that `fill` has seen."""
        return self._places[row_id].length

    def fill(self, row_ids: Sequence[str], texts: Sequence[str]) -> None:
        """Computes the rows that are missing; killed at any moment, finished shards stay."""
        missing = {r: t for r, t in zip(row_ids, texts, strict=True) if r not in self._places}
        if not missing:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        started = reported = time.monotonic()
        names, ids = list(missing), self._tokenizer.ids(list(missing.values()))
        done = 0
        for shard in _shards([len(tokens) for tokens in ids]):
            self._write_shard([(names[i], ids[i]) for batch in shard for i in batch], shard, ids)
            done += sum(map(len, shard))
            if time.monotonic() - reported > _LOG_SECONDS:
                reported = time.monotonic()
                rate = done / (reported - started)
                logger.info(
                    "trunk rows=%d/%d rows_per_second=%.0f eta_seconds=%.0f",
                    done, len(names), rate, (len(names) - done) / rate,
                )  # fmt: skip
        self.rows_computed += len(names)

    def batch(self, row_ids: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Returns the values and mask of some rows, padded to the longest: (B, S, V) float32 and (B, S) int64."""
        places = [self._places[row_id] for row_id in row_ids]
        longest = max(place.length for place in places)
        values = np.zeros((len(places), longest, self._width), dtype=np.float32)
        mask = np.zeros((len(places), longest), dtype=np.int64)
        for row, place in enumerate(places):
            first = place.start + 1
            values[row, : place.length] = place.values[first : first + place.length]
            mask[row, : place.length] = 1
        return torch.from_numpy(values), torch.from_numpy(mask)

    def pooled(self, row_ids: Sequence[str]) -> NDArray[np.float32]:
        """Returns the trunk's mean-pooled vectors (N, H) of some rows, without any adapter."""
        places = [self._places[row_id] for row_id in row_ids]
        return np.stack([place.values[place.start, : self._hidden] for place in places])

    def _write_shard(self, rows: list[tuple[str, list[int]]], batches: list[list[int]], ids: list[list[int]]) -> None:
        name = hashlib.sha256("".join(row_id for row_id, _ in rows).encode()).hexdigest()[:16]
        path, crc = self.folder / f"{name}.f32", 0
        with atomic_path(path) as part, part.open("wb") as file:
            for batch in batches:
                for values in self._compute([ids[i] for i in batch]):
                    raw = values.tobytes()
                    crc = zlib.crc32(raw, crc)
                    file.write(raw)
        index = {"crc32": crc, "rows": [[row_id, len(tokens)] for row_id, tokens in rows]}
        write_json(self.folder / f"{name}.json", index)
        self._add_rows(path, index)

    @torch.inference_mode()
    def _compute(self, ids: list[list[int]]) -> Iterator[NDArray[np.float32]]:
        length = _bucket(max(map(len, ids)))
        full = ids + [ids[0]] * (_rows_per_batch(length) - len(ids))
        device = next(self.trunk.parameters()).device
        arrays = pad(full, pad_id=self._tokenizer.pad_id, length=length)
        input_ids, mask = (torch.from_numpy(array).to(device) for array in arrays)
        values = self.trunk(input_ids, mask, depth=self._pairs.depth, cut=self._pairs.cut)
        pooled = mean.pool(self._pairs.frozen(values, mask), mask)
        pooled = torch.nn.functional.pad(pooled, (0, self._width - self._hidden))
        together = torch.cat([pooled.unsqueeze(1), values], dim=1).float().cpu().numpy()
        for row, tokens in enumerate(ids):
            yield together[row, : 1 + len(tokens)]

    def _open_shard(self, index_path: Path) -> None:
        path = index_path.with_suffix(".f32")
        try:
            index = json.loads(index_path.read_text(encoding="utf-8"))
            if zlib.crc32(path.read_bytes()) != index["crc32"]:
                raise ValueError("checksum differs")
            self._add_rows(path, index)
        except (OSError, ValueError, KeyError) as error:
            logger.warning("%s: damaged cache shard (%s): removed, its rows are computed again", path, error)
            index_path.unlink(missing_ok=True)
            path.unlink(missing_ok=True)

    def _add_rows(self, path: Path, index: dict[str, Any]) -> None:
        self._opened.add(f"{path.stem}.json")
        values = np.memmap(path, dtype=np.float32, mode="r").reshape(-1, self._width)
        start = 0
        for row_id, length in index["rows"]:
            self._places[row_id] = _Place(values, start, length)
            start += 1 + length


def _bucket(length: int) -> int:
    return -(-length // _LENGTH_STEP) * _LENGTH_STEP


def _rows_per_batch(length: int) -> int:
    return max(1, _TOKENS_PER_BATCH // length)


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
