"""Files by name at a URL: a folder, or whatever fsspec reaches (object stores, memory).

A name is relative and uses `/`. A file appears whole or not at all, and two writers can be told apart: `create`
gives exactly one of them True. That is all that `mtlops/registry.py` needs of a storage.
"""

import os
import shutil
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mtlops.errors import ArtefactError, MtlopsError, PlatformError, UsageError
from mtlops.files import (
    atomic_path,
    is_leftover,
    link_or_copy,
    sha256_file,
    storage_errors,
    temporary_path,
    write_new,
)

Tell = Callable[[int], None]
"""Is told how many more bytes have been moved."""

_BLOCK = 1 << 20
_PROBE = ".exclusive"
_ATOMIC_PUT = frozenset({"abfs", "abfss", "adl", "az", "gcs", "gs", "s3", "s3a"})
"""Object stores that put an object only if there is none, in one request (`If-None-Match: *` and the like)."""


class Storage(ABC):
    """Files at a URL. Every method raises PlatformError when the storage does not answer or does not let us.

    Attributes:
        url: where the files lie.
    """

    url: str

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """Returns the content of a small file; None when there is none."""

    @abstractmethod
    def write(self, name: str, content: bytes) -> None:
        """Writes a small file, over what is there."""

    @abstractmethod
    def create(self, name: str, content: bytes) -> bool:
        """Writes a small file only if there is none, and returns whether it did: exactly one of many writers does."""

    @abstractmethod
    def put(self, name: str, source: Path, *, digest: str, tell: Tell) -> None:
        """Stores the file `source`, whose sha256 is `digest`, in pieces; over what is there."""

    @abstractmethod
    def get(self, name: str, target: Path, *, tell: Tell) -> bool:
        """Brings a file to the free path `target`, in pieces or by a hard link; returns False when there is none."""

    @abstractmethod
    def sizes(self, folder: str) -> dict[str, int]:
        """Returns the bytes of every file below `folder`, by name."""

    @abstractmethod
    def remove(self, name: str) -> None:
        """Removes a file, or a folder with all below it, if it is there."""

    @abstractmethod
    def age_seconds(self, name: str) -> float:
        """Returns how long ago a file was written; 0 when it has gone."""


def open_storage(url: str) -> Storage:
    """Returns the storage at a URL; a path is a folder of this machine.

    Raises:
        UsageError: no such kind of URL, or the package for it is not installed.
    """
    if not url:
        raise UsageError("the URL of the registry is empty. Give a folder or something like s3://bucket/registry.")
    if url.startswith("file://"):
        return Folder(Path(unquote(urlsplit(url).path)))
    if "://" not in url and "::" not in url:
        return Folder(Path(url))
    import fsspec

    try:
        system, root = fsspec.url_to_fs(url, use_listings_cache=False)
    except (ValueError, ImportError) as error:
        raise UsageError(f"{url}: {error}. Give a folder, or install the package for this kind of URL.") from None
    except Exception as error:  # each kind of storage has its own errors
        raise PlatformError(f"{url}: cannot be opened ({type(error).__name__}: {error}).") from error
    return Objects(url, system, root.rstrip("/"))


class Folder(Storage):
    """Files below a folder of this machine, or of a shared file system mounted here.

    Args:
        path: the folder; it is made when the first file is written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = str(path)

    def read(self, name: str) -> bytes | None:
        """Returns the content of a file; None when there is none."""
        with self._reading(name):
            try:
                return (self.path / name).read_bytes()
            except FileNotFoundError:
                return None

    def write(self, name: str, content: bytes) -> None:
        """Writes a file in one atomic step."""
        with atomic_path(self.path / name) as part:
            part.write_bytes(content)

    def create(self, name: str, content: bytes) -> bool:
        """Writes a file only if there is none, by a hard link."""
        return write_new(self.path / name, content)

    def put(self, name: str, source: Path, *, digest: str, tell: Tell) -> None:
        """Copies a file in; it cannot be written to afterwards, since other names may stand for the same bytes.

        Raises:
            ArtefactError: what was copied has another sha256: the file changed meanwhile.
        """
        path = self.path / name
        with atomic_path(path) as part:
            _copy(source, part, tell)
            if sha256_file(part) != digest:
                raise ArtefactError(f"{source}: it changed while it was copied. Publish again when it is at rest.")
        with storage_errors(path):
            path.chmod(0o444)

    def get(self, name: str, target: Path, *, tell: Tell) -> bool:
        """Gives a file a second name at `target`, by a hard link or, on another device, as a copy."""
        with storage_errors(target):
            try:
                link_or_copy(self.path / name, target)
            except FileNotFoundError:
                return False
            tell(target.stat().st_size)
        return True

    def sizes(self, folder: str) -> dict[str, int]:
        """Returns the bytes of every file below `folder`; what is being written (`.NAME.part`) is not there yet."""
        with self._reading(folder):
            return {name: stat.st_size for name, stat in self._files(folder) if not _is_hidden(name)}

    def remove(self, name: str) -> None:
        """Removes a file; a folder is first renamed, so that nobody sees half of it."""
        path = self.path / name
        with storage_errors(path):
            if path.is_dir():
                aside = temporary_path(path)
                path.rename(aside)
                shutil.rmtree(aside)
            else:
                path.unlink(missing_ok=True)

    def age_seconds(self, name: str) -> float:
        """Returns how long ago a file was written; 0 when it has gone."""
        with self._reading(name):
            try:
                return time.time() - (self.path / name).stat().st_mtime
            except FileNotFoundError:
                return 0.0

    def remove_leftovers(self, *, older_than_seconds: float) -> None:
        """Removes what killed processes left half written; those of other machines are known by their age."""
        for path in [*self.path.glob("*/.*.part"), *self.path.glob(".*.part")]:
            with storage_errors(path), suppress(FileNotFoundError):
                if is_leftover(path) or time.time() - path.lstat().st_mtime > older_than_seconds:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _files(self, folder: str) -> Iterator[tuple[str, os.stat_result]]:
        # Not Path.rglob: it takes a folder that it may not read for an empty one.
        for parent, _, names in os.walk(self.path / folder, onerror=_raise_unless_missing):
            for path in (Path(parent, name) for name in names):
                with suppress(FileNotFoundError):
                    yield path.relative_to(self.path).as_posix(), path.stat()

    @contextmanager
    def _reading(self, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            reason = error.strerror or str(error)
            raise PlatformError(f"{self.path / name}: cannot be read: {reason}.") from error


class Objects(Storage):
    """Files of an fsspec file system.

    Args:
        url: as the user wrote it.
        system: fsspec's file system, without a cache of listings.
        root: path of the folder in it.
    """

    _memory_lock = threading.Lock()
    """fsspec's memory file system looks and then writes; this makes it one step."""

    def __init__(self, url: str, system: Any, root: str) -> None:
        self.url = url
        self._system, self._root = system, root
        self._is_exclusive = False

    def read(self, name: str) -> bytes | None:
        """Returns the content of an object; None when there is none."""
        with self._asking(name, "read"):
            try:
                content: bytes = self._system.cat_file(self._path(name))
            except FileNotFoundError:
                return None
            return content

    def write(self, name: str, content: bytes) -> None:
        """Writes an object, over what is there."""
        with self._asking(name, "written"):
            self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self._system.pipe_file(self._path(name), content)

    def create(self, name: str, content: bytes) -> bool:
        """Writes an object only if there is none.

        Raises:
            PlatformError: the storage writes over what is there although asked not to; two promotions could both win.
        """
        if not self._is_exclusive:
            self.write(_PROBE, b"")
            if self._create(_PROBE, b"x"):
                raise PlatformError(
                    f"{self.url}: this storage cannot create a file only if there is none, so it cannot say who of two "
                    f"writers was first. Use a folder, s3, gs or abfs."
                )
            self._is_exclusive = True
        return self._create(name, content)

    def _create(self, name: str, content: bytes) -> bool:
        path, protocols = self._path(name), _protocols(self._system)
        with self._asking(name, "created"):
            try:
                self._system.makedirs(path.rpartition("/")[0], exist_ok=True)
                if "memory" in protocols:
                    with self._memory_lock:
                        self._system.pipe_file(path, content, mode="create")
                elif protocols & _ATOMIC_PUT:
                    self._system.pipe_file(path, content, mode="create")
                else:
                    with self._system.open(path, "xb") as file:
                        file.write(content)
            except FileExistsError:
                return False
        return True

    def put(self, name: str, source: Path, *, digest: str, tell: Tell) -> None:
        """Uploads a file in pieces; `fetch` checks its sha256, the upload its size."""
        with self._asking(name, "written"):
            self._system.makedirs(self._path(name).rpartition("/")[0], exist_ok=True)
            self._system.put_file(str(source), self._path(name), callback=_callback(tell))

    def get(self, name: str, target: Path, *, tell: Tell) -> bool:
        """Downloads an object in pieces."""
        with self._asking(name, "read"):
            try:
                self._system.get_file(self._path(name), str(target), callback=_callback(tell))
            except FileNotFoundError:
                return False
        return True

    def sizes(self, folder: str) -> dict[str, int]:
        """Returns the bytes of every object below `folder`."""
        with self._asking(folder, "listed"):
            found = dict(self._files(self._path(folder).rstrip("/")))
        names = {path[len(self._root) + 1 :]: size for path, size in found.items()}
        return {name: size for name, size in names.items() if not _is_hidden(name)}

    def _files(self, path: str) -> Iterator[tuple[str, int]]:
        # Not fsspec's find: it takes a folder that it cannot list for an empty one.
        try:
            entries: list[Mapping[str, Any]] = self._system.ls(path, detail=True)
        except FileNotFoundError:
            return
        for entry in entries:
            if entry["type"] == "directory":
                yield from self._files(entry["name"].rstrip("/"))
            elif entry["name"] != f"{path}/":
                yield entry["name"], int(entry["size"])

    def remove(self, name: str) -> None:
        """Removes an object, or all below a folder, if it is there."""
        with self._asking(name, "removed"), suppress(FileNotFoundError):
            self._system.rm(self._path(name), recursive=True)

    def age_seconds(self, name: str) -> float:
        """Returns how long ago an object was written; 0 when it has gone."""
        with self._asking(name, "read"):
            try:
                return float(time.time() - self._system.modified(self._path(name)).timestamp())
            except FileNotFoundError:
                return 0.0

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"

    @contextmanager
    def _asking(self, name: str, what: str) -> Iterator[None]:
        try:
            yield
        except (MtlopsError, FileNotFoundError, FileExistsError):
            raise
        except Exception as error:  # each kind of storage has its own errors
            said = f"{type(error).__name__}: {error}".replace("\n", " ")
            raise PlatformError(f"{self.url.rstrip('/')}/{name}: cannot be {what} ({said}).") from error


def _copy(source: Path, target: Path, tell: Tell) -> None:
    with source.open("rb") as old, target.open("wb") as new:
        while block := old.read(_BLOCK):
            new.write(block)
            tell(len(block))


def _callback(tell: Tell) -> Any:
    from fsspec.callbacks import Callback

    class Told(Callback):  # type: ignore[misc]
        def relative_update(self, inc: int = 1) -> None:
            super().relative_update(inc)
            tell(inc)

    return Told()


def _raise_unless_missing(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _protocols(system: Any) -> frozenset[str]:
    protocol = system.protocol
    return frozenset([protocol] if isinstance(protocol, str) else protocol)


def _is_hidden(name: str) -> bool:
    return any(part.startswith(".") for part in name.split("/"))
