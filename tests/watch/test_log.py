"""What a reader makes of a log: order, names that are none, files of another shape, any URL."""

import itertools
from datetime import date
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtlops.bundle import Bundle
from mtlops.errors import UsageError
from mtlops.prediction_log import FEEDBACK, PREDICTION_SCHEMA, PREDICTIONS
from mtlops.watch.log import DamagedFileError, PredictionLog
from tests.watch.logs import MOOD, World, Writer


def test_files_come_in_the_order_of_their_first_rows(bundle: Bundle, tmp_path: Path) -> None:
    first, second = Writer(tmp_path, bundle.id, name="b"), Writer(tmp_path, bundle.id, name="a", per_day=3000.0)
    for _ in range(2):
        first.traffic(World(1), 2, tasks=[MOOD])
        second.traffic(World(1), 2, tasks=[MOOD])
    first.feedback()
    (tmp_path / PREDICTIONS / "notes.txt").write_text("x")
    found, strange = PredictionLog(str(tmp_path)).files()
    assert [(file.writer, file.sequence) for file in found if file.table == PREDICTIONS] == [
        ("a", 0), ("b", 0), ("a", 1), ("b", 1),
    ]  # fmt: skip
    assert [file.table for file in found].count(FEEDBACK) == 1
    assert strange == ["predictions/notes.txt"]
    assert found == sorted(found, key=lambda file: file.micros)


def test_an_empty_log_is_no_error_and_no_log_is_one(tmp_path: Path) -> None:
    assert PredictionLog(str(tmp_path / "nothing")).files() == ([], [])
    with pytest.raises(UsageError, match="no prediction log"):
        PredictionLog("")


def test_only_days_from_a_day_on(bundle: Bundle, tmp_path: Path) -> None:
    writer = Writer(tmp_path, bundle.id, per_day=2.0)
    for _ in range(4):
        writer.traffic(World(1), 2, tasks=[MOOD])
    log = PredictionLog(str(tmp_path))
    assert [file.day.day for file in log.files()[0]] == [1, 2, 3, 4]
    assert [file.day.day for file in log.files(since=date(2026, 3, 3))[0]] == [3, 4]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda table: table.drop_columns(["statistics"]), "lacks the column 'statistics'"),
        (lambda table: table.set_column(3, "task", pa.array([["x"]] * table.num_rows)), "has columns of other types"),
    ],
)
def test_a_file_of_another_shape_is_damaged(bundle: Bundle, tmp_path: Path, change, said: str) -> None:
    path = Writer(tmp_path, bundle.id).traffic(World(1), 3, tasks=[MOOD])
    pq.write_table(change(pq.read_table(path)), path)
    log = PredictionLog(str(tmp_path))
    with pytest.raises(DamagedFileError, match=said):
        list(log.read(log.files()[0][0]))


def test_a_later_schemas_new_column_is_left_out(bundle: Bundle, tmp_path: Path) -> None:
    path = Writer(tmp_path, bundle.id).traffic(World(1), 3, tasks=[MOOD])
    table = pq.read_table(path)
    pq.write_table(table.append_column("new", pa.array([1] * table.num_rows)), path)
    log = PredictionLog(str(tmp_path))
    assert [found.schema for found in log.read(log.files()[0][0])] == [PREDICTION_SCHEMA]


def test_a_large_file_comes_in_tables_that_cut_no_request(bundle: Bundle, tmp_path: Path) -> None:
    path = Writer(tmp_path, bundle.id).traffic(World(1), 4000)
    table = pq.read_table(path)
    log = PredictionLog(str(tmp_path))
    found = list(log.read(log.files()[0][0]))
    assert len(found) > 2 and max(part.num_rows for part in found) < 5000
    assert pa.concat_tables(found).equals(table.cast(PREDICTION_SCHEMA))
    requests = [set(part["request_id"].to_pylist()) for part in found]
    assert not any(a & b for a, b in itertools.pairwise(requests))


def test_a_log_in_an_object_store(bundle: Bundle, tmp_path: Path) -> None:
    Writer(tmp_path, bundle.id).traffic(World(1), 3, tasks=[MOOD])
    system = fsspec.filesystem("memory")
    system.put(str(tmp_path), "/logged", recursive=True)
    log = PredictionLog("memory://logged")
    [file] = log.files()[0]
    assert [found.num_rows for found in log.read(file)] == [3]
    system.rm("/logged", recursive=True)
