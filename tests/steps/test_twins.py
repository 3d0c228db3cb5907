"""Each task trained alone, really, and what is said about it."""

import logging
from pathlib import Path
from typing import Any

import pytest

from mtlops.files import read_json
from mtlops.model.trained import load_model
from mtlops.steps.evaluate import evaluate
from mtlops.steps.twins import shares, train_twins
from tests.tiny_suite import Workspace


def _twins(finished: Workspace, *overrides: str) -> Any:
    model = load_model(finished.root / "models/trained")
    return train_twins(finished.params(*overrides), model, **finished.paths("prepared", "encoder", "cache"))


@pytest.mark.parametrize(
    "mode, said",
    [("auto", "cannot occur: nothing trainable is shared"), ("never", "not measured: gates.twins is never")],
)
def test_without_twins_the_reason_is_said(finished: Workspace, mode: str, said: str) -> None:
    twins = _twins(finished, f"gates.twins={mode}")
    assert (twins.said, dict(twins.predictors)) == (said, {})
    assert not shares(load_model(finished.root / "models/trained").model)


def test_a_suite_of_one_task_is_its_own_twin(finished: Workspace) -> None:
    model = load_model(finished.root / "models/trained")
    params = finished.params("gates.twins=always").only(["mood"])
    assert "the suite has one task" in train_twins(params, model, **finished.paths("prepared", "encoder", "cache")).said


def test_twins_are_trained_with_the_same_budget_measured_and_kept(
    finished: Workspace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Adapters share nothing trainable, so here a task and its twin must be the same model but for rounding."""
    params = finished.params("gates.twins=always")
    reports = {"report": tmp_path / "evaluation.json", "decision": tmp_path / "decision.json"}
    evaluate(params, **finished.paths("prepared", "encoder", "trained", "cache"), **reports)
    evaluation, decision = (read_json(path, made_by="") for path in reports.values())
    assert evaluation["twins"] == {
        "mode": "always", "said": "measured: each task was also trained alone, with the same budget",
    }  # fmt: skip
    for name, task in evaluation["tasks"].items():
        twin = task["twin"]
        assert abs(twin["change"]["value"]) < 0.05
        own = task["metrics"][task["primary"]]["value"] - twin["change"]["value"]
        assert twin["metrics"][task["primary"]]["value"] == pytest.approx(own, abs=2e-6)
        assert "transfer" in decision["tasks"][name]["reasons"][-1]
        assert "negative transfer:" not in decision["tasks"][name]["reasons"][-1]
    with caplog.at_level(logging.INFO, logger="mtlops.steps.twins"):
        again = _twins(finished, "gates.twins=always")
    assert not caplog.records, "the twins were trained before, and are taken from the cache"
    assert {task.name for task in again.predictors} == set(evaluation["tasks"])
    assert all(len(twin.model.tasks) == 1 for twin in again.predictors.values())
