"""The prediction log as a reader sees it: which files there are, and their rows or what is wrong with them."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq

from mtlops.errors import MtlopsError, UsageError
from mtlops.prediction_log import FEEDBACK, FEEDBACK_SCHEMA, PREDICTION_SCHEMA, PREDICTIONS
from mtlops.storage import open_storage

SCHEMAS = {PREDICTIONS: PREDICTION_SCHEMA, FEEDBACK: FEEDBACK_SCHEMA}

_NAME = re.compile(r"(?P<table>predictions|feedback)/date=(?P<date>\d{4}-\d\d-\d\d)/"
                   r"(?P<micros>\d{20})-(?P<writer>[A-Za-z0-9_.]+)-(?P<sequence>\d{8})\.parquet")  # fmt: skip


class DamagedFileError(MtlopsError):
    """A file of the log cannot be used; it is set aside and reported, never skipped in silence."""

    exit_code = 3


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

    def read(self, file: LogFile) -> pa.Table:
        """Returns the rows of a file, with the columns of its schema.

        Raises:
            DamagedFileError: it is no Parquet file, cut off, or has other columns; the message says which.
        """
        content = self._storage.read(file.name)
        if content is None:
            raise DamagedFileError("it has gone between listing and reading")
        try:
            table = pq.ParquetFile(pa.BufferReader(content)).read(use_threads=False)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise DamagedFileError(f"cannot be read as Parquet ({str(error).splitlines()[0]})") from None
        return _fit(table, SCHEMAS[file.table])

    def _folders(self, since: date | None) -> Iterable[str]:
        if since is None:
            return (PREDICTIONS, FEEDBACK)
        days = (datetime.now(UTC).date() + timedelta(days=1) - since).days
        dates = [since + timedelta(days=k) for k in range(max(days, 0) + 1)]
        return [f"{table}/date={day:%Y-%m-%d}" for table in (PREDICTIONS, FEEDBACK) for day in dates]


def _fit(table: pa.Table, schema: pa.Schema) -> pa.Table:
    missing = [name for name in schema.names if name not in table.column_names]
    if missing:
        raise DamagedFileError(f"lacks the column {missing[0]!r}; it was written by another version of mtlops")
    try:
        return table.select(schema.names).cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise DamagedFileError(f"has columns of other types ({str(error).splitlines()[0]})") from None
