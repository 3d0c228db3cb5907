"""admit: a labelled window joins the splits, and nothing that was tested on is ever trained on."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest

from mtlops.data.prepared import (
    SPLITS,
    newest_window,
    read_labelled,
    read_manifest,
    read_split,
    read_window,
    windows_of,
)
from mtlops.errors import DataError, UsageError
from mtlops.files import read_json, sha256_tree
from mtlops.steps.admit import Admitted, admit
from mtlops.steps.validate import validate
from tests.tiny_suite import Workspace, run_prepare
from tests.tiny_window import posts, write_window


@pytest.fixture
def work(finished: Workspace, tmp_path: Path) -> Workspace:
    """The finished project's data, to change."""
    for name in ("params.yaml", "data/sources", "data/prepared", "data/encoder"):
        source, target = finished.root / name, tmp_path / "project" / name
        target.parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    return Workspace(tmp_path / "project")


def _admit(work: Workspace, rows: list[dict[str, Any]] | None = None, *, name: str = "shift", **more: Any) -> Admitted:
    file = write_window(work.root / f"{name}.jsonl", rows)
    return admit(work.params(), rows=file, tasks=["topic"], name=name, windows=work.root / "data/windows",
                 **work.paths("prepared"), **more)  # fmt: skip


def _ids(work: Workspace, split: str, **more: Any) -> set[str]:
    return set(read_split(work.root / "data/prepared", "topic", split, **more)["row_id"].to_pylist())


def test_rows_of_a_window_join_each_split_after_its_own(work: Workspace) -> None:
    before = {split: read_split(work.root / "data/prepared", "topic", split) for split in SPLITS}
    done = _admit(work, alert="alert-7")
    assert sum(done.rows["topic"].values()) == len(posts())
    prepared = work.root / "data/prepared"
    for split, table in before.items():
        now = read_split(prepared, "topic", split)
        assert now.slice(0, table.num_rows).equals(table)
        assert now.num_rows == table.num_rows + done.rows["topic"][split]
        assert read_split(prepared, "topic", split, without="shift").equals(table)
    manifest = read_manifest(prepared)
    assert manifest["labelled"]["shift"]["facts"]["alert"] == "alert-7"
    assert (windows_of(manifest, "topic"), newest_window(manifest, "topic")) == (["shift"], "shift")
    assert (windows_of(manifest, "mood"), newest_window(manifest, "mood")) == ([], None)
    validate(work.params(), prepared=prepared, report=work.root / "validation.json")
    counts = read_json(work.root / "validation.json", made_by="")["data"]["tasks"]["topic"]["parts"]
    assert counts["labelled/shift/train"]["rows"] == done.rows["topic"]["train"]


def test_admitting_again_changes_nothing_and_prepare_gives_the_same_bytes(work: Workspace) -> None:
    done = _admit(work)
    prepared = work.root / "data/prepared"
    digest = sha256_tree(prepared)
    assert done.is_new
    assert not _admit(work).is_new
    assert sha256_tree(prepared) == digest
    run_prepare(work, work.params("data.labelled=[data/windows/shift]"))
    assert sha256_tree(prepared) == digest


def test_a_killed_or_failed_admission_leaves_the_splits_as_they_were(work: Workspace) -> None:
    digest = sha256_tree(work.root / "data/prepared")
    rows = posts()
    rows[5]["topic"] = "cooking"
    said = f"{work.root / 'shift.jsonl'}: line 6: task topic: 'cooking' is not one of sport, space, law"
    with pytest.raises(DataError, match=re.escape(said)):
        _admit(work, rows)
    assert sha256_tree(work.root / "data/prepared") == digest


def test_a_refused_window_is_not_kept_so_that_a_mended_file_can_be_admitted(work: Workspace) -> None:
    bad = [{**row, "topic": "cooking"} for row in posts()]
    with pytest.raises(DataError, match="'cooking' is not one of"):
        _admit(work, bad)
    assert not (work.root / "data/windows/shift").exists()
    assert _admit(work).is_new
    changed = [{**row, "topic": "cooking"} for row in posts()]
    with pytest.raises(DataError, match="holds another window"):
        _admit(work, changed)
    assert (work.root / "data/windows/shift").exists()


def test_what_belongs_to_test_rows_is_never_trained_on(work: Workspace) -> None:
    prepared = work.root / "data/prepared"
    [test, train] = [read_split(prepared, "topic", split).to_pylist() for split in ("test", "train")]
    thread_of = {split: row["group"].partition(":")[2] for split, row in (("test", test[0]), ("train", train[0]))}
    rows = [
        *posts(),
        {"body": test[0]["text"].upper() + "!", "topic": test[0]["label"], "thread": "own"},  # the same text
        {"body": "wholly new words here", "topic": "law", "thread": "own"},  # the same thread as that text
        {"body": "a late answer", "topic": "law", "thread": thread_of["test"]},  # the same thread
        {"body": "another late answer", "topic": "law", "thread": thread_of["train"]},
    ]
    tests = _ids(work, "test")
    done = _admit(work, rows)
    assert done.rows_set_aside == {"belongs to test rows": 3}
    assert _ids(work, "test", without="shift") == tests
    assert "another late answer" in read_labelled(prepared, "shift", "topic", "train")["text"].to_pylist()
    groups = {split: set(read_split(prepared, "topic", split)["group"].to_pylist()) for split in SPLITS}
    assert not groups["test"] & (groups["train"] | groups["valid"])
    validate(work.params(), prepared=prepared, report=work.root / "validation.json")


def test_a_newer_label_replaces_the_older_row(work: Workspace) -> None:
    prepared = work.root / "data/prepared"
    old = read_split(prepared, "topic", "train").to_pylist()[0]
    other = next(topic for topic in ("sport", "space", "law") if topic != old["label"])
    _admit(work, [*posts(), {"body": old["text"], "topic": other, "thread": old["group"].partition(":")[2]}])
    rows = [row for row in read_split(prepared, "topic", "train").to_pylist() if row["row_id"] == old["row_id"]]
    assert [row["label"] for row in rows] == [other]
    validate(work.params(), prepared=prepared, report=work.root / "validation.json")


def test_labelled_production_rows_are_no_leak(work: Workspace) -> None:
    """Rows of a production window that were labelled since are trained on, and validate knows it."""
    params = work.params("data.windows={later: {tasks: [topic], where: {topic: [law]}}}", "data.slices=[]")
    run_prepare(work, params)
    prepared = work.root / "data/prepared"
    later = read_window(prepared, "later", "topic").to_pylist()
    assert "law" not in read_split(prepared, "topic", "train")["label"].to_pylist()
    rows = [{"body": r["text"], "topic": r["label"], "thread": r["group"].partition(":")[2]} for r in later]
    file = write_window(work.root / "later.jsonl", rows)
    admit(params, rows=file, tasks=["topic"], windows=work.root / "data/windows", prepared=prepared)
    assert "law" in read_split(prepared, "topic", "train")["label"].to_pylist()
    validate(params, prepared=prepared, report=work.root / "validation.json")


def test_bad_requests_get_one_clear_line(work: Workspace) -> None:
    with pytest.raises(UsageError, match="no task 'topics'"):
        admit(work.params(), rows=write_window(work.root / "a.jsonl"), tasks=["topics"], **work.paths("prepared"))
    with pytest.raises(UsageError, match="have different sources"):
        admit(work.params(), rows=write_window(work.root / "a.jsonl"), tasks=["topic", "mood"],
              windows=work.root / "w", **work.paths("prepared"))  # fmt: skip
    with pytest.raises(DataError, match="no column 'topic'"):
        _admit(work, [{"body": "a b"}], name="bare")
    with pytest.raises(DataError, match=r"no row for its split '\w+' \(rows set aside: none\)"):
        _admit(work, posts()[:1], name="small")
    _admit(work)
    with pytest.raises(DataError, match="holds another window"):
        admit(work.params(), rows=write_window(work.root / "b.jsonl", posts()[:40]), tasks=["topic"], name="shift",
              windows=work.root / "elsewhere", **work.paths("prepared"))  # fmt: skip
