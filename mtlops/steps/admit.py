"""admit: a labelled window in, prepared splits that hold its rows too out."""

import logging
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mtlops.data.admission import known_rows, place
from mtlops.data.allocation import without_conflicts
from mtlops.data.labelled import Labelled, read_labelled_window, record
from mtlops.data.prepared import MANIFEST, SPLITS, LabelledEntry, Manifest, Part, read_manifest, write_part
from mtlops.data.rows import Rows, read_rows
from mtlops.data.selection import Index, first_of_each
from mtlops.data.sources import Source, load_window
from mtlops.data.tabulation import Tabulation
from mtlops.errors import DataError, MtlopsError
from mtlops.files import atomic_folder, link_or_copy, to_json
from mtlops.params import Params
from mtlops.tasks import Task

NO_LABEL = "no label"
DUPLICATE = "duplicate"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Admitted:
    """What the step did.

    Attributes:
        path: folder of the prepared splits.
        window: name of the window.
        folder: where the window is recorded.
        rows: task -> split -> rows that came from it.
        rows_set_aside: rows of it that went nowhere, by reason.
        is_new: False when the splits held it already.
    """

    path: str
    window: str
    folder: str
    rows: dict[str, dict[str, int]]
    rows_set_aside: dict[str, int]
    is_new: bool


def admit(
    params: Params,
    *,
    rows: Path,
    tasks: Sequence[str] = (),
    name: str = "",
    alert: str = "",
    note: str = "",
    windows: Path = Path("data/windows"),
    prepared: Path = Path("data/prepared"),
    out: Path | None = None,
) -> Admitted:
    """Records a labelled window and adds its rows to the splits; a window that is there already changes nothing.

    Args:
        params: of the suite.
        rows: file of labelled rows in the format of the tasks' own source, or the folder of a recorded window.
        tasks: tasks whose labels the file has.
        name: of the window; none takes the file's.
        alert: id of the alert that asked for it.
        note: what else a reader should know.
        windows: folder of recorded windows.
        prepared: folder of prepared splits.
        out: where the splits go; none replaces `prepared`.

    Raises:
        UsageError: a task, name or suffix is none that is possible.
        DataError: the rows break a promise of params.yaml, or none is left for a split.
        ArtefactError: the prepared folder or the window is missing or damaged.
        PlatformError: something cannot be written.
    """
    for task in tasks:
        params.only([task])
    out = out or prepared
    if rows.is_dir():
        return admit_recorded(params, rows, read_labelled_window(rows), prepared=prepared, out=out)
    folder = windows / (name or _name(rows))
    was_there = folder.exists()
    window = record(rows, folder, tasks=tasks, alert=alert, note=note)
    try:
        return admit_recorded(params, folder, window, prepared=prepared, out=out, handed_in=rows)
    except MtlopsError:
        if not was_there:
            shutil.rmtree(folder)
        raise


def _name(rows: Path) -> str:
    """A name for a window, made of its file's."""
    word = re.sub(r"[^a-z0-9_-]", "-", rows.stem.lower())[:60]
    return word if word[:1].isalpha() else f"w-{word}"


def admit_recorded(
    params: Params, folder: Path, window: Labelled, *, prepared: Path, out: Path, handed_in: Path | None = None
) -> Admitted:
    """Adds the rows of a recorded window to the splits. Raises like `admit`.

    `handed_in`: the file that was recorded, for errors to name; without one they name the copy.
    """
    manifest = read_manifest(prepared)
    there = manifest.get("labelled", {}).get(window.name)
    if there is not None and there["facts"] != _facts(window):
        raise DataError(f"{prepared}: holds another window {window.name!r}. Choose another --name for this one.")
    file = handed_in or folder / window.file
    entry = there or _add(params, file, window, prepared=prepared, out=out, manifest=manifest)
    if there is not None and out != prepared:
        _write(prepared, out, manifest, {})
    rows = {task: {split: part["rows"] for split, part in parts.items()} for task, parts in entry["tasks"].items()}
    for task, counts in rows.items():
        logger.info("window=%s task=%s %s", window.name, task, " ".join(f"{s}={n}" for s, n in counts.items()))
    return Admitted(str(out), window.name, str(folder), rows, entry["rows_set_aside"], there is None)


def _add(
    params: Params, file: Path, window: Labelled, *, prepared: Path, out: Path, manifest: Manifest
) -> LabelledEntry:
    suite = params.only([task for task in window.tasks if task not in params.left_out])
    source = load_window(suite, file, tasks=tuple(suite.suite.tasks))
    if source.sha256 != window.sha256:
        raise DataError(f"{file}: was changed while it was read. Admit it again.")
    rows = read_rows(suite, [source])
    unlabelled = len(rows) - int(rows.has_label(list(rows.labels)).sum())
    rows = without_conflicts(rows)
    for task in suite.tasks():
        _check_labels(task, rows, source)
    placement = place(suite, rows, known_rows(prepared, manifest))
    left_out = Counter({NO_LABEL: unlabelled}) + placement.left_out + Counter(row.reason for row in rows.set_aside)
    chosen = {}
    for task in suite.tasks():
        has_label = rows.has_label([task.name])
        every = {name: np.flatnonzero(has_label & (placement.splits == code)) for code, name in enumerate(SPLITS)}
        chosen[task] = {name: first_of_each(rows.ids, index) for name, index in every.items()}
        left_out[DUPLICATE] += sum(map(len, every.values())) - sum(map(len, chosen[task].values()))
        _check_splits(task, chosen[task], source, left_out)
    entry: LabelledEntry = {"facts": _facts(window), "rows_set_aside": {}, "tasks": {}}
    entry["rows_set_aside"] = {reason: count for reason, count in sorted(left_out.items()) if count}
    _write(prepared, out, manifest, {window.name: (entry, rows, chosen)})
    return entry


def _facts(window: Labelled) -> dict[str, object]:
    return asdict(window) | {"tasks": list(window.tasks)}


def _check_labels(task: Task, rows: Rows, source: Source) -> None:
    """Refuses labels outside the classes or the range: whoever labelled made a mistake."""
    known = set(task.classes)
    for row, label in enumerate(rows.labels[task.name]):
        if label is None:
            continue
        if task.kind == "regression":
            low, high = task.range or (float("-inf"), float("inf"))
            fault = None if low <= label <= high else f"{label:g} is outside {low:g} to {high:g}"
        else:
            strangers = [name for name in (label if isinstance(label, tuple) else [label]) if name not in known]
            fault = f"{strangers[0]!r} is not one of {', '.join(task.classes)}" if strangers else None
        if fault:
            line = source.lines[rows.position[row]]
            raise DataError(f"{source.where}: {source.unit} {line}: task {task.name}: {fault}. Correct the label.")


def _check_splits(task: Task, splits: Mapping[str, Index], source: Source, left_out: Mapping[str, int]) -> None:
    for name, index in splits.items():
        if not len(index):
            said = ", ".join(f"{count} {reason}" for reason, count in sorted(left_out.items()) if count) or "none"
            raise DataError(
                f"{source.where}: task {task.name}: no row for its split {name!r} (rows set aside: {said}). Label more "
                f"rows, of more groups."
            )


_Addition = tuple[LabelledEntry, Rows, Mapping[Task, Mapping[str, Index]]]


def _write(prepared: Path, out: Path, manifest: Manifest, added: Mapping[str, _Addition]) -> None:
    """Writes the whole folder anew: parts that it had as links, those of an added window beside them."""
    with atomic_folder(out) as folder:
        for path in sorted(path for path in prepared.rglob("*") if path.is_file() and path.name != MANIFEST):
            target = folder / path.relative_to(prepared)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(path, target)
        for window, (entry, rows, chosen) in added.items():
            tabulation = Tabulation(rows)
            for task, splits in chosen.items():
                parts: dict[str, Part] = {}
                for split, index in splits.items():
                    table = tabulation.table(task, index)
                    parts[split] = write_part(
                        folder, f"labelled/{window}/{task.name}/{split}.parquet", table, task=task
                    )
                entry["tasks"][task.name] = parts
            manifest = {**manifest, "labelled": {**manifest.get("labelled", {}), window: entry}}
        (folder / MANIFEST).write_text(to_json(manifest) + "\n", encoding="utf-8")
