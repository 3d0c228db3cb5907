"""label-queue: from the prediction log to a file for people, and back to a window that admit takes."""

import csv
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtlops.cli import main
from mtlops.data.prepared import read_labelled, read_split
from mtlops.data.rows import row_id
from mtlops.errors import DataError, UsageError
from mtlops.prediction_log import PREDICTION_SCHEMA, PREDICTIONS, file_name
from mtlops.steps.admit import admit
from mtlops.steps.label_queue import fill_queue, take_answers
from tests.tiny_suite import Workspace
from tests.tiny_window import posts, write_window

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)


def _log(root: Path, texts: list[str | None], *, start: datetime = NOON) -> str:
    """A prediction log of requests of one text each, for two tasks; the text stands on the first."""
    rows = [
        {
            "time": start + timedelta(seconds=i), "request_id": f"r{i}", "row": 0, "task": task, "bundle_id": "b",
            "role": "champion", "text": text if task == "mood" else None,
        }
        for i, text in enumerate(texts) for task in ("mood", "topic")
    ]  # fmt: skip
    path = root / "log" / file_name(PREDICTIONS, start, writer="w", sequence=0)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=PREDICTION_SCHEMA), path)
    return str(root / "log")


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _answer(path: Path, rows: list[dict[str, Any]]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def _fill(finished: Workspace, out: Path, **more: Any) -> Any:
    return fill_queue(finished.params(), task="topic", bundle=finished.bundle, out=out,
                      **finished.paths("prepared"), **more)  # fmt: skip


def test_the_log_becomes_a_queue_without_what_is_known(finished: Workspace, tmp_path: Path) -> None:
    known = read_split(finished.root / "data/prepared", "topic", "train")["text"].to_pylist()[0]
    texts = [row["body"] for row in posts()]
    log = _log(tmp_path, [*texts, texts[0], known, None])
    made = _fill(finished, tmp_path / "queue.csv", log=log, rows=20, random_share=0.25)
    assert (made.rows, made.candidates) == ({"useful": 15, "random": 5}, len(texts))
    assert made.left_out == {"duplicate": 1, "labelled already": 1, "without text": 1}
    rows = _read(tmp_path / "queue.csv")
    assert [row["queue_id"] for row in rows] == sorted({row_id(row["body"]) for row in rows})
    assert all(row["topic"] == "" and row["queue_answered"] in ("sport", "space", "law") for row in rows)
    for row in rows:
        product = float(row["queue_uncertainty"]) * float(row["queue_density"]) * float(row["queue_drift"])
        assert float(row["queue_score"]) == pytest.approx(product, abs=1e-5)
    again = _fill(finished, tmp_path / "again.csv", log=log, rows=20, random_share=0.25)
    assert Path(again.path).read_bytes() == (tmp_path / "queue.csv").read_bytes()
    later = _fill(finished, tmp_path / "later.csv", log=log, since=NOON + timedelta(seconds=80), rows=20)
    assert (later.candidates, later.rows) == (2, {"useful": 1, "random": 1})


def test_answers_become_a_window_whose_tests_are_the_random_rows(finished: Workspace, tmp_path: Path) -> None:
    topic_of = {row["body"]: row["topic"] for row in posts()}
    table = write_window(tmp_path / "texts.jsonl", [{"body": row["body"]} for row in posts()])
    _fill(finished, tmp_path / "queue.csv", table=table, rows=40)
    rows = _read(tmp_path / "queue.csv")
    for row in rows[1:]:
        row["topic"] = topic_of[row["body"]]
    back = take_answers(finished.params(), task="topic", answers=_answer(tmp_path / "back.csv", rows),
                        out=tmp_path / "window.csv")  # fmt: skip
    assert (sum(back.labels.values()), back.unlabelled) == (39, 1)
    admit(finished.params(), rows=tmp_path / "window.csv", tasks=["topic"], windows=tmp_path / "windows",
          **finished.paths("prepared"), out=tmp_path / "prepared")  # fmt: skip
    tests = set(read_labelled(tmp_path / "prepared", "window", "topic", "test")["row_id"].to_pylist())
    assert tests == {row["queue_id"] for row in rows[1:] if row["queue_purpose"] == "random"}


@pytest.mark.parametrize(
    "change, said",
    [
        ({"topic": "cooking"}, "line 2: 'cooking' is not one of sport, space, law"),
        ({"body": "another text", "topic": "law"}, "line 2: column 'body' is not the text that was asked"),
        ({"queue_purpose": "", "topic": "law"}, "line 2: is no row of a queue"),
        ({}, "no row has a label"),
    ],
)
def test_answers_that_cannot_be_taken_are_told(
    finished: Workspace, tmp_path: Path, change: dict[str, str], said: str
) -> None:
    table = write_window(tmp_path / "texts.jsonl", [{"body": row["body"]} for row in posts()])
    _fill(finished, tmp_path / "queue.csv", table=table, rows=5)
    rows = _read(tmp_path / "queue.csv")
    rows[0] |= change
    with pytest.raises(DataError, match=said):
        take_answers(finished.params(), task="topic", answers=_answer(tmp_path / "back.csv", rows),
                     out=tmp_path / "window.csv")  # fmt: skip
    assert not (tmp_path / "window.csv").exists()


def test_a_row_answered_twice_is_told(finished: Workspace, tmp_path: Path) -> None:
    table = write_window(tmp_path / "texts.jsonl", [{"body": row["body"]} for row in posts()])
    _fill(finished, tmp_path / "queue.csv", table=table, rows=5)
    rows = _read(tmp_path / "queue.csv")
    rows[0]["topic"] = "law"
    with pytest.raises(DataError, match="line 7: the row stands on 2 already"):
        take_answers(finished.params(), task="topic", answers=_answer(tmp_path / "b.csv", [*rows, rows[0]]),
                     out=tmp_path / "window.csv")  # fmt: skip


def test_impossible_requests_are_refused(finished: Workspace, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Give either --log URL or --table FILE"):
        _fill(finished, tmp_path / "q.csv")
    with pytest.raises(DataError, match="no row of task topic to label"):
        _fill(finished, tmp_path / "q.csv", log=_log(tmp_path, [None, None]))
    with pytest.raises(UsageError, match="--task: no task 'topics'"):
        fill_queue(finished.params(), task="topics", bundle=finished.bundle, log="x", out=tmp_path / "q.csv")


def test_the_command_says_what_comes_next(
    finished: Workspace, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--quiet", "--params", str(finished.params_file), "--task", "topic"]
    asked = [
        "--log",
        _log(tmp_path, [row["body"] for row in posts()]),
        "--bundle",
        str(finished.bundle),
        "--rows",
        "10",
    ]
    assert main(["label-queue", *shared, *asked, "--out", str(tmp_path / "queue.csv")]) == 0
    assert "7 useful, 3 random, of 81 candidates" in capsys.readouterr().out
    rows = [row | {"topic": "law"} for row in _read(tmp_path / "queue.csv")]
    answers = str(_answer(tmp_path / "back.csv", rows))
    assert main(["label-queue", *shared, "--answers", answers, "--out", str(tmp_path / "window.csv")]) == 0
    assert f"--from registry --window {tmp_path / 'window.csv'}" in capsys.readouterr().out
