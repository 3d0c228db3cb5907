"""A task that tags words beside five others, the whole way from lists of words to spans in an answer."""

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest

from mtlops.bundle import Bundle, diff
from mtlops.cli import main
from mtlops.data.prepared import read_split
from mtlops.errors import UsageError
from mtlops.files import read_json, sha256_tree
from mtlops.model.predictor import Predictor
from mtlops.serving.runtime import Runtime
from mtlops.steps.export import export
from mtlops.steps.train import train
from tests.tagged_suite import Tagged
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
