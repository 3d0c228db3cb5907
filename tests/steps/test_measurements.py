"""evaluate's closer measurements, and the calibration that train fits, on a really trained tiny model."""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mtlops.bundle import Bundle
from mtlops.data.prepared import read_split
from mtlops.decoding import Calibration, decode
from mtlops.errors import ArtefactError, DataError
from mtlops.files import read_json
from mtlops.model.predictor import Predictor
from mtlops.params import Params, parse_params
from mtlops.serving.runtime import Runtime
from mtlops.steps.evaluate import evaluate
from mtlops.steps.export import export
from mtlops.steps.prepare import prepare
from mtlops.steps.train import train
from tests.tiny_encoder import WORDS, write_encoder

PARAMS = """
suite:
  name: tiny
  inputs: {group: author, timestamp: day}
  tasks:
    tone: {kind: binary, source: rows.csv, label: tone, classes: [bad, good]}
    words: {kind: multilabel, source: rows.csv, label: words, classes: [film, phone]}
    length: {kind: regression, source: rows.csv, label: length}
data: {valid_share: 0.3, test_share: 0.25, slices: [shop, tone], behaviour: [checks.yaml]}
encoder: {source: encoder, max_tokens: 16}
model: {bottleneck: 4, adapter_drop: 1}
train: {epochs: 2, batch_size: 16, learning_rate: 0.01, threads: 1, thresholds: fitted}
gates: {resamples: 200, baseline: none, slice_rows: 30, robustness_rows: 40, behaviour_pass_rate: 0.9}
export: {golden_rows: 1}
"""
CHECKS = """
- {name: good starts good, task: tone, type: minimum, label: good, cases: [a film, and a film, battery and film]}
- {name: and bad is bad, task: tone, type: minimum, label: bad, cases: [very bad, this film]}
- {name: nothing moves, task: length, type: invariance, tolerance: 0.0, cases: [[the film, the film was very very very bad]]}
- {name: film is film, task: words, type: directional, class: film, direction: rise, cases: [[the the the, the film the]]}
"""  # noqa: E501


def _write_rows(path: Path) -> None:
    random = np.random.default_rng(0)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["text", "author", "day", "shop", "tone", "words", "length"])
        for i in range(260):
            words = list(random.choice(WORDS, size=random.integers(3, 14)))
            tone = "good" if words[0] < "i" else "bad"
            named = "|".join(w for w in ("film", "phone") if w in words) or "film"
            day = f"2024-{1 + i // 28:02d}-{1 + i % 28:02d}"
            rows.writerow([" ".join(words), f"a{i // 2}", day, ["north", "south", ""][i % 3], tone, named, len(words)])


def _places(project: Path) -> dict[str, Path]:
    return {name: project / name for name in ("prepared", "encoder", "cache")}


@pytest.fixture(scope="module")
def params() -> Params:
    return parse_params(PARAMS)


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory, params: Params) -> Path:
    root = tmp_path_factory.mktemp("project")
    _write_rows(root / "rows.csv")
    (root / "checks.yaml").write_text(CHECKS, encoding="utf-8")
    write_encoder(root / "encoder")
    places = _places(root) | {"encoder": root / "prepared-encoder"}
    prepare(params, base=root, raw=root / "raw", out=places["prepared"], encoder=places["encoder"])
    train(params, **places, out=root / "trained", report=root / "reports/training.json")
    return root


def _evaluate(project: Path, params: Params, *, to: str, **other: Path) -> dict[str, Any]:
    places = _places(project) | {"encoder": project / "prepared-encoder", "trained": project / "trained"} | other
    report = project / to / "evaluation.json"
    evaluate(params, **places, report=report, decision=project / to / "decision.json")
    content: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))
    return content


@pytest.fixture(scope="module")
def content(project: Path, params: Params) -> dict[str, Any]:
    return _evaluate(project, params, to="reports")


def _logits(project: Path, task: str) -> tuple[Predictor, Any, Any]:
    predictor = Predictor(project / "trained", project / "prepared-encoder", cache=project / "cache")
    test = read_split(project / "prepared", task, "test")
    return predictor, test, predictor.logits(test["text"].to_pylist(), test["row_id"].to_pylist(), task)


def test_train_fits_and_stores_temperature_and_thresholds(project: Path) -> None:
    facts = {t: read_json(project / f"trained/tasks/{t}/task.json", made_by="") for t in ("tone", "words", "length")}
    assert facts["tone"]["temperature"] != 1.0 and facts["words"]["temperature"] != 1.0
    assert facts["length"]["temperature"] == 1.0 and facts["length"]["threshold"] is None
    assert 0.05 <= facts["tone"]["threshold"] <= 0.95 and len(facts["words"]["threshold"]) == 2
    report = read_json(project / "reports/training.json", made_by="")["tasks"]["tone"]["calibration"]
    assert report["temperature"] == facts["tone"]["temperature"]
    assert report["log_loss"][1] <= report["log_loss"][0]


def test_evaluate_answers_with_the_calibration(project: Path, content: dict[str, Any]) -> None:
    predictor, test, logits = _logits(project, "tone")
    task, calibration = predictor.model.tasks[0], predictor.model.calibrations["tone"]
    right = decode(task, logits, calibration).labels == task.encode(test["label"].to_pylist())
    assert content["tasks"]["tone"]["metrics"]["accuracy"]["value"] == pytest.approx(right.mean(), abs=1e-6)


def test_the_calibration_error_before_and_after_is_that_of_the_test_rows(content: dict[str, Any]) -> None:
    for name in ("tone", "words"):
        task = content["tasks"][name]
        found = task["calibration"]
        assert found["ece_after"] == task["metrics"]["ece"]["value"] != found["ece_before"]
        rows = [b["rows"] * abs(b["predicted"] - b["observed"]) for b in found["bins"]]
        assert sum(rows) / sum(b["rows"] for b in found["bins"]) == pytest.approx(found["ece_after"], abs=1e-5)
    assert content["tasks"]["length"]["calibration"] | {"bins": []} == {
        "bins": [], "temperature": 1.0, "ece_before": None, "ece_after": None, "thresholds": None,
    }  # fmt: skip


def test_every_column_s_slices_hold_all_test_rows(content: dict[str, Any]) -> None:
    for task in content["tasks"].values():
        rows: dict[str, int] = {}
        for part in task["slices"]:
            rows[part["column"]] = rows.get(part["column"], 0) + part["rows"]
            assert (part["note"] is None) == (part["rows"] >= 30) or "the same" in part["note"]
            assert list(part["metrics"]) == [task["primary"]]
        assert rows == dict.fromkeys(["shop", "tone", "words in the text", "time"], task["rows"]["test"])
    shops = [s["value"] for s in content["tasks"]["tone"]["slices"] if s["column"] == "shop"]
    assert shops == ["north", "south", "(none)"]


def test_robustness_is_measured_on_the_asked_rows(content: dict[str, Any]) -> None:
    for task in content["tasks"].values():
        assert list(task["robustness"]) == ["typos", "upper_case", "no_punctuation", "dropped_words"]
        assert {part["rows"] for part in task["robustness"].values()} == {40}
        unchanged = task["robustness"]["no_punctuation"]
        assert unchanged["changed"] == 0 and unchanged["change"] == {"value": 0.0, "low": 0.0, "high": 0.0}
        upper = task["robustness"]["upper_case"]  # the tokenizer takes lower case
        assert upper["changed"] == 40 and upper["change"]["value"] == 0.0


def test_perturbed_texts_do_not_enter_the_trunk_cache(project: Path, content: dict[str, Any]) -> None:
    rows = {
        row_id
        for index in (project / "cache").glob("trunk-*/**/*.json")
        for row_id, _ in json.loads(index.read_text())["rows"]
    }
    splits = {
        row_id
        for task in content["tasks"]
        for split in ("train", "valid", "test")
        for row_id in read_split(project / "prepared", task, split)["row_id"].to_pylist()
    }
    assert rows == splits


def test_checks_are_counted_and_judged(project: Path, content: dict[str, Any]) -> None:
    found = {
        name: {check["name"]: (check["cases"], check["failed"]) for check in task["behaviour"]}
        for name, task in content["tasks"].items()
    }
    assert list(found["tone"]) == ["good starts good", "and bad is bad"]
    assert found["length"] == {"nothing moves": (1, 1)}
    (example,) = content["tasks"]["length"]["behaviour"][0]["examples"]
    assert example["texts"] == ["the film", "the film was very very very bad"]
    assert example["expected"] == "no number moves by more than 0"
    decision = read_json(project / "reports/decision.json", made_by="")
    assert decision["tasks"]["length"]["verdict"] == "REJECT"
    assert "0 of 1 behavioural cases pass" in decision["tasks"]["length"]["reasons"][0]


def test_the_same_inputs_give_the_same_measurements(project: Path, params: Params, content: dict[str, Any]) -> None:
    assert _evaluate(project, params, to="again") == content
    alone = _evaluate(project, params.only(["words"]), to="alone")["tasks"]["words"]
    for part in ("calibration", "slices", "robustness", "behaviour"):
        assert alone[part] == content["tasks"]["words"][part]


@pytest.mark.slow
def test_the_bundle_answers_as_evaluate_did(project: Path, params: Params, content: dict[str, Any]) -> None:
    export(
        params, prepared=project / "prepared", encoder=project / "prepared-encoder", trained=project / "trained",
        cache=project / "cache", evaluation=project / "reports/evaluation.json",
        decision=project / "reports/decision.json", out=project / "bundle", report=project / "reports/export.json",
    )  # fmt: skip
    bundle = Bundle.open(project / "bundle")
    for name in ("tone", "words"):
        predictor, test, logits = _logits(project, name)
        facts = read_json(project / f"trained/tasks/{name}/task.json", made_by="")
        assert {k: bundle.manifest["tasks"][name][k] for k in ("temperature", "threshold")} == {
            k: facts[k] for k in ("temperature", "threshold")
        }
        task = next(t for t in predictor.model.tasks if t.name == name)
        expected = decode(task, logits, Calibration.from_facts(facts))
        answers = Runtime(bundle).predict(test["text"].to_pylist())[name]
        assert np.allclose(answers.probabilities, expected.probabilities, atol=1e-4)
    golden = bundle.golden()[0]
    assert Runtime(bundle).predict([golden["text"]])["tone"].probabilities[0] == pytest.approx(
        decode(bundle.tasks[0], np.float32([golden["logits"]["tone"]]), bundle.calibrations["tone"]).probabilities[0],
        abs=1e-5,
    )


def test_slices_that_prepare_did_not_know_are_refused(project: Path, tmp_path: Path) -> None:
    other = parse_params(PARAMS, overrides=["data.slices=[colour]"])
    with pytest.raises(ArtefactError, match=r"no task has the column 'colour' of data.slices. Run `mtlops"):
        _evaluate(project, other, to="refused")
    with pytest.raises(DataError, match=r"data.slices: no source has a column 'colour'. Choose one of: author, day"):
        prepare(other, base=project, raw=tmp_path, out=tmp_path / "prepared", encoder=tmp_path / "encoder")
    assert list(tmp_path.iterdir()) == []


def test_a_changed_check_changes_no_split(project: Path, params: Params, tmp_path: Path) -> None:
    base = Path(shutil.copytree(project, tmp_path / "base", ignore=shutil.ignore_patterns("cache", "prepared*")))
    (base / "checks.yaml").write_text(CHECKS.replace("the film the", "film film film"), encoding="utf-8")
    prepare(params, base=base, raw=base / "raw", out=base / "prepared", encoder=base / "prepared-encoder")
    assert (base / "prepared/manifest.json").read_bytes() == (project / "prepared/manifest.json").read_bytes()
    assert (base / "prepared/behaviour.json").read_bytes() != (project / "prepared/behaviour.json").read_bytes()


def test_a_wrong_check_stops_prepare(project: Path, params: Params, tmp_path: Path) -> None:
    base = Path(shutil.copytree(project, tmp_path / "base", ignore=shutil.ignore_patterns("cache", "prepared*")))
    (base / "checks.yaml").write_text("- {name: a, task: tune, type: invariance, cases: [[a, b]]}\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"checks.yaml:1: task: no task 'tune' in suite.tasks. Did you mean 'tone'"):
        prepare(params, base=base, raw=base / "raw", out=base / "prepared", encoder=base / "prepared-encoder")
    assert not (base / "prepared").exists()


def test_without_the_task_of_a_column_or_check_prepare_goes_on(project: Path, tmp_path: Path) -> None:
    text = PARAMS.replace("[shop, tone]", "[shop, tone, colour]")
    params = parse_params(text).only(["length"])
    prepare(params, base=project, raw=tmp_path / "raw", out=tmp_path / "prepared", encoder=tmp_path / "encoder")
    checks = read_json(tmp_path / "prepared/behaviour.json", made_by="")["checks"]
    assert [check["task"] for check in checks] == ["length"]
