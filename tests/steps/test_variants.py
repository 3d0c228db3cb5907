"""Variants of a real bundle: judged, kept or left out, served by word."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from mtlops.bundle import Bundle
from mtlops.cli import main
from mtlops.errors import ArtefactError
from mtlops.export import quantisation
from mtlops.files import read_json
from mtlops.report import summary
from mtlops.serving.runtime import Runtime
from mtlops.steps.export import export
from tests.serving.variants import retrained, with_wrong_golden
from tests.tiny_suite import Workspace

TEXTS = ["the film was very good", "phone", "the goal and the team and the coach"]
ALL = "export.variants=[int8, int8-dynamic, fp16]"
ANY_LOSS = "export.variant_loss=2"


def run_export(work: Workspace, root: Path, *overrides: str) -> Bundle:
    """Exports the finished project into `root`."""
    export(
        work.params(*overrides), **work.paths("prepared", "encoder", "trained", "cache", "evaluation", "decision"),
        out=root / "bundle", report=root / "export.json",
    )  # fmt: skip
    return Bundle.open(root / "bundle")


@pytest.fixture(scope="module")
def root(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("exported")
    run_export(finished, root, ALL, ANY_LOSS)
    shutil.copy(finished.root / "reports/evaluation.json", root)
    return root


@pytest.fixture(scope="module")
def bundle(root: Path) -> Bundle:
    return Bundle.open(root / "bundle")


def test_each_variant_has_a_file_golden_outputs_and_what_it_loses_of_every_task(bundle: Bundle, root: Path) -> None:
    assert bundle.variants == ("fp32", "int8", "int8-dynamic", "fp16")
    report, card = read_json(root / "export.json", made_by="test"), (bundle.folder / "card.md").read_text()
    for name in bundle.variants[1:]:
        facts = bundle.variant(name)
        assert facts["file"] == f"model.{name}.onnx"
        assert facts["file"] in bundle.manifest["files"]
        assert list(facts["tasks"]) == [task.name for task in bundle.tasks]
        for task, rows in facts["tasks"].items():
            primary = bundle.manifest["tasks"][task]
            assert rows["fp32"] == primary["metrics"][primary["primary"]]["value"]
        assert all(set(row["variants"][name]) == set(row["logits"]) for row in bundle.golden())
        assert report["variants"][name]["kept"]
        assert report["variants"][name]["latency_ms"]["batch_8"] > 0
        assert f"| {name} |" in card
    assert bundle.variant("int8")["batch_invariant"]
    assert not bundle.variant("int8-dynamic")["batch_invariant"]
    assert (root / "export.html").read_text().count("int8-dynamic")
    assert re.search(r"Variants +int8 [\d.]+ kB, batch 1: .* ms; loses at most [\d.]+ \(", summary(reports_with(root)))


def reports_with(root: Path) -> Path:
    """The reports that the closing table is made of."""
    folder = root / "reports"
    folder.mkdir()
    shutil.copy(root / "export.json", folder)
    shutil.copy(root / "evaluation.json", folder)
    return folder


@pytest.mark.parametrize("variant", ["int8", "int8-dynamic", "fp16"])
def test_a_variant_answers_about_what_fp32_answers_and_not_the_same(bundle: Bundle, variant: str) -> None:
    full, ours = (Runtime(bundle, variant=name).predict(TEXTS) for name in ("fp32", variant))
    for task, answers in full.items():
        for theirs, own in ((answers.probabilities, ours[task].probabilities), (answers.values, ours[task].values)):
            if theirs is not None and own is not None:
                assert 0 < np.abs(theirs - own).max() < 0.2


def test_a_variant_takes_over_another_bundle_s_task_without_a_new_session(bundle: Bundle, tmp_path: Path) -> None:
    other = retrained(bundle, tmp_path / "other", task="topic")
    runtime = Runtime(bundle, variant="int8")
    assert runtime.can_take(other)
    swapped = runtime.with_bundle(other)
    assert swapped.session is runtime.session
    swapped.check_golden()
    swapped.check_unchanged(runtime)
    before, after = runtime.predict(TEXTS), swapped.predict(TEXTS)
    for task in before:
        same = [
            np.array_equal(a, b) for a, b in zip(vars(before[task]).values(), vars(after[task]).values(), strict=True)
        ]
        assert all(same) == (task != "topic")


def test_golden_outputs_of_the_variant_are_checked(bundle: Bundle, tmp_path: Path) -> None:
    wrong = with_wrong_golden(bundle, tmp_path / "wrong", row=0, variant="int8", by=0.5)
    Runtime(wrong)
    with pytest.raises(ArtefactError, match="variant int8, task mood: a logit differs by 0.5"):
        Runtime(wrong, variant="int8")


def test_a_bundle_without_the_variant_is_not_taken_and_says_what_it_has(
    finished: Workspace, bundle: Bundle, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = Bundle.open(finished.bundle)
    assert not Runtime(bundle, variant="int8").can_take(plain)
    assert Runtime(bundle).can_take(plain)
    for command in (["predict", "phone"], ["serve", "--port", "0", "--grpc-port", "0"]):
        assert main([*command, "--bundle", str(plain.folder), "--variant", "int8"]) == 4
        said = capsys.readouterr().err.strip().splitlines()[-1]
        assert f"bundle {plain.id} has no variant 'int8'; it has fp32." in said


def test_predict_answers_from_a_variant(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    answers = []
    for variant in ("fp32", "int8"):
        assert main(["predict", "phone", "--bundle", str(bundle.folder), "--variant", variant, "--json"]) == 0
        answers.append(json.loads(capsys.readouterr().out)["predictions"])
    assert answers[0] != answers[1]


@pytest.mark.slow
def test_a_variant_that_loses_too_much_is_left_out_or_stops_the_export(
    finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantisation, "_WEIGHT_LIMIT", 1)  # weights of -1, 0 and 1: a real loss
    (tmp_path / "a").mkdir()
    left_out = run_export(finished, tmp_path / "a", "export.variants=[int8]", "export.variant_loss=0.001")
    assert left_out.variants == ("fp32",)
    assert not [name for name in left_out.manifest["files"] if "int8" in name]
    found = read_json(tmp_path / "a/export.json", made_by="test")["variants"]["int8"]
    assert not found["kept"]
    assert "0.001 may be lost (export.variant_loss)" in found["reasons"][0]
    with pytest.raises(ArtefactError, match="export.variants: int8 is not good enough: Task"):
        run_export(
            finished, tmp_path / "b", "export.variants=[int8]", "export.variant_loss=0.001",
            "export.variant_failure=fail",
        )  # fmt: skip
    assert not (tmp_path / "b/bundle").exists()


@pytest.mark.slow
def test_the_same_input_gives_the_same_bundle(finished: Workspace, bundle: Bundle, tmp_path: Path) -> None:
    assert run_export(finished, tmp_path, ALL, ANY_LOSS).id == bundle.id


@pytest.mark.slow
def test_an_update_keeps_the_ranges_and_other_tasks_answer_to_the_bit(
    finished: Workspace, bundle: Bundle, tmp_path: Path
) -> None:
    from mtlops.steps.evaluate import evaluate
    from mtlops.steps.train import train

    work = Workspace(Path(shutil.copytree(finished.root, tmp_path / "project")))
    changed = (
        "train.seed=7",
        "train.learning_rate=0.02",
        "retrain.start=fresh",
        "export.variants=[int8, fp16]",
        ANY_LOSS,
    )
    params = work.params(*changed).retraining(["topic"], str(bundle.folder))
    train(params, **work.paths("prepared", "encoder", "cache"), out=work.root / "models/trained",
          report=work.root / "reports/training.json")  # fmt: skip
    evaluate(params, **work.paths("prepared", "encoder", "trained", "cache", "decision"),
             report=work.root / "reports/evaluation.json")  # fmt: skip
    export(params, **work.paths("prepared", "encoder", "trained", "cache", "evaluation", "decision"),
           out=work.bundle, report=work.root / "reports/export.json")  # fmt: skip
    updated = Bundle.open(work.bundle)
    assert updated.variants == ("fp32", "int8", "fp16")
    for name in ("int8", "fp16"):
        weights = f"model.{name}.onnx.data"
        assert updated.manifest["files"].get(weights) == bundle.manifest["files"].get(weights)
        assert updated.variant(name)["structure"] == bundle.variant(name)["structure"]
        before, after = (Runtime(one, variant=name).predict(TEXTS) for one in (bundle, updated))
        for task in before:
            same = [
                np.array_equal(a, b)
                for a, b in zip(vars(before[task]).values(), vars(after[task]).values(), strict=True)
            ]
            assert all(same) == (task != "topic")
        for old, new in zip(bundle.golden(), updated.golden(), strict=True):
            differing = {t for t in old["logits"] if old["variants"][name][t] != new["variants"][name][t]}
            assert differing == {"topic"}


@pytest.mark.slow
def test_tasks_that_train_layers_together_have_variants_too(finished: Workspace, tmp_path: Path) -> None:
    from mtlops.steps.evaluate import evaluate
    from mtlops.steps.train import train

    work = Workspace(Path(shutil.copytree(finished.root, tmp_path / "project")))
    params = work.params("model.sharing=hard", "model.adapter_drop=0", "train.epochs=1", "gates.twins=never")
    train(params, **work.paths("prepared", "encoder", "cache"), out=work.root / "models/trained",
          report=work.root / "reports/training.json")  # fmt: skip
    evaluate(params, **work.paths("prepared", "encoder", "trained", "cache", "decision"),
             report=work.root / "reports/evaluation.json")  # fmt: skip
    shared = ("model.sharing=hard", "model.adapter_drop=0", "train.epochs=1", "gates.twins=never")
    exported = run_export(work, tmp_path, *shared, "export.variants=[int8]", ANY_LOSS)
    Runtime(exported, variant="int8").check_golden()
