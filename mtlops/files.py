"""Writing files so that a reader never sees half of one, and naming their content by hash."""

import errno
import glob
import hashlib
import itertools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtlops.errors import ArtefactError, PlatformError

_NO_HARD_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EXDEV, errno.EMLINK, errno.ENOSYS)

_DIGESTS: dict[tuple[int, int, int, int], str] = {}
"""Digests of files that this process has read, by device, inode, size and time of change."""

_COARSEST_CLOCK_NS = 3 * 10**9
"""Times of change of the coarsest file systems in use are even seconds."""

_numbers = itertools.count()


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`; on a clean exit it becomes `path`, else it is removed.

    Raises:
        PlatformError: the disk is full, over quota, or not writable. Whatever was at `path` stays.
    """
    with cached_path(path) as part:
        yield part
        _sync(part)


@contextmanager
def cached_path(path: Path) -> Iterator[Path]:
    """The same for a file whose content is checked whenever it is read: it does not wait until the disk has it.

    Where the power fails, it may be torn. Raises like `atomic_path`.
    """
    with storage_errors(path):
        part = temporary_path(path)
        try:
            yield part
            part.chmod(0o644)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder; on a clean exit it replaces the folder `path` as a whole.

    The old folder is moved aside before the new one takes its name, and removed last: killed
    between the two renames, nothing is at `path` and the old folder lies beside it as `.NAME.old`.

    Raises:
        PlatformError: the disk is full, over quota, or not writable. Whatever was at `path` stays.
    """
    with storage_errors(path):
        part = temporary_path(path)
        old = path.parent / f".{path.name}.old"
        try:
            part.mkdir()
            yield part
            shutil.rmtree(old, ignore_errors=True)
            if path.exists():
                path.replace(old)
            part.replace(path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yields an empty temporary folder; on a clean exit it becomes `path`, unless another process made `path` first.

    Raises:
        PlatformError: the disk is full, over quota, or not writable.
    """
    with storage_errors(path):
        part = temporary_path(path)
        try:
            part.mkdir()
            yield part
            if not path.exists():
                _rename_folder(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def write_new(path: Path, content: bytes) -> bool:
    """Writes a file only if there is none; returns whether it did. Of many processes exactly one gets True.

    A hard link gives a whole file its name in one step and fails where the name is taken; a rename would replace.
    Where the file system has no hard links, the name is taken first and then filled.

    Raises:
        PlatformError: the disk is full, over quota, or not writable.
    """
    with storage_errors(path):
        part = temporary_path(path)
        try:
            part.write_bytes(content)
            _sync(part)
            os.link(part, path)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_HARD_LINKS:
                raise
            return _fill_new(path, content)
        finally:
            part.unlink(missing_ok=True)
    return True


def link_or_copy(source: Path, target: Path) -> None:
    """Gives the content of `source` a second name, which must be free; copies it where no hard link is possible."""
    try:
        target.hardlink_to(source)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        shutil.copyfile(source, target)


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns an operating-system error while writing `path` into a PlatformError that names it."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise PlatformError(
            f"{path}: cannot be written: {reason}. Free space or choose another place, then run the same "
            f"command again; what was there before is unchanged."
        ) from error


def write_text(path: Path, text: str) -> None:
    """Writes `text` as UTF-8 to `path` in one atomic step."""
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` to `path` as indented JSON in one atomic step; the same value gives the same bytes."""
    write_text(path, to_json(value) + "\n")


def to_json(value: Any) -> str:
    """Returns `value` as indented JSON in the order given; not-a-number is refused, not written.

    Raises:
        ValueError: `value` holds a NaN or an infinity, which JSON cannot say.
    """
    return json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)


def read_json(path: Path, *, made_by: str) -> Any:
    """Returns the JSON value in `path`.

    Raises:
        ArtefactError: the file is missing or not JSON; the message names `made_by`, the command to run.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArtefactError(f"{path}: not found. Run `{made_by}` first.") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ArtefactError(f"{path}: is not valid JSON ({error}). Run `{made_by}` again.") from None


def sha256_file(path: Path) -> str:
    """Returns the sha256 of a file's bytes as 64 hex digits, read in pieces of 1 MiB.

    What this process has read once it knows by device, inode, size and time of change, as git's index does. And as
    there, a file that changed a moment ago is always read: its clock may be too coarse to tell a second change.
    """
    state = path.stat()
    identity = (state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns)
    if identity in _DIGESTS:
        return _DIGESTS[identity]
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    if time.time_ns() - state.st_mtime_ns > _COARSEST_CLOCK_NS:
        _DIGESTS[identity] = digest.hexdigest()
    return digest.hexdigest()


def sha256_tree(folder: Path, *, keep: Callable[[Path], bool] = lambda _: True) -> str:
    """Returns one sha256 over the names and bytes of all files below `folder` for which `keep` holds."""
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and keep(p)):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{sha256_file(path)}\n".encode())
    return digest.hexdigest()


def temporary_path(path: Path) -> Path:
    """Returns a free name beside `path` that says which process writes; what killed ones left there is removed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in path.parent.glob(f"{glob.escape(f'.{path.name}.{socket.gethostname()}-')}*.part"):
        if is_leftover(left):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return path.parent / f".{path.name}.{socket.gethostname()}-{os.getpid()}-{next(_numbers)}.part"


def is_leftover(path: Path) -> bool:
    """Returns whether `path` is a temporary one of a process of this machine that runs no longer."""
    found = re.fullmatch(rf"\..+\.{re.escape(socket.gethostname())}-(\d+)-\d+\.part", path.name)
    return found is not None and not is_running(int(found[1]))


def is_running(process: int) -> bool:
    """Returns whether a process of this machine, given by its id, is running.

    One that has ended and was not waited for by its parent (a zombie, as /proc shows it) is not running.
    """
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    try:
        state = Path(f"/proc/{process}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # no /proc here, or it has ended just now
        return True
    return state.rpartition(")")[2].split()[:1] != ["Z"]


def _rename_folder(part: Path, path: Path) -> None:
    try:
        part.rename(path)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise


def _fill_new(path: Path, content: bytes) -> bool:
    try:
        with path.open("xb") as file:
            file.write(content)
    except FileExistsError:
        return False
    return True


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())
