"""Rows of the log as numbers, whatever some of them lack."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from mtlops.bundle import Bundle
from mtlops.drift.profile import ENCODER
from mtlops.watch.rows import label_of, parse_predictions
from tests.watch.logs import MOOD, STARS, TAGS, TASKS, WIDTH, World, Writer


def parsed(bundle: Bundle, folder: Path, *, tasks: Any = TASKS, rows: int = 20, change: Any = None):
    path = Writer(folder, bundle.id).traffic(World(4), rows, tasks=tasks, change=change)
    return parse_predictions(pq.read_table(path), TASKS)


def test_a_request_for_every_task_has_its_texts_at_the_encoder(bundle: Bundle, tmp_path: Path) -> None:
    found = parsed(bundle, tmp_path)
    assert {name: len(sample) for name, sample in found.samples.items()} == {
        ENCODER: 20, "mood": 20, "stars": 20, "tags": 20,
    }  # fmt: skip
    assert len(found.samples[ENCODER].inputs.positions) == 20 and len(found.samples["mood"].inputs.positions) == 0
    assert found.samples["tags"].outputs.labels.shape == (20, 2)


def test_a_request_for_some_tasks_has_its_texts_at_each_of_them(bundle: Bundle, tmp_path: Path) -> None:
    found = parsed(bundle, tmp_path, tasks=(STARS, TAGS))
    assert ENCODER not in found.samples and "mood" not in found.samples
    stars, tags = found.samples["stars"], found.samples["tags"]
    np.testing.assert_array_equal(stars.inputs.statistics["characters"], tags.inputs.statistics["characters"])
    np.testing.assert_array_equal(stars.inputs.vectors, tags.inputs.vectors)
    part = stars.part(5, 8)
    np.testing.assert_array_equal(part.inputs.statistics["words"], stars.inputs.statistics["words"][5:8])
    assert list(part.keys) == ["w1-5", "w1-6", "w1-7"] and len(part.outputs.values) == 3


def test_embeddings_are_there_for_some_rows_only(bundle: Bundle, tmp_path: Path) -> None:
    def thin(entries: list[dict[str, Any]]) -> None:
        for entry in entries[::2]:
            entry["embedding"] = None

    sample = parsed(bundle, tmp_path, tasks=(MOOD,), change=thin).samples["mood"]
    columns = sample.columns(MOOD, width=WIDTH)
    assert columns["embedding"].values.shape == (10, WIDTH) and len(columns["text.words"].values) == 20
    assert sample.vector_keys() == [f"w1-{k}" for k in range(1, 20, 2)]
    assert "embedding" not in sample.columns(MOOD, width=WIDTH + 1)


def test_a_log_without_embeddings(bundle: Bundle, tmp_path: Path) -> None:
    def strip(entries: list[dict[str, Any]]) -> None:
        for entry in entries:
            entry.pop("embedding", None)

    sample = parsed(bundle, tmp_path, tasks=(MOOD,), change=strip).samples["mood"]
    assert "embedding" not in sample.columns(MOOD, width=WIDTH)


def test_rows_without_statistics_are_counted(bundle: Bundle, tmp_path: Path) -> None:
    def strip(entries: list[dict[str, Any]]) -> None:
        entries[3].pop("statistics")

    found = parsed(bundle, tmp_path, tasks=(MOOD,), change=strip)
    assert found.faults["mood"]["no text statistics"] == 1 and len(found.samples["mood"]) == 20


def test_labels_that_are_none() -> None:
    assert label_of(MOOD, {"label": ["good"], "value": None}) == "good"
    for wrong in (["best"], ["good", "bad"], [], None):
        assert label_of(MOOD, {"label": wrong, "value": None}) is None
    assert (
        label_of(TAGS, {"label": [], "value": None}) == [] and label_of(TAGS, {"label": ["c"], "value": None}) is None
    )
    assert label_of(STARS, {"label": None, "value": 2.5}) == 2.5
    assert label_of(STARS, {"label": None, "value": float("nan")}) is None
