"""Labelled windows as they are kept: a folder with the rows, and window.json, which says where they come from.

data/windows/<name>/window.json    tasks, sha256 of the rows, alert, note
data/windows/<name>/rows.csv       the labelled rows as they were handed in (or .jsonl, .ndjson, .parquet)
"""

import re
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from mtlops.data.tables import READERS
from mtlops.errors import ArtefactError, DataError, UsageError
from mtlops.files import atomic_folder, read_json, sha256_file, write_json

SCHEMA_VERSION = 1
FACTS = "window.json"

_NAME = re.compile(r"[a-z][a-z0-9_-]{0,62}")


@dataclass(frozen=True)
class Labelled:
    """One labelled window.

    Attributes:
        name: of the window: that of its folder when it was recorded.
        tasks: tasks whose labels it has.
        file: name of the file with the rows.
        sha256: of that file.
        alert: id of the alert that asked for it; empty without one.
        note: what else a reader should know; may be empty.
    """

    name: str
    tasks: tuple[str, ...]
    file: str
    sha256: str
    alert: str = ""
    note: str = ""


def record(rows: Path, folder: Path, *, tasks: Sequence[str], alert: str = "", note: str = "") -> Labelled:
    """Copies a file of labelled rows into the new folder of a window, and says there where it comes from.

    Recording the same file again changes nothing.

    Raises:
        UsageError: the folder's name or the file's suffix is none that is possible, or no task is named.
        DataError: there is no such file, or the folder holds other rows.
        PlatformError: the folder cannot be written.
    """
    if not _NAME.fullmatch(folder.name):
        raise UsageError(
            f"{folder}: a window's name must be lower-case letters, digits, '-' and '_', starting with a letter."
        )
    if rows.suffix.lower() not in READERS:
        raise UsageError(f"{rows}: the suffix must be one of {', '.join(READERS)}.")
    if not tasks:
        raise UsageError(f"{rows}: for which tasks does it have labels? Give --tasks A,B.")
    if not rows.is_file():
        raise DataError(f"{rows}: not found. Give the file with the labelled rows.")
    found = Labelled(folder.name, tuple(tasks), f"rows{rows.suffix.lower()}", sha256_file(rows), alert, note)
    if (folder / FACTS).exists():
        there = read_labelled_window(folder)
        if (there.sha256, there.tasks) == (found.sha256, found.tasks):
            return there
        raise DataError(f"{folder}: holds another window already. Choose another --name: a window never changes.")
    with atomic_folder(folder) as part:
        shutil.copyfile(rows, part / found.file)
        write_json(part / FACTS, {"schema_version": SCHEMA_VERSION, **asdict(found)})
    return found


def read_labelled_window(folder: Path) -> Labelled:
    """Returns what a window's folder says, after checking that its rows are those that were recorded.

    Raises:
        ArtefactError: there is no window, or a file of it is missing, damaged or of another version.
    """
    facts = read_json(folder / FACTS, made_by="mtlops admit FILE")
    try:
        if facts.pop("schema_version") != SCHEMA_VERSION:
            raise ArtefactError(f"{folder / FACTS}: was written by another version of mtlops. Record the window anew.")
        found = Labelled(**facts | {"tasks": tuple(facts["tasks"])})
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtefactError(f"{folder / FACTS}: is not about a window ({error}). Record it anew.") from None
    if not (folder / found.file).is_file():
        raise ArtefactError(f"{folder / found.file}: not found. Fetch it (`dvc pull`), or record the window anew.")
    if sha256_file(folder / found.file) != found.sha256:
        raise ArtefactError(f"{folder / found.file}: its sha256 is not the one in {FACTS}. Record the window anew.")
    return found
