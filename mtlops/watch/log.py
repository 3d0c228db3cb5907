"""The prediction log as a reader sees it: which files there are, and their rows or what is wrong with them."""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtlops.errors import MtlopsError, UsageError
from mtlops.prediction_log import FEEDBACK, FEEDBACK_SCHEMA, PREDICTION_SCHEMA, PREDICTIONS
from mtlops.storage import open_storage

SCHEMAS = {PREDICTIONS: PREDICTION_SCHEMA, FEEDBACK: FEEDBACK_SCHEMA}

_ROWS_AT_ONCE = 4096

_NAME = re.compile(r"(?P<table>predictions|feedback)/date=(?P<date>\d{4}-\d\d-\d\d)/"
                   r"(?P<micros>\d{20})-(?P<writer>[A-Za-z0-9_.]+)-(?P<sequence>\d{8})\.parquet")  # fmt: skip


class DamagedFileError(MtlopsError):
    """A file of the log cannot be used; it is set aside and reported, never skipped in silence.

    Args:
        name: of the file.
        reason: what is wrong with it.
    """

    exit_code = 3

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(reason)
        self.name = name


@dataclass(frozen=True, order=True)
class LogFile:
    """A file of the log; sorted by the time of its first row, then by its writer and number.

    Attributes:
        micros: time of its first row, in microseconds since 1970.
        writer: the process that wrote it.
        sequence: its number among the writer's files of this table.
        table: `predictions` or `feedback`.
        name: below the log's URL.
        bytes: size.
    """

    micros: int
    writer: str
    sequence: int
    table: str
    name: str
    bytes: int = 0

    @property
    def day(self) -> date:
        """The day (UTC) of its first row."""
        return datetime.fromtimestamp(self.micros / 1e6, UTC).date()


class PredictionLog:
    """The files of a log at a URL. Raises PlatformError when the storage does not answer.

    Args:
        url: a folder, or anything that fsspec reaches.
    """

    def __init__(self, url: str) -> None:
        if not url:
            raise UsageError("no prediction log. Give --log URL: the same as `mtlops serve --log`.")
        self._storage = open_storage(url)
        self.url = self._storage.url

    def files(self, *, since: date | None = None) -> tuple[list[LogFile], list[str]]:
        """Returns the files in reading order, predictions first at the same time, and names that are none of ours.

        Args:
            since: look only at days from this one on; None: at all.
        """
        found: list[LogFile] = []
        strange: list[str] = []
        for folder in self._folders(since):
            for name, size in self._storage.sizes(folder).items():
                match = _NAME.fullmatch(name)
                if match is None:
                    strange.append(name)
                    continue
                found.append(LogFile(int(match["micros"]), match["writer"], int(match["sequence"]), match["table"],
                                     name, size))  # fmt: skip
        return sorted(found), sorted(strange)

    def read(self, file: LogFile) -> Iterator[pa.Table]:
        """Yields the rows of a file, some thousands at once, with the columns of its schema; no request is cut in two.

        Raises:
            DamagedFileError: it is no Parquet file, cut off, or has other columns; the message says which. What was
                yielded before belongs to a file that cannot be used.
        """
        content = self._storage.read(file.name)
        if content is None:
            raise DamagedFileError(file.name, "it has gone between listing and reading")
        try:
            yield from _whole_requests(_fitting(content, SCHEMAS[file.table]))
        except _OtherColumnsError as error:
            raise DamagedFileError(file.name, str(error)) from None
        except (pa.ArrowException, OSError, ValueError) as error:
            said = str(error).splitlines()[0]
            raise DamagedFileError(file.name, f"cannot be read as Parquet ({said})") from None

    def _folders(self, since: date | None) -> Iterable[str]:
        if since is None:
            return (PREDICTIONS, FEEDBACK)
        days = (datetime.now(UTC).date() + timedelta(days=1) - since).days
        dates = [since + timedelta(days=k) for k in range(max(days, 0) + 1)]
        return [f"{table}/date={day:%Y-%m-%d}" for table in (PREDICTIONS, FEEDBACK) for day in dates]


class _OtherColumnsError(Exception):
    """A table does not have the columns of its schema."""


def _fitting(content: bytes, schema: pa.Schema) -> Iterator[pa.Table]:
    """Yields the rows of a Parquet file in the columns of a schema."""
    file = pq.ParquetFile(pa.BufferReader(content))
    missing = [name for name in schema.names if name not in file.schema_arrow.names]
    if missing:
        raise _OtherColumnsError(f"lacks the column {missing[0]!r}; it was written by another version of mtlops")
    for batch in file.iter_batches(_ROWS_AT_ONCE, columns=schema.names, use_threads=False):
        try:
            yield pa.Table.from_batches([batch]).select(schema.names).cast(schema)
        except (pa.ArrowException, ValueError) as error:
            raise _OtherColumnsError(f"has columns of other types ({str(error).splitlines()[0]})") from None


def _whole_requests(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """Yields the same rows, cut only where one request ends and another begins: its rows are judged together."""
    held: pa.Table | None = None
    for table in tables:
        if held is None:
            held = table
            continue
        end = _end_of_whole_requests(held, table)
        if end:
            yield held.slice(0, end)
        held = pa.concat_tables([held.slice(end), table])
    if held is not None:
        yield held


def _end_of_whole_requests(table: pa.Table, following: pa.Table) -> int:
    """How many rows come before those of a request that goes on in the table that follows."""
    others = np.flatnonzero(pc.not_equal(table["request_id"], following["request_id"][0]).to_numpy())
    return int(others[-1]) + 1 if len(others) else 0
