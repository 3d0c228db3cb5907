"""A task that tags words beside five others, the whole way from lists of words to spans in an answer."""

import json
import logging
import random
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from mtlops import catalog
from mtlops.bundle import Bundle, diff
from mtlops.cli import main
from mtlops.data.prepared import read_split
from mtlops.errors import UsageError
from mtlops.files import read_json, sha256_tree
from mtlops.model.predictor import Predictor
from mtlops.registry import Registry
from mtlops.serving.runtime import Runtime
from mtlops.steps.admit import admit
from mtlops.steps.evaluate import evaluate
from mtlops.steps.export import export
from mtlops.steps.prune import prune
from mtlops.steps.train import train
from tests.tagged_suite import Tagged, tag
from tests.tiny_suite import Workspace

pytestmark = pytest.mark.e2e


@pytest.fixture
def work(tagged: Tagged) -> Tagged:
    return tagged


def _report(work: Workspace, name: str) -> dict:
    return read_json(work.root / f"reports/{name}.json", made_by="test")


def test_it_learns_what_the_words_are(work: Tagged) -> None:
    found = _report(work, "evaluation")["tasks"]["names"]
    assert found["primary"] == "span_f1"
    assert found["metrics"]["accuracy"]["value"] > found["baselines"]["majority"]["accuracy"]["value"] + 0.1
    assert found["metrics"]["span_f1"]["value"] > 0.2 > found["baselines"]["majority"]["span_f1"]["value"]
    assert set(found["classes"]) == {"O", "B-thing", "I-thing", "B-place"}
    assert found["baselines"]["tfidf"]["span_f1"]["value"] > 0.8
    assert found["robustness"] == {} and found["slices"]
    manifest = Bundle.open(work.bundle).manifest["tasks"]["names"]
    assert manifest["kind"] == "tagging" and manifest["metrics"]["span_f1"] == found["metrics"]["span_f1"]


def test_the_graph_answers_what_the_trained_model_answers(work: Tagged) -> None:
    """All words of all test rows, those behind the cut left out by both; other tasks as ever."""
    runtime = Runtime(Bundle.open(work.bundle))
    predictor = Predictor(**work.paths("trained", "encoder", "cache"))
    for task in ("names", "mood", "stars"):
        rows = read_split(work.root / "data/prepared", task, "test")
        texts, row_ids = rows["text"].to_pylist(), rows["row_id"].to_pylist()
        ours, theirs = runtime.logits(texts, task), predictor.logits(texts, row_ids, task)
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    words = sum(text.count(" ") + 1 for text in texts)
    assert words > 0


def test_words_that_are_cut_off_are_counted_and_said(work: Tagged, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="mtlops"):
        train(
            work.params("train.epochs=1").only(["names"]), **work.paths("prepared", "encoder", "cache"),
            out=work.root / "models/again", report=work.root / "reports/again.json",
        )  # fmt: skip
    cells = [read_split(work.root / "data/prepared", "names", "train")[name].to_pylist() for name in ("text", "label")]
    too_many = sum(max(0, text.count(" ") + 1 - 22) for text in cells[0])  # max_tokens: 24, two of them special
    assert too_many and f"cut_off={too_many}:" in caplog.text
    assert all(len(tags) == text.count(" ") + 1 for text, tags in zip(*cells, strict=True))


def test_an_answer_has_words_tags_and_spans(
    work: Tagged, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(work.root)
    text = "the  phone battery was &amp; good " + "road " * 30
    assert main(["predict", text, "--tasks", "names,mood", "--json", "--quiet"]) == 0
    answer = json.loads(capsys.readouterr().out)["predictions"][0]["tasks"]
    assert set(answer) == {"names", "mood"}
    found, words = answer["names"], ["the", "phone", "battery", "was", "&", "good", *["road"] * 30]
    assert found["words"] == words and len(found["tags"]) == len(found["confidences"]) == len(words)
    assert found["tags"][22:] == [None] * 14 and None not in found["tags"][:22]
    joined = " ".join(words)
    for span in found["spans"]:
        assert joined[span["start"] : span["end"]] == span["text"]
    assert {span["label"] for span in found["spans"]} <= {"thing", "place"} and found["spans"]
    assert main(["predict", "the phone", "--tasks", "names", "--quiet"]) == 0
    assert "the/" in capsys.readouterr().out


def test_it_is_trained_again_alone_and_no_other_bit_changes(work: Tagged, tmp_path: Path) -> None:
    copy = Tagged(Path(shutil.copytree(work.root, tmp_path / "copy")))
    paths = copy.paths("prepared", "encoder", "cache")
    train(copy.params(), **paths, out=copy.root / "models/same", report=copy.root / "reports/same.json")
    assert sha256_tree(copy.root / "models/same") == sha256_tree(copy.root / "models/trained")
    alone = copy.params("train.seed=9").only(["names"])
    train(alone, **paths, out=copy.root / "models/other", report=copy.root / "reports/other.json")
    shutil.copytree(
        copy.root / "models/other/tasks/names", copy.root / "models/trained/tasks/names", dirs_exist_ok=True
    )
    export(
        copy.params(), **copy.paths("prepared", "encoder", "trained", "evaluation", "decision"),
        out=copy.root / "models/after", report=copy.root / "reports/export.json",
    )  # fmt: skip
    found = diff(Bundle.open(work.bundle), Bundle.open(copy.root / "models/after"))
    assert (found.pop("names").outputs, found.pop("trunk").files) == ("changed", "identical")
    assert {(d.files, d.outputs) for d in found.values()} == {("identical", "identical")}


def test_only_a_suite_that_tags_words_has_their_input_and_output(work: Tagged, finished: Workspace) -> None:
    graphs = [onnx.load(path / "model.onnx", load_external_data=False).graph for path in (work.bundle, finished.bundle)]
    names = [({v.name for v in graph.input}, {v.name for v in graph.output}) for graph in graphs]
    assert "word_pair" in names[0][0] and names[0][1] == {"logits", "embedding", "token_logits"}
    assert "word_pair" not in names[1][0] and names[1][1] == {"logits", "embedding"}


@pytest.mark.parametrize("sharing", ["hard", "soft", "hierarchical"])
def test_layers_that_tasks_train_together_are_refused_with_the_reason(work: Tagged, sharing: str) -> None:
    with pytest.raises(UsageError, match=r"suite\.tasks\.names of kind 'tagging' needs one for each word"):
        work.params(f"model.sharing={sharing}")


@pytest.mark.parametrize("adapter", [name for name in catalog.ADAPTERS if name != "pfeiffer"])
def test_every_adapter_tags_words(tagged: Tagged, tmp_path: Path, adapter: str) -> None:
    """Trained beside a task with one answer a text; adapters in every layer, the highest included."""
    params = tagged.params("train.epochs=1", f"model.adapter={adapter}", "model.adapter_drop=0").only(["mood", "names"])
    paths = tagged.paths("prepared", "encoder") | {"cache": tmp_path / "cache"}
    train(params, **paths, out=tmp_path / "trained", report=tmp_path / "training.json")
    predictor = Predictor(tmp_path / "trained", paths["encoder"], cache=tmp_path / "cache")
    test = read_split(paths["prepared"], "names", "test")
    logits = predictor.logits(test["text"].to_pylist(), test["row_id"].to_pylist(), "names")
    seen = predictor.backbone.tokenizer.word_tokens(test["text"].to_pylist()) >= 0
    assert (np.isfinite(logits).all(-1) == seen).all() and logits[seen].std() > 0.01


@pytest.mark.slow
def test_numbers_of_other_formats_are_measured_on_words_too(tagged: Tagged, tmp_path: Path) -> None:
    """Ranges that were taken without tags would make integers of nothing: F1 fell from .54 to .07."""
    export(
        tagged.params("export.variants=[int8,fp16]", "export.variant_loss=0.1"),
        **tagged.paths("prepared", "encoder", "trained", "evaluation", "decision"), cache=tmp_path / "cache",
        out=tmp_path / "bundle", report=tmp_path / "export.json",
    )  # fmt: skip
    variants = read_json(tmp_path / "export.json", made_by="test")["variants"]
    assert {name: found["kept"] for name, found in variants.items()} == {"int8": True, "fp16": True}
    assert abs(variants["int8"]["tasks"]["names"]["value"] - variants["int8"]["tasks"]["names"]["fp32"]) < 0.1


def test_units_that_matter_least_to_tags_are_pruned(tagged: Tagged, tmp_path: Path) -> None:
    params = tagged.params().only(["names"])
    done = prune(
        params, **tagged.paths("prepared", "encoder", "trained"), cache=tmp_path / "cache", out=tmp_path / "pruned",
        report=tmp_path / "pruning.json", keep=0.5,
    )  # fmt: skip
    cost = done.tasks["names"]
    assert (cost.primary, cost.units) == ("span_f1", (4, 2)) and abs(cost.change) < 0.4


@pytest.mark.slow
def test_a_window_of_new_rows_updates_it_alone(tagged: Tagged, tmp_path: Path) -> None:
    """Labelled later, admitted, trained on top of the champion, judged on old and new rows, exported with its files."""
    work = Tagged(Path(shutil.copytree(tagged.root, tmp_path / "copy")))
    registry, root = str(work.root / "registry"), work.root
    store = Registry(registry)
    champion = store.publish(work.bundle)
    store.promote(champion, expect=None, by="test", reason="the first")
    drawn = random.Random(5)
    words = [[drawn.choice(["team", "goal", "phone", "car", "moon", "the"]) for _ in range(7)] for _ in range(80)]
    rows = [{"tokens": of, "ner_tags": tag(of)} for of in words]
    (root / "shift.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    admit(
        work.params(), rows=root / "shift.jsonl", tasks=["names"], alert="alert-7", windows=root / "data/windows",
        **work.paths("prepared"),
    )  # fmt: skip
    params = work.params("gates.max_drop=null").retraining(["names"], "registry")
    train(
        params, **work.paths("prepared", "encoder", "cache"), registry=registry, out=root / "models/trained",
        report=root / "reports/training.json",
    )  # fmt: skip
    evaluate(
        params, **work.paths("prepared", "encoder", "trained", "cache", "decision"), registry=registry,
        report=root / "reports/evaluation.json",
    )  # fmt: skip
    export(
        params, **work.paths("prepared", "encoder", "trained", "cache", "evaluation", "decision"), registry=registry,
        out=root / "models/update", report=root / "reports/export.json",
    )  # fmt: skip
    window = _report(work, "evaluation")["tasks"]["names"]["window"]
    assert window["rows"] >= 10 and set(window["metrics"]) >= {"span_f1", "macro_f1"}
    found = diff(tagged_bundle := Bundle.open(tagged.bundle), Bundle.open(root / "models/update"))
    assert tagged_bundle.id == champion
    assert found.pop("names").outputs == "changed"
    assert {(d.files, d.outputs) for name, d in found.items() if name != "trunk"} == {("identical", "identical")}
