"""The prediction log's writer: bounded, counted, whole files, patient with a storage that fails."""

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mtlops.bundle import Bundle
from mtlops.prediction_log import FEEDBACK_SCHEMA, PREDICTION_SCHEMA
from mtlops.serving.journal import Journal
from mtlops.serving.log import PredictionLog, Settings
from mtlops.serving.log_rows import Feedback, Record, prediction_table
from mtlops.serving.runtime import Runtime
from tests.tiny_suite import Workspace

TEXTS = ["a film", "the law & the court", "phone"]


@pytest.fixture(scope="module")
def runtime(finished: Workspace) -> Runtime:
    return Runtime(Bundle.open(finished.bundle), threads=1)


def record(runtime: Runtime, number: int, *, role: str = "champion", with_texts: bool = True) -> Record:
    outputs = runtime.predict(TEXTS)
    texts = TEXTS if with_texts else None
    now = datetime(2026, 11, 22, 23, 59, 59, 7, tzinfo=UTC)
    return Record(now, f"r{number}", role, runtime, outputs, texts, runtime.embeddings(TEXTS), 15)


def files(folder: Path, table: str = "predictions") -> list[Path]:
    return sorted((folder / table).rglob("*.parquet"), key=lambda path: path.name)


def wait_for(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rows_are_one_a_request_row_and_task(runtime: Runtime, tmp_path: Path) -> None:
    log = PredictionLog(str(tmp_path), Settings(with_text=True))
    assert log.add(record(runtime, 0)) and log.add(record(runtime, 1, role="shadow"))
    assert log.add(record(runtime, 2, with_texts=False))
    label = Feedback(datetime.now(UTC), "r0", 2, "mood", ["good"], None)
    assert log.add_feedback([label])
    log.close()
    (path,) = files(tmp_path)
    assert path.parent.name == "date=2026-11-22" and path.name.endswith("-00000000.parquet")
    table = pq.ParquetFile(path).read()
    assert table.schema.remove_metadata().equals(PREDICTION_SCHEMA)
    rows = table.to_pylist()
    assert len({(row["request_id"], row["row"], row["task"]) for row in rows}) == len(rows) == 45
    outputs = runtime.predict(TEXTS)
    for row in rows:
        of_task = outputs[row["task"]]
        if row["task"] == "stars":
            assert row["label"] is row["probabilities"] is None
            assert row["value"] == float(of_task.values[row["row"]])
        else:
            assert row["probabilities"] == of_task.probabilities[row["row"]].tolist() and row["value"] is None
        is_first = row["task"] == "mood" and row["role"] == "champion"
        assert (row["embedding"] is not None) == is_first
        has_text = is_first and row["request_id"] != "r2"
        assert (row["statistics"] is not None) == (row["text"] is not None) == has_text
    assert isinstance(next(row for row in rows if row["task"] == "about")["label"], list)
    (feedback,) = files(tmp_path, "feedback")
    table = pq.ParquetFile(feedback).read()
    assert table.schema.remove_metadata().equals(FEEDBACK_SCHEMA) and table.to_pylist() == [vars(label)]


def test_enough_rows_or_enough_seconds_make_a_file(runtime: Runtime, tmp_path: Path) -> None:
    by_rows = PredictionLog(str(tmp_path / "rows"), Settings(flush_rows=30, flush_seconds=1000))
    by_rows.add(record(runtime, 0))
    time.sleep(0.1)
    assert not files(tmp_path / "rows")
    by_rows.add(record(runtime, 1))
    wait_for(lambda: len(files(tmp_path / "rows")) == 1)
    by_time = PredictionLog(str(tmp_path / "time"), Settings(flush_seconds=0.05))
    for number in range(3):
        by_time.add(record(runtime, number))
        wait_for(lambda number=number: len(files(tmp_path / "time")) == number + 1)  # type: ignore[misc]
    assert [path.name.rpartition("-")[2] for path in files(tmp_path / "time")] == [
        f"0000000{n}.parquet" for n in range(3)
    ]
    by_rows.close()
    by_time.close()


def test_a_full_queue_drops_and_counts(runtime: Runtime, tmp_path: Path) -> None:
    dropped: list[int] = []
    written: list[int] = []
    log = PredictionLog(
        str(tmp_path), Settings(flush_seconds=1000, queue_rows=40),
        wrote=lambda table, rows: written.append(rows), dropped=dropped.append,
    )  # fmt: skip
    assert [log.add(record(runtime, number)) for number in range(4)] == [True, True, False, False]
    assert not log.add_feedback([Feedback(datetime.now(UTC), "a", 0, "stars", None, 1.0)] * 11)
    log.close()
    assert dropped == [15, 15] and written == [30]


def test_a_storage_that_fails_is_tried_again(
    runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "log"
    blocked.write_text("a file where the folder should be")
    log = PredictionLog(str(blocked), Settings(flush_seconds=0.01))
    log.add(record(runtime, 0))
    wait_for(lambda: "prediction log:" in caplog.text)
    blocked.unlink()
    wait_for(lambda: len(files(blocked)) == 1)
    log.close()


def test_what_cannot_be_written_at_the_end_is_counted(runtime: Runtime, tmp_path: Path) -> None:
    dropped: list[int] = []
    blocked = tmp_path / "log"
    blocked.write_text("a file where the folder should be")
    log = PredictionLog(str(blocked), Settings(), dropped=dropped.append)
    log.add(record(runtime, 0))
    log.close()
    assert dropped == [15]


@pytest.mark.slow
def test_rows_that_come_while_a_file_is_written_do_not_wait_anew(
    runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = PredictionLog(str(tmp_path), Settings(flush_seconds=3.0))
    writing, may_end, whole = threading.Event(), threading.Event(), log._storage.write

    def slow(path: str, content: bytes) -> None:
        writing.set()
        may_end.wait(20)
        whole(path, content)

    monkeypatch.setattr(log._storage, "write", slow)
    log.add(record(runtime, 0))
    assert writing.wait(20)
    log.add(record(runtime, 1))
    time.sleep(3.0)  # the second record is due
    may_end.set()
    started = time.monotonic()
    wait_for(lambda: len(files(tmp_path)) == 2)
    assert time.monotonic() - started < 2.0
    log.close()


def test_a_storage_that_comes_back_too_late_gets_the_rows_from_the_next_server(
    runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = Settings(flush_seconds=0.01, journal=tmp_path / "journal")
    blocked = tmp_path / "log"
    blocked.write_text("a file where the folder should be")
    log = PredictionLog(str(blocked), settings)
    log.add(record(runtime, 0))
    log.add_feedback([Feedback(datetime.now(UTC), "r0", 2, "mood", ["good"], None)])
    log.close()
    assert "cannot write 16 rows; the next server writes them" in caplog.text
    blocked.unlink()
    PredictionLog(str(blocked), settings).close()
    (path,), (labels,) = files(blocked), files(blocked, "feedback")
    assert pq.ParquetFile(path).read().num_rows == 15 and pq.ParquetFile(labels).read().num_rows == 1
    assert path.name.endswith("-00000000.parquet")
    assert [path.name for path in (tmp_path / "journal").rglob("*") if path.is_file()] == ["lock"]


@pytest.mark.slow
def test_kill_9_loses_only_the_last_moment_and_says_how_much(
    finished: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    code = """
import sys, time
from pathlib import Path
import mtlops.serving.log
from mtlops.bundle import Bundle
from mtlops.serving.log import PredictionLog, Settings
from mtlops.serving.runtime import Runtime
from tests.serving.test_log import record
bundle, folder = map(Path, sys.argv[1:])
runtime = Runtime(Bundle.open(bundle), threads=1)
log = PredictionLog(str(folder / "log"), Settings(flush_seconds=1000, flush_rows=40, journal=folder / "journal"))
for number in range(4):
    log.add(record(runtime, number))
    while log._journal._kept < 15 * (number + 1):
        time.sleep(0.01)
mtlops.serving.log.JOURNAL_SECONDS = 1000.0  # killed before the journal has the last one
log.add(record(runtime, 4))
print("five", flush=True)
time.sleep(1000)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code, str(finished.bundle), str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "five\n"
        os.kill(process.pid, signal.SIGKILL)
    (first,) = files(tmp_path / "log")
    dropped: list[int] = []
    settings = Settings(journal=tmp_path / "journal")
    PredictionLog(str(tmp_path / "log"), settings, dropped=dropped.append).close()
    first, second = files(tmp_path / "log")
    assert first.name.split("-")[1] == second.name.split("-")[1] and second.name.endswith("-00000001.parquet")
    tables = [pq.ParquetFile(path).read() for path in (first, second)]
    assert [sorted(set(table["request_id"].to_pylist())) for table in tables] == [["r0", "r1", "r2"], ["r3"]]
    assert dropped == [15]
    assert "had 30 rows waiting: 15 are written now, 15 are lost" in caplog.text
    caplog.clear()
    PredictionLog(str(tmp_path / "log"), settings).close()
    assert len(files(tmp_path / "log")) == 2 and not caplog.text


def test_a_journal_that_ends_in_the_middle_of_a_batch_gives_what_is_whole(runtime: Runtime, tmp_path: Path) -> None:
    dead = Journal(tmp_path, url="log", writer="dead")
    table = prediction_table([record(runtime, 0)], with_text=False)
    for number in range(3):
        dead.take(15)
        dead.keep("predictions", number // 2, table)
    whole = dead.path("predictions", 0).read_bytes()
    dead.path("predictions", 0).write_bytes(whole[:-100])
    dead.path("predictions", 1).write_bytes(b"")
    dead.close()
    journal = Journal(tmp_path, url="log", writer="living")
    (kept,), lost = journal.left_by_the_dead()
    assert (kept.writer, kept.table, kept.sequence, lost) == ("dead", "predictions", 0, 0)
    assert kept.rows.equals(table)
    journal.release(kept.path)
    journal.close()
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["lock"]


def test_a_journal_of_the_living_or_of_another_log_is_left_alone(runtime: Runtime, tmp_path: Path) -> None:
    table = prediction_table([record(runtime, 0)], with_text=False)
    living, other = Journal(tmp_path, url="log", writer="a"), Journal(tmp_path, url="another", writer="b")
    for journal in (living, other):
        journal.keep("predictions", 0, table)
    other.close()
    new = Journal(tmp_path, url="log", writer="c")
    assert new.left_by_the_dead() == ([], 0)
    new.close()
    living.close()


def test_a_journal_that_fails_is_said_and_the_log_goes_on(
    runtime: Runtime, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = PredictionLog(str(tmp_path / "log"), Settings(flush_seconds=0.5, journal=tmp_path / "journal"))
    shutil.rmtree(tmp_path / "journal")
    log.add(record(runtime, 0))
    wait_for(lambda: len(files(tmp_path / "log")) == 1)
    log.add(record(runtime, 1))
    log.close()
    assert sum(pq.ParquetFile(path).metadata.num_rows for path in files(tmp_path / "log")) == 30
    assert "15 rows are not in the journal, a crash would lose them" in caplog.text
