"""A user's own table (CSV, JSON Lines or Parquet), read so that every row is accounted for."""

import csv
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TextIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mtlops.errors import DataError, UsageError

_SURROGATE = re.compile("[\ud800-\udfff]")
_MARKS = (
    (b"\xff\xfe\x00\x00", "UTF-32"),
    (b"\x00\x00\xfe\xff", "UTF-32"),
    (b"\xff\xfe", "UTF-16"),
    (b"\xfe\xff", "UTF-16"),
)


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be read: where it starts (see `RawTable.lines`), why, and 200 characters of it."""

    line: int
    reason: str
    text: str


@dataclass(frozen=True)
class RawTable:
    """A table as it stands in its file.

    Attributes:
        columns: column name -> one value a row; None where a cell is empty.
        lines: for each row the line of the file on which it starts, or the number of the row in a Parquet
            file; from 1.
        unit: `line` or `row`: what `lines` counts.
        bad: rows that are in no column.
    """

    columns: dict[str, list[Any]]
    lines: list[int]
    unit: str
    bad: list[BadRow] = field(default_factory=list)


class Reader(Protocol):
    """Reads one format: (path) -> table."""

    def __call__(self, path: Path, /) -> RawTable: ...  # noqa: D102


def read_table(path: Path) -> RawTable:
    """Returns the table in a file; its suffix says the format.

    Raises:
        UsageError: the suffix is none that is known.
        DataError: the file is missing, empty, or cannot be read as what its suffix says.
    """
    if path.suffix.lower() not in READERS:
        raise UsageError(f"{path}: the suffix must be one of {', '.join(READERS)}.")
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path}: is empty. Write the table to it, or name another file.")
        table = READERS[path.suffix.lower()](path)
    except FileNotFoundError:
        raise DataError(f"{path}: not found. Put the file there, or correct the task's `source`.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}. Correct the task's `source`.") from None
    if not table.lines and not table.bad:
        raise DataError(f"{path}: has no rows. Write the table to it, or name another file.")
    return table


def read_csv(path: Path) -> RawTable:
    """Returns a comma-separated table with a header; all values are strings. Raises like `read_table`."""
    rows: list[list[str]] = []
    table = RawTable({}, [], "line")
    with _text(path) as file, _long_fields():
        seen: list[str] = []
        reader = csv.reader(_recorded(file, seen), strict=True)
        header = _header(reader, path)
        seen.clear()
        for line, cells, fault in _records(reader, path):
            reason = fault or _csv_fault(cells, header)
            if reason:
                table.bad.append(BadRow(line, reason, _printable("".join(seen).strip()[:200])))
            elif cells:
                rows.append(cells)
                table.lines.append(line)
            seen.clear()
    columns = zip(*rows, strict=True) if rows else ([] for _ in header)
    table.columns.update((name, [v or None for v in values]) for name, values in zip(header, columns, strict=True))
    return table


def read_json_lines(path: Path) -> RawTable:
    """Returns a table with one JSON object a line; an absent key is an empty cell. Raises like `read_table`."""
    rows: list[dict[str, Any]] = []
    table = RawTable({}, [], "line")
    with _text(path) as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            row = _json_object(line)
            if isinstance(row, str):
                table.bad.append(BadRow(number, row, _printable(line.strip()[:200])))
            else:
                rows.append(row)
                table.lines.append(number)
    names = dict.fromkeys(name for row in rows for name in row)
    table.columns.update((name, [row.get(name) for row in rows]) for name in names)
    return table


def read_parquet(path: Path) -> RawTable:
    """Returns a Parquet table; nested values stay Python lists and dicts. Raises like `read_table`."""
    try:
        table = pq.ParquetFile(path).read()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise DataError(f"{path}: is not a readable Parquet file ({reason}). Write it again.") from None
    columns = {name: _values(table[name]) for name in table.column_names}
    return _without_undecodable(RawTable(columns, list(range(1, table.num_rows + 1)), "row"))


READERS: Mapping[str, Reader] = MappingProxyType({
    ".csv": read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".parquet": read_parquet,
})  # fmt: skip


def undecodable(text: str) -> str | None:
    """Returns why a cell is not text (a byte that is not UTF-8, half a character), or None."""
    found = _SURROGATE.search(text)
    if found is None:
        return None
    code = ord(found.group())
    if 0xDC80 <= code <= 0xDCFF:
        return f"is not UTF-8 (byte 0x{code - 0xDC00:02x})"
    return f"is not valid Unicode (lone surrogate U+{code:04X})"


@contextmanager
def _text(path: Path) -> Iterator[TextIO]:
    with path.open("rb") as file:
        start = file.read(4096)
    for mark, encoding in _MARKS:
        if start.startswith(mark):
            raise DataError(f"{path}: line 1: is {encoding}, not UTF-8. Save the file as UTF-8.")
    if b"\0" in start:
        raise DataError(f"{path}: has zero bytes: it is binary or UTF-16, not UTF-8 text. Save the file as UTF-8.")
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        yield file


@contextmanager
def _long_fields() -> Iterator[None]:
    """Lets a CSV field be longer than 128 KiB, as a text may well be."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _recorded(file: TextIO, seen: list[str]) -> Iterator[str]:
    """Yields the lines of a file and notes them in `seen`, so that a bad record can be shown as it stands."""
    for line in file:
        seen.append(line)
        yield line


def _header(reader: Any, path: Path) -> list[str]:
    try:
        header = [name.strip() for name in next(reader, [])]
    except csv.Error as error:
        raise DataError(f"{path}: line 1: {error}. The first line must name the columns.") from None
    fault = undecodable("".join(header))
    if fault:
        raise DataError(f"{path}: line 1: {fault}. Save the file as UTF-8.")
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise DataError(f"{path}: line 1: column {twice[0]!r} stands there twice. Rename one.")
    return header


def _records(reader: Any, path: Path) -> Iterator[tuple[int, list[str], str | None]]:
    """Yields (first line, cells, fault or None) of each record."""
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                raise DataError(f"{path}: line {line}: a quote opens here and is never closed. Close it.") from None
            last = f" up to line {reader.line_num}" if reader.line_num > line else ""
            yield line, [], f"is not CSV{last}: {error}"
        else:
            yield line, cells, None


def _csv_fault(cells: Sequence[str], header: Sequence[str]) -> str | None:
    if not cells:
        return None
    if len(cells) != len(header):
        return f"has {len(cells)} cells, the header has {len(header)}"
    return next((f"column {name!r} {fault}" for name, cell in zip(header, cells, strict=True)
                 if (fault := undecodable(cell))), None)  # fmt: skip


def _json_object(line: str) -> dict[str, Any] | str:
    """The object on a line, or what is wrong with the line."""
    try:
        row = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        return undecodable(line) or f"is not JSON ({getattr(error, 'msg', 'nested too deep')})"
    if not isinstance(row, dict):
        hint = "; write one object a line, without the list around them" if isinstance(row, list) else ""
        return f"is not a JSON object{hint}"
    fault = undecodable(line) or ("\\u" in line and undecodable(json.dumps(row, ensure_ascii=False)))
    return fault or row


def _printable(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


def _values(column: pa.ChunkedArray) -> list[Any]:
    kind = column.type
    if pa.types.is_dictionary(kind):
        column, kind = column.cast(kind.value_type), kind.value_type
    if pa.types.is_timestamp(kind):
        column = pc.cast(column, pa.timestamp("us", tz=kind.tz), safe=False)
    try:
        values = column.to_pylist()
    except UnicodeDecodeError:
        cells = column.cast(pa.binary()).to_pylist()
        values = [cell if cell is None else cell.decode("utf-8", "surrogateescape") for cell in cells]
    return list(values)


def _without_undecodable(table: RawTable) -> RawTable:
    """Moves rows that hold a string of other bytes than UTF-8 to the bad ones."""
    faults: dict[int, BadRow] = {}
    for name, values in table.columns.items():
        for row, value in enumerate(values):
            if isinstance(value, str) and (fault := undecodable(value)):
                faults[row] = BadRow(table.lines[row], f"column {name!r} {fault}", _printable(value[:200]))
    if not faults:
        return table
    keep = [row for row in range(len(table.lines)) if row not in faults]
    columns = {name: [values[row] for row in keep] for name, values in table.columns.items()}
    return RawTable(columns, [table.lines[row] for row in keep], table.unit, [faults[row] for row in sorted(faults)])
