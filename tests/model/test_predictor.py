"""A trained model's answers, from the cache and from texts that no cache holds."""

import json
from pathlib import Path

import numpy as np
import pytest

from mtlops.data.prepared import read_split
from mtlops.model.predictor import Predictor
from tests.tiny_suite import Workspace


@pytest.fixture(scope="module")
def predictor(finished: Workspace) -> Predictor:
    return Predictor(finished.root / "models/trained", **finished.paths("encoder", "cache"))


def _cached(finished: Workspace) -> set[str]:
    files = (finished.root / "data/cache").glob("trunk-*/**/*.json")
    return {row_id for file in files for row_id, _ in json.loads(file.read_text(encoding="utf-8"))["rows"]}


@pytest.mark.slow
def test_texts_outside_the_data_are_answered_like_rows(finished: Workspace, predictor: Predictor) -> None:
    for task in predictor.model.tasks:
        test = read_split(finished.root / "data/prepared", task.name, "test")
        texts = test["text"].to_pylist()
        rows = predictor.logits(texts, test["row_id"].to_pylist(), task.name)
        assert np.allclose(predictor.logits_of_texts(texts, task.name), rows, atol=1e-5)


def test_nothing_of_them_is_kept(finished: Workspace, predictor: Predictor) -> None:
    before = _cached(finished)
    predictor.logits_of_texts([f"the film number {i}" for i in range(50)], "mood")
    assert _cached(finished) == before


def test_texts_with_the_same_tokens_have_the_same_logits(predictor: Predictor) -> None:
    texts = ["the film", "THE FILM", "the film of the team", "the  film"]
    logits = predictor.logits_of_texts(texts, "topic")
    assert np.array_equal(logits[0], logits[1]) and np.array_equal(logits[0], logits[3])
    assert not np.allclose(logits[0], logits[2])


def test_the_same_rows_are_answered_once(finished: Workspace, predictor: Predictor) -> None:
    test = read_split(finished.root / "data/prepared", "mood", "test")
    texts, row_ids = test["text"].to_pylist(), test["row_id"].to_pylist()
    first = predictor.logits(texts, row_ids, "mood")
    assert predictor.logits(texts, row_ids, "mood") is first
    assert predictor.logits(texts[:1], row_ids[:1], "mood").shape == (1, 2)
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 0


def test_what_another_process_answered_is_not_computed_again(finished: Workspace, tmp_path: Path) -> None:
    place = (finished.root / "models/trained", finished.root / "data/encoder")
    test = read_split(finished.root / "data/prepared", "mood", "test")
    rows = test["text"].to_pylist(), test["row_id"].to_pylist(), "mood"
    first, second = (Predictor(*place, cache=tmp_path) for _ in range(2))
    logits = first.logits(*rows)
    assert second.logits(*rows).tobytes() == logits.tobytes()
    assert second.backbone.cache.rows_computed == 0
    assert second.computed_logits(*rows).tobytes() == logits.tobytes()
