"""Rows of numbers on disk: written once, found again by row id, checked, memory-mapped.

A shard is two files: `<name>.f32` (or `.f16`), line after line the values of its rows, and `<name>.json`, which names
those rows and makes the shard count once it is there. One process writes a shard under a name made of its rows, so
several can fill one folder at once. A shard's time of change is when it was last asked for. Its values are read, to
compare their checksum, when a row of it is first asked for: who wants few rows of a large folder reads little.
"""

import hashlib
import json
import logging
import os
import time
import zlib
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.files import atomic_path, write_json

logger = logging.getLogger(__name__)

SUFFIXES = {"float32": ".f32", "float16": ".f16"}
"""By the kind of number that is kept, the ending of its files."""

_CHECKED: set[tuple[int, int, int, int]] = set()
"""Files whose checksum this process has compared, by device, inode, size and time of change: no step does it again."""


_BLOCK = 1 << 20


@dataclass
class _Shard:
    """One shard; `values` (lines, width) once they are checked and mapped."""

    index: Path
    path: Path
    crc32: int
    values: NDArray[Any] | None = None


@dataclass(frozen=True)
class _Place:
    shard: _Shard
    start: int
    length: int


class Shards:
    """The shards of one folder.

    Args:
        folder: where they lie; made when the first one is written.
        width: numbers a line.
        dtype: how numbers are kept, `float32` or `float16`.
    """

    def __init__(self, folder: Path, *, width: int, dtype: str = "float32") -> None:
        self.folder, self.width, self.dtype = folder, width, np.dtype(dtype)
        self._suffix = SUFFIXES[dtype]
        self._places: dict[str, _Place] = {}
        self._known: set[str] = set()
        self.refresh()

    def __contains__(self, row_id: str) -> bool:
        place = self._places.get(row_id)
        return place is not None and (place.shard.values is not None or self._open(place.shard))

    def refresh(self) -> None:
        """Takes up the shards that other processes have finished."""
        for index in sorted(self.folder.glob("*.json")):
            if index.name not in self._known:
                self._read(index)

    def length(self, row_id: str) -> int:
        """Returns the number of lines of a row."""
        return self._places[row_id].length

    def lines(self, row_id: str) -> NDArray[Any]:
        """Returns the values of a row, (lines, width) in the kind of number that is kept; read only.

        Raises:
            KeyError: the row is not there.
        """
        if row_id not in self:
            raise KeyError(row_id)
        place = self._places[row_id]
        assert place.shard.values is not None
        return place.shard.values[place.start : place.start + place.length]

    def write(self, rows: Sequence[tuple[str, int]], values: Iterable[NDArray[np.float32]]) -> None:
        """Writes a shard.

        Args:
            rows: its row ids with their numbers of lines.
            values: the values of each, (lines, width).
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("".join(row_id for row_id, _ in rows).encode()).hexdigest()[:16]
        path, crc = self.folder / f"{name}{self._suffix}", 0
        with atomic_path(path) as part, part.open("wb") as file:
            for of_row in values:
                raw = of_row.astype(self.dtype, copy=False).tobytes()
                crc = zlib.crc32(raw, crc)
                file.write(raw)
        index = {"crc32": crc, "rows": [list(row) for row in rows]}
        write_json(path.with_suffix(".json"), index)
        shard = _Shard(path.with_suffix(".json"), path, crc)
        self._add(shard, rows)
        self._map(shard)

    def touch(self, row_ids: Iterable[str]) -> set[Path]:
        """Marks the shards of some rows as just used; returns the index files of these shards."""
        used = {self._places[row_id].shard.index for row_id in row_ids}
        for index in used:
            with suppress(FileNotFoundError):  # Another process evicted it; we go on reading our memory map.
                os.utime(index)
        return used

    def _read(self, index: Path) -> None:
        """Takes up a shard's rows; whether they are what was written is looked at when one is asked for."""
        path = index.with_suffix(self._suffix)
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
            self._add(_Shard(index, path, content["crc32"]), content["rows"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            _remove(index, path, why=error)

    def _add(self, shard: _Shard, rows: Iterable[Sequence[Any]]) -> None:
        start, places = 0, {}
        for row_id, length in rows:
            places[row_id] = _Place(shard, start, length)
            start += length
        self._places |= places
        self._known.add(shard.index.name)

    def _open(self, shard: _Shard) -> bool:
        """Checks and maps a shard's values; returns whether they are good. If not, the shard and its rows are gone."""
        try:
            state = shard.path.stat()
            identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
            if identity not in _CHECKED and _crc32(shard.path) != shard.crc32:
                raise ValueError("checksum differs")
            self._map(shard)
            _CHECKED.add(identity)
        except (OSError, ValueError) as error:
            self._places = {row_id: place for row_id, place in self._places.items() if place.shard is not shard}
            self._known.discard(shard.index.name)
            _remove(shard.index, shard.path, why=error)
            return False
        return True

    def _map(self, shard: _Shard) -> None:
        shard.values = np.memmap(shard.path, dtype=self.dtype, mode="r").reshape(-1, self.width)


def _crc32(path: Path) -> int:
    crc = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            crc = zlib.crc32(block, crc)
    return crc


def _remove(index: Path, path: Path, *, why: Exception) -> None:
    """Removes a damaged shard, unless another process has evicted it."""
    if not index.exists():
        return
    logger.warning("%s: damaged cache shard (%s): removed, its rows are computed again", path, why)
    index.unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def evict(folders: Iterable[Path], *, limit_bytes: float, keep: Collection[Path]) -> int:
    """Removes the shards below some folders that were not used for longest, until the rest fits; returns bytes removed.

    Shards whose index file is in `keep` stay, whatever their size. A process that has a removed shard open goes on
    reading it: its space becomes free when that process ends.
    """
    found = []
    for index in (index for folder in folders for index in folder.rglob("*.json")):
        for data in map(index.with_suffix, SUFFIXES.values()):
            with suppress(FileNotFoundError):  # The other kind of number, or another process evicts as well.
                found.append((index.stat().st_mtime, data.stat().st_size + index.stat().st_size, index, data))
    total, removed = sum(size for _, size, *_ in found), 0
    for used, size, index, data in sorted(found, key=lambda shard: (shard[0], str(shard[2]))):
        if total - removed <= limit_bytes:
            break
        if index in keep:
            continue
        index.unlink(missing_ok=True)
        data.unlink(missing_ok=True)
        removed += size
        logger.info("cache shard=%s evicted bytes=%d unused_seconds=%.0f", index.stem, size, time.time() - used)
    if total - removed > limit_bytes:
        logger.warning(
            "the trunk cache holds %.1f GB that this run needs, more than train.cache_gb allows (%.1f). Raise it, or "
            "take model.cache_precision: float16, which halves it.",
            (total - removed) / 1e9, limit_bytes / 1e9,
        )  # fmt: skip
    return removed
