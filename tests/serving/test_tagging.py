"""Tags of words as the server gives them, logs them, and as the monitor reads them back."""

import asyncio
import json
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mtlops.bundle import Bundle
from mtlops.data.prepared import read_split
from mtlops.decoding import Outputs
from mtlops.drift.columns import prediction_columns
from mtlops.errors import UsageError
from mtlops.export.layouts import write_triton
from mtlops.params import Drift
from mtlops.serving.batching import Batcher
from mtlops.serving.description import describe
from mtlops.serving.limits import Limits
from mtlops.serving.passes import PAIRS
from mtlops.serving.questions import Answer, Question, question
from mtlops.serving.refusal import Refusal
from mtlops.serving.runtime import Runtime
from mtlops.serving.tensors import Tensor
from mtlops.watch.engine import Watch
from mtlops.watch.log import PredictionLog
from mtlops.watch.references import References
from mtlops.watch.rows import parse_predictions
from mtlops.watch.state import State
from tests.serving.processes import serving
from tests.tagged_suite import Tagged

TEXTS = ["the phone battery was good", "moon", "a film  of &amp; the engine chip " + "car " * 40]
NAMES = 5
"""Position of the task that tags words."""


@pytest.fixture(scope="module")
def runtime(tagged: Tagged) -> Runtime:
    return Runtime(Bundle.open(tagged.bundle), threads=1)


def test_mixed_requests_get_their_own_tags(runtime: Runtime) -> None:
    """Several requests in one pass, rows of other lengths, tasks with and without words, embeddings for some."""
    assert runtime.tasks[NAMES].name == "names"
    batcher = Batcher(Limits(queue_rows=100), threads=1, batch_rows=8)
    asked = [
        Question(
            "x",
            [f"the phone {'car ' * (k % 5)}moon {i}" for i in range(k % 3 + 1)],
            None,
            ((NAMES,), (0, NAMES), (0, 4), tuple(range(6)))[k % 4],
            (),
            30.0,
        )
        for k in range(16)
    ]

    async def ask() -> list[Answer]:
        futures = [batcher.submit(one, runtime, with_embedding=i % 2 == 0) for i, one in enumerate(asked)]
        return list(await asyncio.gather(*futures))

    found = asyncio.run(ask())
    batcher.close()
    for i, (one, answer) in enumerate(zip(asked, found, strict=True)):
        names = [runtime.tasks[p].name for p in one.positions]
        assert list(answer.outputs) == names and (answer.embeddings is not None) == (i % 2 == 0)
        expected = runtime.predict(one.texts or (), tasks=names)
        ours, theirs = (describe(runtime.tasks, outputs, one.texts or ()) for outputs in (answer.outputs, expected))
        for row, other in zip(ours, theirs, strict=True):
            if "names" in names:
                assert row["tasks"]["names"]["tags"] == other["tasks"]["names"]["tags"]
                confidences = [of["tasks"]["names"]["confidences"] for of in (row, other)]
                assert np.allclose(*confidences, atol=1e-4)
            if "mood" in names:
                assert row["tasks"]["mood"]["label"] == other["tasks"]["mood"]["label"]


def test_more_pairs_than_a_pass_takes(runtime: Runtime) -> None:
    texts = [f"the phone {'car ' * (k % 7)}" for k in range(2 * PAIRS + 3)]
    ids, words = runtime.tokenizer.ids(texts), runtime.tokenizer.word_tokens(texts)
    rows = list(range(len(texts)))
    logits, vectors, of_words = runtime.compute_words(
        ids, rows, [NAMES] * len(rows), words=dict(enumerate(words)), embed_row=[1]
    )
    assert len(logits) == len(rows) and len(vectors) == 1 and list(of_words) == rows
    expected = runtime.logits(texts, "names")
    for row in rows:
        np.testing.assert_allclose(of_words[row][:, : expected.shape[2]], expected[row], atol=1e-5)


def test_token_ids_do_not_show_words(runtime: Runtime) -> None:
    ids = Tensor("input_ids", "INT64", (1, 3), np.array([[2, 5, 3]]))
    mask = Tensor("attention_mask", "INT64", (1, 3), np.ones((1, 3), dtype=np.int64))

    def ask(tasks: str) -> Question:
        return question(runtime, Limits(), inputs=[ids, mask], outputs=[], parameters={"tasks": tasks}, request_id="x")

    with pytest.raises(Refusal, match="task 'names' tags words, which token ids do not show"):
        ask("names,mood")
    assert ask("mood").ids == [[2, 5, 3]]


def test_triton_is_refused_with_the_reason(tagged: Tagged, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="task 'names' tags words, whose logits need an input with a default"):
        write_triton(Bundle.open(tagged.bundle), tmp_path / "triton")


@pytest.mark.e2e
def test_the_server_answers_logs_and_the_monitor_reads_the_same(
    tagged: Tagged, runtime: Runtime, tmp_path: Path
) -> None:
    expected = runtime.predict(TEXTS)
    log = tmp_path / "log"
    with serving(tmp_path / "server", "--bundle", str(tagged.bundle), "--log", str(log)) as server:
        plain = server.predict(*TEXTS)["predictions"]
        body = {
            "inputs": [{"name": "text", "datatype": "BYTES", "shape": [3], "data": TEXTS}],
            "outputs": [{"name": "names.tags"}],
        }
        status, answer = server.post("/v2/models/tiny/infer", body)
        _, metadata = server.get("/v2/models/tiny")
        refused, said = server.post("/v2/feedback", {"request_id": "x", "row": 0, "task": "names", "label": ["O"]})
        counted = sum(
            server.metric(f'mtlops_predictions_total{{label="{tag}",task="names"}}') for tag in runtime.tasks[5].classes
        )
        assert server.stop() == 0
    described = [row["tasks"]["names"] for row in describe(runtime.tasks, expected, TEXTS)]
    (tensor,) = answer["outputs"]
    assert status == 200 and (tensor["datatype"], tensor["shape"]) == ("BYTES", [3])
    for found in ([row["tasks"]["names"] for row in plain], [json.loads(text) for text in tensor["data"]]):
        assert [(one["words"], one["tags"], one["spans"]) for one in found] == [
            (one["words"], one["tags"], one["spans"]) for one in described
        ]
    assert {"name": "names.tags", "datatype": "BYTES", "shape": [-1]} in metadata["outputs"]
    assert refused == 400 and "tags words" in said["error"]
    judged = sum(tag is not None for one in described for tag in one["tags"])
    assert counted == 2 * judged

    files = sorted((log / "predictions").rglob("*.parquet"))
    table = pa.concat_tables([pq.ParquetFile(path).read() for path in files])
    rows = [row for row in table.to_pylist() if row["task"] == "names"][:3]
    assert [row["label"] for row in rows] == [[tag for tag in one["tags"] if tag] for one in described]
    assert all(sum(row["probabilities"]) == pytest.approx(1.0) for row in rows)
    sample = parse_predictions(table, runtime.tasks).samples["names"]
    assert sample.outputs is not None
    first = prediction_columns(runtime.tasks[5], sample.outputs.part(slice(0, 3)))
    known = prediction_columns(runtime.tasks[5], expected["names"])
    assert first.keys() == known.keys()
    for name in known:
        np.testing.assert_allclose(first[name].values, known[name].values, atol=1e-5, err_msg=name)


@pytest.mark.e2e
def test_the_monitor_windows_tags_and_finds_that_their_shares_moved(tagged: Tagged, tmp_path: Path) -> None:
    """Files of the log whose longest texts differ go into one window; its estimate is the tags' mean confidence."""
    texts = read_split(tagged.root / "data/prepared", "names", "test")["text"].to_pylist()
    log, drift = tmp_path / "log", Drift(window_rows=200, min_rows=20)
    options = ("--bundle", str(tagged.bundle), "--log", str(log), "--max-rows", "64", "--log-flush-rows", "64")
    with serving(tmp_path / "server", *options) as server:
        for number in range(12):
            short = number < 6
            some = [text for text in texts if (text.count(" ") < 8) == short]
            batch = (some * 20)[:64] if short else ["phone car phone car"] * 64
            server.predict(*batch, tasks=["names"])
            time.sleep(0.05)
        assert server.stop() == 0
    watch = Watch(drift, References.of_bundle(tagged.bundle), State(":memory:"))
    reader = PredictionLog(str(log))
    watch.catch_up(reader, listed=reader.files())
    assert watch.state.counts()["rows"] == 12 * 64
    windows = watch.state.windows("names", source="traffic", limit=10)
    assert len(windows) >= 3
    first = windows[-1]["metrics"]["estimated"]["accuracy"]
    assert 0.3 < first <= 1.0
    found = watch.state.rows("SELECT level FROM detectors WHERE name = 'names' AND kind = 'prediction'")
    assert [row["level"] for row in found] != ["ok"]


def test_a_row_of_the_log_that_lacks_something_is_a_fault(runtime: Runtime, tmp_path: Path) -> None:
    from mtlops.prediction_log import PREDICTION_SCHEMA

    start = {"time": 0, "request_id": "a", "task": "names", "bundle_id": "b", "role": "champion"}
    answers = [(["O", "B-thing"], 0.5), (["O", "new"], 0.5), (["O"], None), (None, 0.5)]
    entries = [{**start, "row": i, "label": tags, "value": sure} for i, (tags, sure) in enumerate(answers)]
    table = pa.Table.from_pylist(entries, schema=PREDICTION_SCHEMA)
    parsed = parse_predictions(table, runtime.tasks)
    outputs = parsed.samples["names"].outputs
    assert isinstance(outputs, Outputs) and outputs.labels.tolist() == [[0, 1]]
    assert parsed.faults["names"]["a label that the task does not have"] == 2
    assert parsed.faults["names"]["no confidence"] == 1
