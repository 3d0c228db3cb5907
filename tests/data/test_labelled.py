"""Labelled windows on disk: recorded once, never changed, damage told."""

from pathlib import Path

import pytest

from mtlops.data.labelled import read_labelled_window, record
from mtlops.errors import ArtefactError, DataError, UsageError


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "handed-in.CSV"
    path.write_text("text,topic\na b,law\n", encoding="utf-8")
    return path


def test_a_window_keeps_its_rows_and_where_they_come_from(rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "windows/spring"
    made = record(rows, folder, tasks=["topic"], alert="a-1", note="by hand")
    rows.write_text("changed later", encoding="utf-8")
    found = read_labelled_window(folder)
    assert found == made
    assert (found.name, found.tasks, found.file, found.alert, found.note) == (
        "spring", ("topic",), "rows.csv", "a-1", "by hand"
    )  # fmt: skip
    assert (folder / "rows.csv").read_text(encoding="utf-8") == "text,topic\na b,law\n"


def test_recording_again_changes_nothing_and_another_file_is_refused(rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "windows/spring"
    made = record(rows, folder, tasks=["topic"])
    assert record(rows, folder, tasks=["topic"]) == made
    with pytest.raises(DataError, match="holds another window already"):
        record(rows, folder, tasks=["mood"])


def test_what_cannot_be_recorded_is_refused(rows: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a window's name must be"):
        record(rows, tmp_path / "Spring Rows", tasks=["topic"])
    with pytest.raises(UsageError, match="Give --tasks"):
        record(rows, tmp_path / "spring", tasks=[])
    with pytest.raises(DataError, match="not found"):
        record(tmp_path / "gone.csv", tmp_path / "spring", tasks=["topic"])
    with pytest.raises(UsageError, match="suffix must be one of"):
        record(rows.rename(tmp_path / "rows.xls"), tmp_path / "spring", tasks=["topic"])


def test_damage_is_told(rows: Path, tmp_path: Path) -> None:
    folder = tmp_path / "spring"
    record(rows, folder, tasks=["topic"])
    (folder / "rows.csv").write_text("text,topic\na b,sport\n", encoding="utf-8")
    with pytest.raises(ArtefactError, match="its sha256 is not the one"):
        read_labelled_window(folder)
    (folder / "rows.csv").unlink()
    with pytest.raises(ArtefactError, match="dvc pull"):
        read_labelled_window(folder)
    (folder / "window.json").write_text('{"schema_version": 1, "tasks": []}', encoding="utf-8")
    with pytest.raises(ArtefactError, match="is not about a window"):
        read_labelled_window(folder)
