"""The data of tasks that are retrained alone: old rows and those of the newest labelled window, in a stated mixture."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mtlops.data.checks import BEHAVIOUR
from mtlops.data.prepared import (
    MANIFEST,
    SPLITS,
    Manifest,
    join_parts,
    read_labelled,
    read_manifest,
    read_split,
    write_part,
)
from mtlops.data.selection import at_most
from mtlops.files import link_or_copy, new_folder, sha256_file, to_json
from mtlops.tasks import Task

Mix = Literal["all"] | float
"""Which old training rows are learned again (see `params.Retrain.mix`)."""


@dataclass(frozen=True)
class Mixed:
    """Folders of prepared splits of the tasks that are retrained.

    Attributes:
        known: `train` is the mixture, `valid` all validation rows, `test` the test rows known before the window.
        window: the splits of each task's newest window alone; of tasks without one, all rows.
    """

    known: Path
    window: Path


def mix_splits(
    prepared: Path, *, windows: Mapping[str, str | None], mix: Mix, fewest: int = 0, seed: int, cache: Path
) -> Mixed:
    """Returns folders with the mixed data; the same arguments give the same bytes, made once.

    Args:
        prepared: folder of prepared splits.
        windows: each task that is retrained -> its newest labelled window, or None.
        mix: `all` old training rows, or so many for each of the window's.
        fewest: old rows at least, unless `mix` is 0.
        seed: of the draw.
        cache: folder in which they are kept.

    Raises:
        ArtefactError: a file is missing or damaged.
        PlatformError: the cache cannot be written.
    """
    manifest = read_manifest(prepared)
    value = [sha256_file(prepared / MANIFEST), dict(windows), mix, fewest, seed]
    root = cache / "mixed" / hashlib.sha256(json.dumps(value).encode()).hexdigest()[:16]
    if not root.exists():
        with new_folder(root) as folder:
            _write(folder / "known", prepared, manifest, {
                task: _known(prepared, task, window, draw=(mix, fewest, seed)) for task, window in windows.items()
            })  # fmt: skip
            _write(folder / "window", prepared, manifest, {
                task: _newest(prepared, task, window) for task, window in windows.items()
            })  # fmt: skip
    return Mixed(root / "known", root / "window")


def _known(prepared: Path, task: str, window: str | None, *, draw: tuple[Mix, int, int]) -> dict[str, pa.Table]:
    mix, fewest, seed = draw
    old = read_split(prepared, task, "train", without=window) if window else read_split(prepared, task, "train")
    if window is not None and mix != "all":
        wanted = max(round(mix * read_labelled(prepared, window, task, "train").num_rows), fewest if mix else 0)
        old = old.take(_drawn(old, wanted, seed=seed))
    new = [read_labelled(prepared, window, task, "train")] if window else []
    return {
        "train": join_parts([old, *new]),
        "valid": read_split(prepared, task, "valid"),
        "test": read_split(prepared, task, "test", without=window) if window else read_split(prepared, task, "test"),
    }


def _drawn(table: pa.Table, most: int, *, seed: int) -> NDArray[np.int64]:
    """At most so many rows, by the hash of their ids; the first of each class before the second of any."""
    if most == 0:
        return np.zeros(0, dtype=np.int64)
    labels = [tuple(label) if isinstance(label, list) else label for label in table["label"].to_pylist()]
    every = {"train": np.arange(table.num_rows)}
    return np.sort(at_most(most, every, ids=table["row_id"].to_pylist(), labels=labels, seed=seed)["train"])


def _newest(prepared: Path, task: str, window: str | None) -> dict[str, pa.Table]:
    if window is None:
        return {split: read_split(prepared, task, split) for split in SPLITS}
    return {split: read_labelled(prepared, window, task, split) for split in SPLITS}


def _write(folder: Path, prepared: Path, manifest: Manifest, tables: Mapping[str, Mapping[str, pa.Table]]) -> None:
    """Writes a folder in the layout of prepared splits, for these tasks alone."""
    folder.mkdir()
    tasks = {}
    for name, splits in tables.items():
        entry = manifest["tasks"][name]
        task = Task(name, entry["kind"], tuple(entry["classes"]))
        parts = {s: write_part(folder, f"{name}/{s}.parquet", table, task=task) for s, table in splits.items()}
        tasks[name] = {**entry, "splits": parts}
    if (prepared / BEHAVIOUR).exists():
        link_or_copy(prepared / BEHAVIOUR, folder / BEHAVIOUR)
    mixed = {**manifest, "tasks": tasks, "windows": {}}
    mixed.pop("labelled", None)
    (folder / MANIFEST).write_text(to_json(mixed) + "\n", encoding="utf-8")
