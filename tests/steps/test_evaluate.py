"""evaluate measures a really trained tiny model of every kind of task, the same way every time."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtlops.data.prepared import read_split
from mtlops.errors import ArtefactError
from mtlops.model.predictor import Predictor
from mtlops.params import Params, parse_params
from mtlops.report import summary
from mtlops.steps.baselines import baseline_logits
from mtlops.steps.evaluate import Evaluated, evaluate
from mtlops.steps.prepare import prepare
from mtlops.steps.train import train
from tests.tiny_encoder import WORDS, write_encoder

PARAMS = """
suite:
  name: tiny
  inputs: {group: author}
  tasks:
    tone: {kind: binary, source: rows.csv, label: tone, classes: [bad, good]}
    shade: {kind: multiclass, source: rows.csv, label: shade, classes: [dark, grey, light]}
    rank: {kind: ordinal, source: rows.csv, label: rank, classes: [short, middle, long]}
    words: {kind: multilabel, source: rows.csv, label: words, classes: [film, phone]}
    length: {kind: regression, source: rows.csv, label: length, weight: 0.5}
encoder: {source: encoder, max_tokens: 16}
model: {bottleneck: 4, adapter_drop: 1}
train: {epochs: 2, batch_size: 16, learning_rate: 0.01, threads: 1}
gates: {resamples: 200, baseline: none, floor: {tone: 0.0, rank: 0.99}}
"""


def _write_rows(path: Path) -> None:
    random = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "author", "tone", "shade", "rank", "words", "length"])
        for i in range(160):
            words = list(random.choice(WORDS, size=random.integers(3, 14)))
            tone, shade = ("good" if words[0] < "i" else "bad"), ["dark", "grey", "light"][len(words[0]) % 3]
            named = "|".join(w for w in ("film", "phone") if w in words) or "film"
            rank = ["short", "middle", "long"][min(2, len(words) // 5)]
            rows.writerow([" ".join(words), f"a{i // 2}", tone, shade, rank, named, len(words)])


@pytest.fixture(scope="module")
def params() -> Params:
    return parse_params(PARAMS)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    """A folder with prepared data, an encoder and a trained model."""
    root = tmp_path_factory.mktemp("project")
    _write_rows(root / "rows.csv")
    write_encoder(root / "encoder", hidden=16)
    prepare(params, base=root, raw=root / "raw", out=root / "prepared", encoder=root / "data-encoder")
    train(params, **_places(root), out=root / "trained", report=root / "training.json")
    return root


def _places(root: Path) -> dict[str, Path]:
    return {"prepared": root / "prepared", "encoder": root / "data-encoder", "cache": root / "cache"}


def _evaluate(root: Path, params: Params, to: str = "reports") -> Evaluated:
    reports = {"report": root / to / "evaluation.json", "decision": root / to / "decision.json"}
    return evaluate(params, **_places(root), trained=root / "trained", **reports)


@pytest.fixture(scope="module")
def evaluated(project: Path, params: Params) -> Evaluated:
    return _evaluate(project, params)


@pytest.fixture(scope="module")
def content(evaluated: Evaluated) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(evaluated.report).read_text(encoding="utf-8"))
    return found


def test_every_task_has_metrics_with_intervals_beside_three_baselines(content: dict[str, Any]) -> None:
    assert list(content["tasks"]) == ["tone", "shade", "rank", "words", "length"]
    for task in content["tasks"].values():
        assert list(task["baselines"]) == ["majority", "tfidf", "frozen"]
        for metrics in (task["metrics"], *task["baselines"].values()):
            assert list(metrics) == list(task["metrics"])
            assert all(m["low"] <= m["value"] <= m["high"] for m in metrics.values())
        assert task["primary"] in task["metrics"]
        assert list(task["margins"]) == ["majority", "tfidf", "frozen"]


def test_the_mean_over_tasks_is_weighted(content: dict[str, Any], params: Params) -> None:
    values = {name: t["metrics"][t["primary"]]["value"] for name, t in content["tasks"].items()}
    weights = [params.suite.tasks[name].weight for name in values]
    assert content["mean"]["model"] == pytest.approx(np.average(list(values.values()), weights=weights), abs=2e-6)
    assert list(content["mean"]) == ["model", "majority", "tfidf", "frozen"]


def test_counts_are_those_of_the_test_rows(content: dict[str, Any], project: Path) -> None:
    manifest = json.loads((project / "prepared" / "manifest.json").read_text(encoding="utf-8"))
    for name, task in content["tasks"].items():
        assert task["rows"] == {s: part["rows"] for s, part in manifest["tasks"][name]["splits"].items()}
        rows = task["rows"]["test"]
        assert 0 < task["groups"] <= rows
        if task["kind"] in {"binary", "multiclass", "ordinal"}:
            assert np.sum(task["confusion"]["counts"]) == rows
        if task["kind"] == "multilabel":
            assert np.asarray(task["confusion"]["counts"]).sum(axis=(1, 2)).tolist() == [rows, rows]
        pairs = rows * (2 if task["kind"] == "multilabel" else 1)
        assert sum(b["rows"] for b in task["calibration"]["bins"]) == pairs


def test_the_decision_is_the_worst_task_and_names_it(evaluated: Evaluated) -> None:
    decision = json.loads(Path(evaluated.decision).read_text(encoding="utf-8"))
    assert evaluated.verdict == decision["verdict"] == "REJECT"
    assert evaluated.tasks == {"tone": "PROMOTE", "shade": "PROMOTE", "rank": "REJECT", "words": "PROMOTE",
                               "length": "PROMOTE"}  # fmt: skip
    assert decision["reasons"] == [decision["tasks"]["rank"]["reasons"][0]]
    assert decision["reasons"][0].startswith("rank: quadratic_kappa ")
    assert "below its floor, 0.99" in decision["reasons"][0]


def test_the_same_inputs_give_the_same_bytes(project: Path, params: Params, evaluated: Evaluated) -> None:
    _evaluate(project, params, to="again")
    for name in ("evaluation.json", "decision.json", "evaluation.html", "decision.html"):
        assert (project / "again" / name).read_bytes() == (Path(evaluated.report).parent / name).read_bytes()


def test_one_task_alone_is_measured_as_among_the_others(project: Path, params: Params, content: dict[str, Any]) -> None:
    alone = _evaluate(project, params.only(["tone"]), to="alone")
    assert json.loads(Path(alone.report).read_text())["tasks"] == {"tone": content["tasks"]["tone"]}


def test_a_baseline_is_computed_once_for_the_same_rows_and_labels(
    project: Path, params: Params, tmp_path: Path
) -> None:
    predictor = Predictor(project / "trained", project / "data-encoder", cache=tmp_path / "cache")
    task = params.tasks()[0]
    tables = {split: read_split(project / "prepared", task.name, split) for split in ("train", "valid", "test")}
    first = baseline_logits(task, tables, predictor, {"frozen", "majority", "none"})
    assert list(first) == ["majority", "frozen"] and first["frozen"].shape == (tables["test"].num_rows, 2)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*.f32")}
    again = baseline_logits(task, tables, predictor, ["frozen"])
    assert np.array_equal(again["frozen"], first["frozen"])
    labels = [{"bad": "good", "good": "bad"}[label] for label in tables["train"]["label"].to_pylist()]
    column = tables["train"].column_names.index("label")
    other = {**tables, "train": tables["train"].set_column(column, "label", [labels])}
    assert not np.array_equal(baseline_logits(task, other, predictor, ["frozen"])["frozen"], first["frozen"])
    more = {path for path in (tmp_path / "cache").rglob("*.f32") if path not in files}
    assert len(more) == 1  # the other labels' logits; all rows were in the trunk cache

    (kept,) = (path for path in files if path.stat().st_mtime_ns != files[path] and path.parent.name == "answers")
    predictor.answers.write(kept, np.zeros_like(first["frozen"]))
    assert not baseline_logits(task, tables, predictor, ["frozen"])["frozen"].any(), "it was computed again"


def test_the_closing_table_shows_the_result(evaluated: Evaluated) -> None:
    text = summary(Path(evaluated.report).parent)
    for name, value in evaluated.metrics.items():
        task, metric = name.split("/")
        line = next(line for line in text.splitlines() if line.startswith(task))
        assert metric in line
        assert f"{value:.3f}" in line


def test_without_a_trained_model_the_error_names_the_command(tmp_path: Path, project: Path, params: Params) -> None:
    with pytest.raises(ArtefactError, match="mtlops train"):
        evaluate(params, **_places(project), trained=tmp_path / "none", report=tmp_path / "e.json",
                 decision=tmp_path / "d.json")  # fmt: skip
    assert list(tmp_path.iterdir()) == []
