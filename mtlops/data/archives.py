"""Members of package archives (wheels and source archives), read without unpacking or importing anything."""

import datetime as dt
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from mtlops.errors import ArtefactError


@dataclass(frozen=True)
class Member:
    """One file of an archive: its bytes, and when it was last changed (archives know no time zone: UTC)."""

    content: bytes
    modified: dt.datetime


def read_members(archive: Path | bytes, names: Sequence[str]) -> list[Member]:
    """Returns the members `names` of a zip or tar archive, given by path or as bytes.

    Raises:
        ArtefactError: the archive cannot be read, or has no such member.
    """
    is_zip = zipfile.is_zipfile(archive if isinstance(archive, Path) else io.BytesIO(archive))
    with _explained(archive):
        return _from_zip(archive, names) if is_zip else _from_tar(archive, names)


def _from_zip(archive: Path | bytes, names: Sequence[str]) -> list[Member]:
    with zipfile.ZipFile(archive if isinstance(archive, Path) else io.BytesIO(archive)) as file:
        return [Member(file.read(name), dt.datetime(*file.getinfo(name).date_time, tzinfo=dt.UTC)) for name in names]


def _from_tar(archive: Path | bytes, names: Sequence[str]) -> list[Member]:
    found: dict[str, Member] = {}
    source = archive.open("rb") if isinstance(archive, Path) else io.BytesIO(archive)
    with source, tarfile.open(fileobj=source) as file:
        for info in file:
            if info.name in names and (content := file.extractfile(info)) is not None:
                found[info.name] = Member(content.read(), dt.datetime.fromtimestamp(info.mtime, tz=dt.UTC))
    return [found[name] for name in names]


@contextmanager
def _explained(archive: Path | bytes) -> Iterator[None]:
    where = archive if isinstance(archive, Path) else "an archive inside an archive"
    try:
        yield
    except KeyError as error:
        raise ArtefactError(f"{where}: has no member {error.args[0]!r}. Delete it and run again.") from None
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        raise ArtefactError(f"{where}: is not a readable archive ({error}). Delete it and run again.") from None
