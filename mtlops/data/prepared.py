"""What `prepare` writes and everything after it reads: splits, windows and their manifest.

    manifest.json                       rows, hashes, columns and provenance of all below
    <task>/{train,valid,test}.parquet   the columns of `COLUMNS`, then the source's own
    windows/<window>/<task>.parquet     rows set aside as production traffic, same columns
    labelled/<window>/<task>/*.parquet  splits of a labelled window that `admit` added, same columns
    quarantine.parquet                  rows that were set aside, with the reason; only when there are any

Every file is checked against its hash in the manifest when it is read.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NotRequired, TypedDict, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mtlops.errors import ArtefactError
from mtlops.files import read_json, sha256_file
from mtlops.tasks import Task

SCHEMA_VERSION = 1
SPLITS = ("train", "valid", "test")
COLUMNS = ("row_id", "text", "label", "group", "timestamp", "source")
MANIFEST = "manifest.json"
QUARANTINE = "quarantine.parquet"

_MADE_BY = "mtlops prepare"


class Part(TypedDict):
    """One Parquet file of the folder.

    Attributes:
        rows: number of rows.
        sha256: of the file.
        path: relative to the folder, with `/`.
        label_counts: rows (of tags: words) of each class in the order of the classes, then of labels outside them;
            empty for a regression.
    """

    rows: int
    sha256: str
    path: str
    label_counts: dict[str, int]


class TaskEntry(TypedDict):
    """One task of the manifest; `splits` has the keys `train`, `valid` and `test`."""

    kind: str
    classes: list[str]
    source: str
    splits: dict[str, Part]


class WindowEntry(TypedDict):
    """One production window: the rule that chose its rows, and its file per task."""

    rule: dict[str, Any]
    tasks: dict[str, Part]


class LabelledEntry(TypedDict):
    """One labelled window: what window.json says of it, rows set aside by reason, and its splits by task."""

    facts: dict[str, Any]
    rows_set_aside: dict[str, int]
    tasks: dict[str, dict[str, Part]]


class SourceEntry(TypedDict):
    """Where rows came from: the sha256 of the file or archive, rows read, and the package if it was one."""

    sha256: str
    rows: int
    package: NotRequired[str]


class Manifest(TypedDict):
    """The content of manifest.json.

    Attributes:
        schema_version: of this file's layout.
        suite: name of the suite.
        tasks: the tasks by name.
        windows: the windows by name.
        rows_set_aside: how many rows were left out, by reason; the reasons that a task decides
            (`conflicting labels`, `duplicate`, `over max_rows_per_task`) count a row once for each task.
        columns: for each task its columns with their Arrow types.
        fingerprint: `normalisation` and `tokenizer`: what made the text, what will read it.
        sources: the sources by name.
        grouping: `components` (sets of rows that share groups or texts, each on one side of every
            split) and `largest_rows`.
        data_as_of: ISO time in UTC of the newest row or package member known.
        labelled: the labelled windows by name, the oldest first; absent before the first.
    """

    schema_version: int
    suite: str
    tasks: dict[str, TaskEntry]
    windows: dict[str, WindowEntry]
    rows_set_aside: dict[str, int]
    columns: dict[str, dict[str, str]]
    fingerprint: dict[str, str]
    sources: dict[str, SourceEntry]
    grouping: dict[str, int]
    data_as_of: str
    labelled: NotRequired[dict[str, LabelledEntry]]


def read_manifest(folder: Path) -> Manifest:
    """Returns the manifest of a prepared folder.

    Raises:
        ArtefactError: it is missing, not JSON, or of another version of the layout.
    """
    path = folder / MANIFEST
    manifest = read_json(path, made_by=_MADE_BY)
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise ArtefactError(
            f"{path}: has schema_version {version!r}, this mtlops reads {SCHEMA_VERSION}. Run `{_MADE_BY}` again."
        )
    return cast(Manifest, manifest)


def read_split(folder: Path, task: str, split: str, *, without: str | None = None) -> pa.Table:
    """Returns one split of a task, `train`, `valid` or `test`: first its own rows, then those of labelled windows.

    Where a window has a text that stood there before, its row replaces the older one: labels change.

    Args:
        folder: of the prepared splits.
        task: its name.
        split: its name.
        without: a labelled window to leave out, and all that came after it.

    Raises:
        ArtefactError: there is none, or its bytes are not those that the manifest promises.
    """
    manifest = read_manifest(folder)
    tasks = manifest["tasks"]
    own = _read(folder, _pick(tasks.get(task, {"splits": {}})["splits"], split, folder=folder, what=f"task {task!r}"))
    names = windows_of(manifest, task)
    names = names[: names.index(without)] if without in names else names
    newer = [_read(folder, manifest["labelled"][name]["tasks"][task][split]) for name in names]
    return join_parts([own, *newer]) if newer else own


def read_labelled(folder: Path, window: str, task: str, split: str) -> pa.Table:
    """Returns one split of a labelled window for one task. Raises like `read_split`."""
    labelled = read_manifest(folder).get("labelled", {})
    parts = labelled[window]["tasks"].get(task, {}) if window in labelled else {}
    return _read(folder, _pick(parts, split, folder=folder, what=f"labelled window {window!r} of task {task!r}"))


def windows_of(manifest: Manifest, task: str) -> list[str]:
    """Returns the names of the labelled windows with rows of a task, the oldest first."""
    return [name for name, entry in manifest.get("labelled", {}).items() if task in entry["tasks"]]


def read_window(folder: Path, window: str, task: str) -> pa.Table:
    """Returns the rows of a production window for one task. Raises like `read_split`."""
    windows = read_manifest(folder)["windows"]
    parts = windows[window]["tasks"] if window in windows else {}
    return _read(folder, _pick(parts, task, folder=folder, what=f"window {window!r}"))


def join_parts(tables: Sequence[pa.Table]) -> pa.Table:
    """Returns the rows of several parts of a task in the columns of the first; of rows with one id the last.

    Raises:
        ArtefactError: a column cannot be read as that of the first.
    """
    columns = tables[0].schema
    together = pa.concat_tables([_with_columns(table, columns) for table in tables])
    last = {row_id: position for position, row_id in enumerate(together["row_id"].to_pylist())}
    return together if len(last) == together.num_rows else together.take(sorted(last.values()))


def newest_window(manifest: Manifest, task: str) -> str | None:
    """Returns the name of the newest labelled window with rows of a task, or None."""
    return next(reversed(windows_of(manifest, task)), None)


def write_part(folder: Path, path: str, table: pa.Table, *, task: Task) -> Part:
    """Writes `table` to `folder/path`, the same table as the same bytes, and returns its manifest entry."""
    target = folder / path
    target.parent.mkdir(parents=True, exist_ok=True)
    write_parquet(target, table)
    counts = count_part(table, task)
    return {"rows": counts["rows"], "sha256": sha256_file(target), "path": path, "label_counts": counts["label_counts"]}


class Counts(TypedDict):
    """Rows of a part, and its label counts, as `Part` has them."""

    rows: int
    label_counts: dict[str, int]


def count_part(table: pa.Table, task: Task) -> Counts:
    """Returns what a manifest says about the rows of a table."""
    return {"rows": table.num_rows, "label_counts": _label_counts(table["label"].to_pylist(), task)}


def write_parquet(path: Path, table: pa.Table) -> None:
    """Writes a Parquet file with fixed settings, so that bytes depend on the table alone."""
    pq.write_table(table, path, compression="zstd", version="2.6", row_group_size=1 << 16)


def _with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The table in these columns: one that it lacks is empty, one of another type is read as this one."""
    try:
        arrays = [
            table[field.name].cast(field.type) if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in schema
        ]  # fmt: skip
    except pa.ArrowInvalid as error:
        raise ArtefactError(
            f"a labelled window does not fit the columns of its task ({error}). Admit it anew."
        ) from None
    return pa.table(arrays, schema=schema)


def _pick(parts: Mapping[str, Part], name: str, *, folder: Path, what: str) -> Part:
    if name in parts:
        return parts[name]
    has = f"{what} has {', '.join(parts)}" if parts else f"there is no {what}"
    raise ArtefactError(f"{folder / MANIFEST}: no {name!r}: {has}. Run `{_MADE_BY}` with this params.yaml.")


def _read(folder: Path, part: Part) -> pa.Table:
    path = folder / part["path"]
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ArtefactError(f"{path}: not found. Run `{_MADE_BY}` again.") from None
    if hashlib.sha256(content).hexdigest() != part["sha256"]:
        raise ArtefactError(f"{path}: differs from its sha256 in {MANIFEST}. Run `{_MADE_BY}` again.")
    return pq.ParquetFile(pa.BufferReader(content)).read()


def _label_counts(labels: Sequence[Any], task: Task) -> dict[str, int]:
    if task.kind == "regression":
        return {}
    counts = dict.fromkeys(task.classes, 0)
    for label in labels:
        for name in label if task.has_label_lists else [label]:
            counts[name] = counts.get(name, 0) + 1
    known = len(task.classes)
    strangers = sorted(list(counts.items())[known:])
    return dict([*list(counts.items())[:known], *strangers])
