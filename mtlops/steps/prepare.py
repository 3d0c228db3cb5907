"""prepare: packages and files in; the encoder, leakage-free splits and production windows out."""

import datetime as dt
import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mtlops.data.allocation import Allocation, allocate, without_conflicts
from mtlops.data.checks import Check, check_files, read_checks, write_behaviour
from mtlops.data.encoders import EncoderFiles, read_encoder, write_encoder
from mtlops.data.labelled import read_labelled_window
from mtlops.data.normalisation import fingerprint
from mtlops.data.prepared import (
    MANIFEST,
    QUARANTINE,
    SCHEMA_VERSION,
    SPLITS,
    Manifest,
    Part,
    SourceEntry,
    write_parquet,
    write_part,
)
from mtlops.data.rows import NO_TIME, Rows, read_rows
from mtlops.data.selection import Index, at_most, first_of_each
from mtlops.data.sources import Source, load_sources
from mtlops.data.tabulation import Tabulation, set_aside_table
from mtlops.data.windows import rule
from mtlops.errors import DataError, UsageError
from mtlops.files import atomic_folder, to_json
from mtlops.params import Params
from mtlops.steps.admit import admit_recorded

logger = logging.getLogger(__name__)

DUPLICATE = "duplicate"
NO_LABEL = "no label"
OVER_MOST = "over max_rows_per_task"

_DAWN = dt.datetime(1980, 1, 1, tzinfo=dt.UTC)
"""`data_as_of` where no input says how new it is."""


@dataclass(frozen=True)
class Prepared:
    """What the step made.

    Attributes:
        path: folder of the splits.
        encoder: folder of the encoder.
        rows: task -> split -> rows.
        windows: window -> task -> rows.
        rows_set_aside: reason -> rows (see `mtlops.data.prepared.Manifest`).
        components: sets of rows that share groups or texts.
        largest_component: rows of the largest of them.
    """

    path: str
    encoder: str
    rows: dict[str, dict[str, int]]
    windows: dict[str, dict[str, int]]
    rows_set_aside: dict[str, int]
    components: int
    largest_component: int


def prepare(
    params: Params,
    *,
    base: Path = Path(),
    raw: Path = Path("data/raw"),
    out: Path = Path("data/prepared"),
    encoder: Path = Path("data/encoder"),
) -> Prepared:
    """Writes the encoder, and every task's splits and windows, and returns how many rows they have.

    Archives are kept in `raw` and fetched only when missing; relative files are looked for in `base`, the
    folder of params.yaml. Both output folders are replaced as a whole or left as they were.

    Raises:
        UsageError: params.yaml asks for what is not there, or an output folder holds something else.
        DataError: the data break a promise of params.yaml.
        PlatformError: an archive cannot be fetched, or an output cannot be written.
    """
    _refuse_foreign(out, MANIFEST)
    _refuse_foreign(encoder, "encoder.json")
    files = read_encoder(params.encoder.source, base=base, raw=raw, revision=params.encoder.revision)
    behaviour = check_files(params.data.behaviour, base=base)
    checks = [check for path in behaviour.values() for check in _checks(params, path)]
    rows = read_rows(params, load_sources(params, base=base, raw=raw))
    unlabelled = len(rows) - int(rows.has_label(list(rows.labels)).sum())
    rows = without_conflicts(rows)
    allocation = allocate(params, rows)
    logger.info("components=%d largest=%d", allocation.num_components, allocation.largest_rows)
    left_out = Counter({NO_LABEL: unlabelled}) + allocation.left_out + Counter(row.reason for row in rows.set_aside)
    splits = {task: _splits(params, rows, allocation, task, left_out) for task in rows.labels}
    tokenizer_sha256 = _write_encoder(encoder, files)
    manifest = _manifest(params, rows, allocation, left_out=left_out, tokenizer_sha256=tokenizer_sha256)
    with atomic_folder(out) as folder:
        _write(folder, manifest, params, rows, allocation, splits, behaviour, checks)
        for window in params.data.labelled:
            facts = read_labelled_window(base / window)
            if not set(facts.tasks) <= set(params.left_out):
                admit_recorded(params, base / window, facts, prepared=folder, out=folder)
    return _result(manifest, out=out, encoder=encoder)


def _checks(params: Params, path: Path) -> list[Check]:
    found = read_checks(path, tasks=params.tasks(), left_out=params.left_out)
    logger.info("behaviour=%s checks=%d cases=%d", path, len(found), sum(len(check.cases) for check in found))
    return found


def _refuse_foreign(folder: Path, sign: str) -> None:
    """Keeps the step from replacing a folder that it did not make."""
    if folder.exists() and not (folder.is_dir() and ((folder / sign).exists() or not any(folder.iterdir()))):
        raise UsageError(f"{folder}: exists and was not made by `mtlops prepare`. Name another folder, or move it.")


def _splits(params: Params, rows: Rows, allocation: Allocation, task: str, left_out: Counter[str]) -> dict[str, Index]:
    """The rows of each split of a task, ordered by row id; counts in `left_out` those that go."""
    labels = rows.labels[task]
    has_label = rows.has_label([task])
    every = {name: np.flatnonzero(has_label & (allocation.splits == code)) for code, name in enumerate(SPLITS)}
    unique = {name: first_of_each(rows.ids, index) for name, index in every.items()}
    for name, index in unique.items():
        if not len(index):
            raise DataError(
                f"task {task}: no row for its split {name!r}: {sum(map(len, every.values()))} labelled rows are left, "
                f"in groups that cannot be divided. Bring more rows or groups, or set aside less in data.windows."
            )
    kept = at_most(params.data.max_rows_per_task, unique, ids=rows.ids, labels=labels, seed=params.data.seed)
    left_out[DUPLICATE] += sum(map(len, every.values())) - sum(map(len, unique.values()))
    left_out[OVER_MOST] += sum(map(len, unique.values())) - sum(map(len, kept.values()))
    return kept


def _write_encoder(encoder: Path, files: EncoderFiles) -> str:
    with atomic_folder(encoder) as folder:
        return write_encoder(folder, files)


def _manifest(
    params: Params, rows: Rows, allocation: Allocation, *, left_out: Counter[str], tokenizer_sha256: str
) -> Manifest:
    """The manifest, with the parts still to be written left open."""
    return {
        "schema_version": SCHEMA_VERSION,
        "suite": params.suite.name,
        "tasks": {
            name: {"kind": spec.kind, "classes": list(spec.classes), "source": spec.source, "splits": {}}
            for name, spec in params.suite.tasks.items()
        },
        "windows": {name: {"rule": rule(window), "tasks": {}} for name, window in params.data.windows.items()},
        "rows_set_aside": {reason: count for reason, count in sorted(left_out.items()) if count},
        "columns": {},
        "fingerprint": {"normalisation": fingerprint(), "tokenizer": tokenizer_sha256},
        "sources": {source.name: _source_entry(source) for source in rows.sources},
        "grouping": {"components": allocation.num_components, "largest_rows": allocation.largest_rows},
        "data_as_of": _as_of(rows),
    }


def _source_entry(source: Source) -> SourceEntry:
    entry: SourceEntry = {"sha256": source.sha256, "rows": source.num_rows}
    return entry | {"package": source.package} if source.package else entry


def _as_of(rows: Rows) -> str:
    known = [source.as_of for source in rows.sources if source.as_of is not None]
    newest = rows.times.max(initial=NO_TIME)
    if newest != NO_TIME:
        known.append(dt.datetime(1970, 1, 1, tzinfo=dt.UTC) + dt.timedelta(microseconds=int(newest)))
    return max(known, default=_DAWN).strftime("%Y-%m-%dT%H:%M:%SZ")


def _write(
    folder: Path,
    manifest: Manifest,
    params: Params,
    rows: Rows,
    allocation: Allocation,
    splits: Mapping[str, Mapping[str, Index]],
    behaviour: Mapping[str, Path],
    checks: Sequence[Check],
) -> None:
    """Writes the folder, and completes the manifest with the rows and hashes of its parts."""
    tabulation = Tabulation(rows)
    for task in params.tasks():
        has_label = rows.has_label([task.name])
        for split, index in splits[task.name].items():
            table = tabulation.table(task, index)
            part = write_part(folder, f"{task.name}/{split}.parquet", table, task=task)
            manifest["tasks"][task.name]["splits"][split] = part
        manifest["columns"][task.name] = {field.name: str(field.type) for field in table.schema}
        for window in (name for name, spec in params.data.windows.items() if task.name in spec.tasks):
            index = first_of_each(rows.ids, np.flatnonzero(allocation.windows[window] & has_label))
            table = tabulation.table(task, index)
            part = write_part(folder, f"windows/{window}/{task.name}.parquet", table, task=task)
            manifest["windows"][window]["tasks"][task.name] = part
    if rows.set_aside:
        write_parquet(folder / QUARANTINE, set_aside_table(rows.set_aside))
    if behaviour:
        write_behaviour(folder, checks, files=behaviour)
    (folder / MANIFEST).write_text(to_json(manifest) + "\n", encoding="utf-8")


def _result(manifest: Manifest, *, out: Path, encoder: Path) -> Prepared:
    result = Prepared(
        path=str(out),
        encoder=str(encoder),
        rows={task: _num_rows(entry["splits"]) for task, entry in manifest["tasks"].items()},
        windows={window: _num_rows(entry["tasks"]) for window, entry in manifest["windows"].items()},
        rows_set_aside=manifest["rows_set_aside"],
        components=manifest["grouping"]["components"],
        largest_component=manifest["grouping"]["largest_rows"],
    )
    for task, splits in result.rows.items():
        logger.info("task=%s %s", task, " ".join(f"{split}={rows}" for split, rows in splits.items()))
    return result


def _num_rows(parts: Mapping[str, Part]) -> dict[str, int]:
    return {name: part["rows"] for name, part in parts.items()}
