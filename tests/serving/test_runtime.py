"""Answers from ONNX Runtime: the trained model's answers, in any mixture, and no torch."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from mtlops.bundle import Bundle, write_manifest
from mtlops.data.prepared import read_split
from mtlops.decoding import decode
from mtlops.errors import ArtefactError, UsageError
from mtlops.files import read_json, write_json
from mtlops.model.predictor import Predictor
from mtlops.serving.description import describe
from mtlops.serving.passes import PAIRS
from mtlops.serving.runtime import Runtime
from mtlops.steps.export import export
from mtlops.steps.profiles import Profiler
from tests.serving.variants import retrained
from tests.tiny_suite import Workspace

TEXTS = ["the film was very good", "phone", "the goal and the team and the coach", "law " * 50]


@pytest.fixture(scope="module")
def runtime(finished: Workspace) -> Runtime:
    return Runtime(Bundle.open(finished.bundle))


def test_answers_are_the_trained_model_s(finished: Workspace, runtime: Runtime) -> None:
    predictor = Predictor(finished.root / "models/trained", **finished.paths("encoder", "cache"))
    for task in runtime.tasks:
        test = read_split(finished.root / "data/prepared", task.name, "test")
        texts, row_ids = test["text"].to_pylist(), test["row_id"].to_pylist()
        calibration = predictor.model.calibrations[task.name]
        expected = decode(task, predictor.logits(texts, row_ids, task.name), calibration)
        answers = runtime.predict(texts)[task.name]
        for ours, theirs in ((answers.probabilities, expected.probabilities), (answers.values, expected.values)):
            assert (ours is None) == (theirs is None)
            if ours is not None:
                assert np.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize("layer", ["last", "cut"])
def test_the_embedding_is_what_the_reference_profile_was_made_of(
    finished: Workspace, tmp_path: Path, layer: str
) -> None:
    work = Workspace(Path(shutil.copytree(finished.root, tmp_path / "project")))
    override = f"drift.embedding={layer}"
    if layer != "last":
        export(
            work.params(override), **work.paths("prepared", "encoder", "trained", "cache", "evaluation", "decision"),
            out=work.bundle, report=work.root / "export.json",
        )  # fmt: skip
    runtime = Runtime(Bundle.open(work.bundle))
    predictor = Predictor(work.root / "models/trained", **work.paths("encoder", "cache"))
    profiler = Profiler.open(work.params(override), prepared=work.root / "data/prepared", predictor=predictor)
    rows = profiler.rows(runtime.tasks[0], "train")
    texts = rows["text"].to_pylist()
    profiled = profiler.inputs(rows)["embedding"].values
    assert np.abs(runtime.embeddings(texts) - profiled).max() < 1e-5
    last = predictor.pooled(texts, rows["row_id"].to_pylist())
    assert (np.abs(last - profiled).max() < 1e-5) == (layer == "last")
    assert profiler.trunk == runtime.bundle.embedding_digest
    assert (runtime.bundle.embedding_digest == Bundle.open(finished.bundle).embedding_digest) == (layer == "last")


def test_a_retrained_task_over_the_same_session(runtime: Runtime, tmp_path: Path) -> None:
    bundle = retrained(runtime.bundle, tmp_path / "new", task="topic")
    before = runtime.predict(TEXTS)
    assert runtime.can_take(bundle)
    new = runtime.with_bundle(bundle)
    new.check_golden()
    answers, alone = new.predict(TEXTS), Runtime(bundle).predict(TEXTS)
    for task in runtime.tasks:
        for kind in ("probabilities", "values"):
            was, now, loaded = (getattr(found[task.name], kind) for found in (before, answers, alone))
            if was is not None:
                assert np.array_equal(now, loaded)
                assert np.array_equal(now, was) == (task.name != "topic")
    assert {one.task.name: one.bundle_id for one in new.served}["topic"] == bundle.id
    assert np.array_equal(runtime.predict(TEXTS)["topic"].probabilities, before["topic"].probabilities)
    mixed = runtime.with_tasks_of(new, ["topic"])
    assert np.array_equal(mixed.predict(TEXTS)["topic"].probabilities, answers["topic"].probabilities)


def test_another_tokenizer_or_graph_needs_a_session_of_its_own(runtime: Runtime) -> None:
    manifest = runtime.bundle.manifest
    for changed in ({"max_tokens": 3}, {"graph": {"structure": "0"}}, {"files": {**manifest["files"], "x": "0"}}):
        other = Bundle(runtime.bundle.folder, {**manifest, **changed})
        assert runtime.can_take(other) == ("files" in changed)


def test_temperature_and_thresholds_of_the_manifest_decide(finished: Workspace, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(finished.bundle, tmp_path / "bundle"))
    manifest = read_json(folder / "manifest.json", made_by="mtlops export")
    plain = Runtime(Bundle.open(finished.bundle)).predict(TEXTS)
    manifest["tasks"]["topic"]["temperature"] = 2.0
    manifest["tasks"]["mood"]["threshold"] = float(plain["mood"].probabilities[:, 1].max())
    manifest["tasks"]["about"]["threshold"] = [1.0, 0.0]
    del manifest["tasks"]["stars"]["temperature"]
    write_json(folder / "manifest.json", manifest)
    found = Runtime(Bundle.open(folder)).predict(TEXTS)
    square = plain["topic"].probabilities ** 0.5
    assert np.allclose(found["topic"].probabilities, square / square.sum(axis=1, keepdims=True), atol=1e-6)
    assert found["mood"].labels.sum() == 1
    assert found["about"].labels.tolist() == [[False, True]] * len(TEXTS)
    assert np.array_equal(found["stars"].values, plain["stars"].values)


def test_a_subset_of_tasks_answers_the_same(runtime: Runtime) -> None:
    every, some = runtime.predict(TEXTS), runtime.predict(TEXTS, tasks=["topic", "mood"])
    assert set(some) == {"topic", "mood"}
    for task in some:
        assert np.allclose(some[task].probabilities, every[task].probabilities, atol=1e-5)


def test_a_text_s_answer_does_not_depend_on_its_batch(runtime: Runtime) -> None:
    together = runtime.predict(TEXTS)["topic"].probabilities
    alone = [runtime.predict([text])["topic"].probabilities[0] for text in TEXTS]
    assert np.allclose(together, alone, atol=1e-5)


def test_many_pairs_are_several_passes_with_the_same_answers(runtime: Runtime) -> None:
    ids = runtime.tokenizer.ids(["a film", "the law & the court of the space", "phone", "a"])
    random = np.random.default_rng(0)
    rows, tasks = random.integers(len(ids), size=3 * PAIRS + 5), random.integers(len(runtime.tasks), size=3 * PAIRS + 5)
    logits, embeddings = runtime.compute(ids, rows.tolist(), tasks.tolist(), embed_row=[2, 0])
    for pair, (row, task) in enumerate(zip(rows, tasks, strict=True)):
        (alone,), _ = runtime.compute([ids[row]], [0], [int(task)])
        np.testing.assert_allclose(logits[pair], alone, atol=1e-5)
    for vector, row in zip(embeddings, (2, 0), strict=True):
        np.testing.assert_allclose(vector, runtime.compute([ids[row]], (), (), embed_row=[0])[1][0], atol=1e-5)
    logits, embeddings = runtime.compute(ids, rows.tolist(), tasks.tolist())
    assert len(logits) == len(rows) and len(embeddings) == 0


def test_empty_text_is_a_text(runtime: Runtime) -> None:
    assert describe(runtime.tasks, runtime.predict([""]), [""])[0]["tasks"]["mood"]["label"] in ("bad", "good")


def test_wrong_requests_say_what_there_is(runtime: Runtime) -> None:
    with pytest.raises(UsageError, match="no task 'topics' in this bundle. Did you mean 'topic'"):
        runtime.predict(TEXTS, tasks=["topics"])
    with pytest.raises(UsageError, match="no text to predict from"):
        runtime.predict([])
    with pytest.raises(UsageError, match="execution provider 'CudaExecutionProvider' is not installed"):
        Runtime(runtime.bundle, provider="CudaExecutionProvider")


def test_golden_outputs_are_checked_at_load(finished: Workspace, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(finished.bundle, tmp_path / "bundle"))
    golden = read_json(copy / "golden.json", made_by="")
    golden["rows"][1]["logits"]["stars"][0] += 0.01
    write_json(copy / "golden.json", golden)
    manifest = read_json(copy / "manifest.json", made_by="")
    write_manifest(copy, {k: v for k, v in manifest.items() if k not in ("schema_version", "files")})
    with pytest.raises(ArtefactError, match="task stars: a logit differs by 0.01"):
        Runtime(Bundle.open(copy))


def test_graph_is_the_contract_and_tells_nothing_of_this_machine(finished: Workspace) -> None:
    model = onnx.load(finished.bundle / "model.onnx")
    shapes = {
        value.name: [d.dim_param for d in value.type.tensor_type.shape.dim]
        for value in [*model.graph.input, *model.graph.output]
    }
    assert shapes["input_ids"] == shapes["attention_mask"] == ["rows", "tokens"]
    assert shapes["pair_row"] == shapes["pair_task"] == ["pairs"]
    assert [name for name in shapes if not name.startswith("bank.")] == [
        "input_ids", "attention_mask", "pair_row", "pair_task", "embed_row", "logits", "embedding",
    ]  # fmt: skip
    assert not {value.name for value in model.graph.input if value.name.startswith("bank.")} - {
        tensor.name for tensor in model.graph.initializer
    }
    assert shapes["embedding"][0] == shapes["embed_row"][0] == "embedded"
    text = (finished.bundle / "model.onnx").read_bytes()
    assert b".py" not in text and str(Path.home()).encode() not in text and b"site-packages" not in text


def test_predict_does_not_import_torch(finished: Workspace) -> None:
    code = (
        "import sys; from mtlops.cli import main;"
        f"assert main(['predict', 'a film', '--bundle', {str(finished.bundle)!r}]) == 0;"
        "heavy = {'torch', 'transformers', 'great_expectations', 'kfp', 'dvc', 'onnx', 'sklearn', 'scipy', 'pandas'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
