import json

import pyarrow as pa
import pytest

from mtlops.data.prepared import read_manifest, read_split, read_window, write_part
from mtlops.errors import ArtefactError
from mtlops.files import write_json
from mtlops.tasks import Task

MOOD = Task("mood", "binary", ("bad", "good"))


@pytest.fixture
def folder(tmp_path):
    """A prepared folder with one split and one window."""
    part = write_part(tmp_path, "mood/train.parquet", pa.table({"label": ["good", "bad", "good"]}), task=MOOD)
    window = write_part(tmp_path, "windows/w/mood.parquet", pa.table({"label": ["bad"]}), task=MOOD)
    manifest = {
        "schema_version": 1,
        "tasks": {"mood": {"splits": {"train": part}}},
        "windows": {"w": {"rule": {}, "tasks": {"mood": window}}},
    }
    write_json(tmp_path / "manifest.json", manifest)
    return tmp_path


def test_what_was_written_is_read(folder):
    assert read_manifest(folder)["tasks"]["mood"]["splits"]["train"]["rows"] == 3
    assert read_split(folder, "mood", "train")["label"].to_pylist() == ["good", "bad", "good"]
    assert read_window(folder, "w", "mood")["label"].to_pylist() == ["bad"]


@pytest.mark.parametrize(
    "kind, labels, counts",
    [
        ("binary", ["good", "odd", "good", "also odd"], {"bad": 0, "good": 2, "also odd": 1, "odd": 1}),
        ("multilabel", [["good"], ["bad", "good"], []], {"bad": 1, "good": 2}),
        ("regression", [1.5, 2.5], {}),
    ],
)
def test_labels_are_counted_in_the_order_of_the_classes_then_strangers(tmp_path, kind, labels, counts):
    task = Task("t", kind, () if kind == "regression" else MOOD.classes)
    found = write_part(tmp_path, "t/train.parquet", pa.table({"label": labels}), task=task)["label_counts"]
    assert list(found.items()) == list(counts.items())


def test_the_same_table_gives_the_same_bytes(tmp_path):
    table = pa.table({"label": ["good", "bad"] * 500})
    one = write_part(tmp_path, "one.parquet", table, task=MOOD)
    other = write_part(tmp_path, "other.parquet", table, task=MOOD)
    assert one["sha256"] == other["sha256"]


@pytest.mark.parametrize(
    "read, message",
    [
        (lambda folder: read_split(folder, "mood", "test"), "no 'test': task 'mood' has train"),
        (lambda folder: read_split(folder, "topic", "train"), "no 'train': there is no task 'topic'"),
        (lambda folder: read_window(folder, "v", "mood"), "no 'mood': there is no window 'v'"),
        (lambda folder: read_window(folder, "w", "topic"), "no 'topic': window 'w' has mood"),
    ],
)
def test_a_part_that_is_not_there_is_an_artefact_error(folder, read, message):
    with pytest.raises(ArtefactError, match=message) as caught:
        read(folder)
    assert caught.value.exit_code == 4


def test_a_flipped_byte_and_a_missing_file_are_artefact_errors(folder):
    path = folder / "mood/train.parquet"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ArtefactError, match=r"train\.parquet: differs from its sha256"):
        read_split(folder, "mood", "train")
    path.unlink()
    with pytest.raises(ArtefactError, match=r"train\.parquet: not found. Run `mtlops prepare`"):
        read_split(folder, "mood", "train")


@pytest.mark.parametrize("content", [None, "not json", "[]", json.dumps({"schema_version": 2})])
def test_a_manifest_that_is_missing_broken_or_of_another_version_is_an_artefact_error(tmp_path, content):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(ArtefactError, match=r"manifest\.json.*Run `mtlops prepare`"):
        read_manifest(tmp_path)
