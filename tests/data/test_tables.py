import contextlib
import csv
import json
import re

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlops.data.tables import RawTable, read_table
from mtlops.errors import DataError, UsageError


@pytest.fixture
def read(tmp_path):
    """Returns a function from a file name and its bytes to the table in it."""

    def write_and_read(name: str, content: bytes) -> RawTable:
        path = tmp_path / name
        path.write_bytes(content)
        return read_table(path)

    return write_and_read


def test_csv_cells_are_strings_and_empty_ones_none(read):
    table = read("a.csv", b'\xef\xbb\xbftext, n \r\n"two\nlines",1\r\n\r\n"a ""quote""",\r\n')
    assert table.columns == {"text": ["two\nlines", 'a "quote"'], "n": ["1", None]}
    assert (table.lines, table.unit, table.bad) == ([2, 5], "line", [])


def test_a_csv_field_may_be_longer_than_the_csv_module_likes(read):
    before = csv.field_size_limit()
    assert read("a.csv", b"text\n" + b"x" * 200_000).columns["text"] == ["x" * 200_000]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize(
    "content, line, reason",
    [
        (b"a,b\n1,2\n1,2,3\n4,5\n", 3, "has 3 cells, the header has 2"),
        (b"a,b\n1\n4,5\n1,2\n", 2, "has 1 cells, the header has 2"),
        (b"a,b\n1,2\n4,caf\xe9\n1,2\n", 3, r"column 'b' is not UTF-8 \(byte 0xe9\)"),
        (b'a,b\n1,2\n"4"x,5\n1,2\n', 3, "is not CSV: ',' expected after '\"'"),
        (b'a,b\n1,2\n1,2\n"4\n"x,5\n', 4, "is not CSV up to line 5: "),
    ],
)
def test_a_bad_csv_row_is_told_with_its_line(read, content, line, reason):
    table = read("a.csv", content)
    assert len(table.lines) == 2
    (bad,) = table.bad
    assert bad.line == line
    assert re.match(reason, bad.reason)
    assert bad.text
    bad.text.encode("utf-8")


def test_json_lines_keep_types_and_absent_keys_are_empty(read):
    table = read("a.jsonl", b'{"text": "a", "n": 1}\n\n{"text": "b", "labels": ["x"], "t": true}\r\n')
    assert table.columns == {"text": ["a", "b"], "n": [1, None], "labels": [None, ["x"]], "t": [None, True]}
    assert table.lines == [1, 3]


@pytest.mark.parametrize(
    "row, reason",
    [
        (b'{"text": "a"', "is not JSON"),
        (b'["a"]', "write one object a line"),
        (b'"a"', "is not a JSON object"),
        (b'{"text": "caf\xe9"}', "is not UTF-8 (byte 0xe9)"),
        (b'{"text": "\\ud800"}', "lone surrogate U+D800"),
        (b"[" * 100_000, "is not JSON (nested too deep)"),
    ],
)
def test_a_bad_json_line_is_told_with_its_line(read, row, reason):
    table = read("a.ndjson", b'{"text": "good"}\n' + row + b"\n")
    assert table.columns == {"text": ["good"]}
    (bad,) = table.bad
    assert bad.line == 2
    assert reason in bad.reason


def test_parquet_keeps_types_and_reads_dictionaries(tmp_path):
    source = pa.table(
        {
            "text": pa.array(["a", None]).dictionary_encode(),
            "when": pa.array([1, 1_000_000_001], pa.timestamp("ns")),
            "labels": [["x"], []],
        }
    )
    pq.write_table(source, tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    assert table.columns["text"] == ["a", None]
    assert table.columns["labels"] == [["x"], []]
    assert [when.second for when in table.columns["when"]] == [0, 1]
    assert (table.lines, table.unit) == ([1, 2], "row")


def test_a_parquet_string_of_other_bytes_is_a_bad_row(tmp_path):
    text = pa.Array.from_buffers(pa.string(), 2, pa.array([b"caf\xe9", b"tea"]).buffers())
    pq.write_table(pa.table({"text": text, "n": [1, 2]}), tmp_path / "a.parquet")
    table = read_table(tmp_path / "a.parquet")
    assert table.columns == {"text": ["tea"], "n": [2]}
    assert [(bad.line, bad.reason) for bad in table.bad] == [(1, "column 'text' is not UTF-8 (byte 0xe9)")]


@pytest.mark.parametrize(
    "name, content, message",
    [
        ("a.csv", b"", r"a\.csv: is empty"),
        ("a.csv", b"text,label\n", r"a\.csv: has no rows"),
        ("a.csv", "text\nhello\n".encode("utf-16"), "line 1: is UTF-16, not UTF-8. Save the file as UTF-8"),
        ("a.csv", "text\nhello\n".encode("utf-16-le"), "has zero bytes"),
        ("a.csv", b"t\xe9xt\nhello\n", r"line 1: is not UTF-8 \(byte 0xe9\)"),
        ("a.csv", b"text,text\na,b\n", "line 1: column 'text' stands there twice"),
        ("a.csv", b'text\na\n"b\nc\n', "line 3: a quote opens here and is never closed"),
        ("a.csv", b'"te"xt\nb\n', "line 1: .* must name the columns"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", b"\n\n", "has no rows"),
        ("a.parquet", b"PAR1 no more", "is not a readable Parquet file"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_data_error_in_one_line(read, name, content, message):
    with pytest.raises(DataError, match=message) as caught:
        read(name, content)
    assert caught.value.exit_code == 3
    assert "\n" not in str(caught.value)


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path):
    with pytest.raises(DataError, match=r"a\.csv: not found"):
        read_table(tmp_path / "a.csv")
    (tmp_path / "b.csv").mkdir()
    with pytest.raises(DataError, match=r"b\.csv: cannot be read: Is a directory"):
        read_table(tmp_path / "b.csv")


def test_an_unknown_suffix_is_a_usage_error(read):
    with pytest.raises(UsageError, match=r"one of \.csv, \.jsonl, \.ndjson, \.parquet"):
        read("a.xlsx", b"PK")


@given(st.lists(st.tuples(st.text(), st.text()), min_size=1, max_size=5))
def test_what_a_csv_writer_wrote_is_read_again(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    rows = [tuple(cell.replace("\0", "0") for cell in row) for row in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("one", "two"), *rows])
    table = read_table(path)
    assert table.bad == []
    assert table.columns == {name: [row[i] or None for row in rows] for i, name in enumerate(("one", "two"))}


@given(st.binary(min_size=1, max_size=60), st.sampled_from([".csv", ".jsonl", ".parquet"]))
def test_any_bytes_are_a_table_or_a_data_error(tmp_path_factory, content, suffix):
    path = tmp_path_factory.mktemp("bytes") / f"a{suffix}"
    path.write_bytes(content)
    with contextlib.suppress(DataError):
        table = read_table(path)
        assert all(len(values) == len(table.lines) for values in table.columns.values())
        json.dumps(table.columns, ensure_ascii=False).encode("utf-8")
