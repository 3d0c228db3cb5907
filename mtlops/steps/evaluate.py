"""evaluate: a trained model and the test rows in, measurements and a verdict out."""

import logging
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mtlops.data.prepared import SPLITS, read_split
from mtlops.decoding import decode
from mtlops.errors import ArtefactError, DataError
from mtlops.evaluation import baselines
from mtlops.evaluation.gate import decide, judge
from mtlops.evaluation.scores import Scores, mean_primary, score
from mtlops.files import write_json
from mtlops.model.predictor import Predictor
from mtlops.params import Gates, Params
from mtlops.report import write_report
from mtlops.tasks import Task

SCHEMA_VERSION = 1

DIGITS = 6
"""Decimals of the numbers in evaluation.json: the last bits differ between machines, these do not."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Evaluated:
    """What `evaluate` found.

    Attributes:
        verdict: PROMOTE, HOLD or REJECT: the worst of the tasks.
        tasks: verdict of each task.
        metrics: primary metric of each task as `task/metric`.
        report: the file with all numbers.
        decision: the file with the verdicts and their reasons.
    """

    verdict: str
    tasks: Mapping[str, str]
    metrics: Mapping[str, float]
    report: str
    decision: str


def evaluate(
    params: Params,
    *,
    prepared: Path = Path("data/prepared"),
    encoder: Path = Path("data/encoder"),
    trained: Path = Path("models/trained"),
    cache: Path = Path("data/cache"),
    report: Path = Path("reports/evaluation.json"),
    decision: Path = Path("reports/decision.json"),
) -> Evaluated:
    """Measures every task on its test rows, beside three baselines, and writes the report and the decision.

    Raises:
        ArtefactError: an earlier step's file is missing or damaged, or the model answers not-a-number.
        DataError: a task has no test rows, or a label outside its classes.
        PlatformError: a report cannot be written.
    """
    predictor = Predictor(trained, encoder, cache=cache)
    scores = {task.name: _scores(task, prepared, predictor, params.gates) for task in params.tasks()}
    verdicts = {name: judge(name, found, baseline=params.gates.baseline) for name, found in scores.items()}
    decided = decide(verdicts)
    gates = params.gates
    content = {
        "schema_version": SCHEMA_VERSION,
        "bootstrap": {"confidence": gates.confidence, "resamples": gates.resamples, "seed": gates.seed},
        "mean": _rounded(mean_primary(scores, weights={t: spec.weight for t, spec in params.suite.tasks.items()})),
        "tasks": {task.name: _to_json(task, scores[task.name]) for task in params.tasks()},
    }
    write_report(report, content)
    write_json(report.with_name("scores.json"), _score_rows(content["tasks"]))
    write_report(decision, {"schema_version": SCHEMA_VERSION, **asdict(decided)})
    logger.info("verdict=%s report=%s", decided.verdict, report)
    return Evaluated(
        verdict=decided.verdict,
        tasks={name: task.verdict for name, task in verdicts.items()},
        metrics={f"{name}/{s.primary}": s.metrics[s.primary].value for name, s in scores.items()},
        report=str(report),
        decision=str(decision),
    )


def _scores(task: Task, prepared: Path, predictor: Predictor, gates: Gates) -> Scores:
    started = time.monotonic()
    tables = {split: read_split(prepared, task.name, split) for split in SPLITS}
    counts = {split: table.num_rows for split, table in tables.items()}
    if empty := [split for split, rows in counts.items() if rows == 0]:
        raise DataError(f"{prepared}: task {task.name}: no rows in {', '.join(empty)}. Give it more labelled rows.")
    tables["train"] = tables["train"].take(baselines.training_rows(counts["train"]))
    train, valid, test = (_rows(task, tables[split], predictor) for split in SPLITS)
    logits = {
        "model": _model_logits(task, tables["test"], predictor),
        "majority": baselines.majority(task, train, num_rows=len(test.texts)),
        "tfidf": baselines.tfidf(task, train, valid=valid, test=test),
        "frozen": baselines.frozen(task, train, valid=valid, test=test),
    }
    outputs = {name: decode(task, values) for name, values in logits.items()}
    found = score(
        task, test.labels, groups=tables["test"]["group"].to_pylist(), model=outputs.pop("model"), baselines=outputs,
        rows=counts, gates=gates,
    )  # fmt: skip
    value, seconds = found.metrics[found.primary].value, time.monotonic() - started
    logger.info("task=%s test_rows=%d %s=%.3f seconds=%.1f", task.name, counts["test"], found.primary, value, seconds)
    return found


def _rows(task: Task, table: pa.Table, predictor: Predictor) -> baselines.Rows:
    texts = table["text"].to_pylist()
    vectors = predictor.pooled(texts, table["row_id"].to_pylist())
    return baselines.Rows(texts, task.encode(table["label"].to_pylist()), vectors)


def _model_logits(task: Task, table: pa.Table, predictor: Predictor) -> baselines.Logits:
    logits = predictor.logits(table["text"].to_pylist(), table["row_id"].to_pylist(), task.name)
    if wrong := int((~np.isfinite(logits)).any(axis=1).sum()):
        raise ArtefactError(
            f"task {task.name}: the model answers not-a-number on {wrong} of {len(logits)} test rows. Run "
            f"`mtlops train` again with a lower train.learning_rate."
        )
    return logits


def _to_json(task: Task, scores: Scores) -> dict[str, Any]:
    """Returns a task's part of evaluation.json, in the order in which people read it."""
    content = asdict(scores)
    content["classes"] = content["classes"] or None
    content["confusion"] = (
        None if scores.confusion is None else {"classes": list(task.classes), "counts": scores.confusion.tolist()}
    )
    content["calibration"] = {"bins": content["calibration"]}
    rounded: dict[str, Any] = _rounded(content)
    return rounded


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS) + 0.0
    if isinstance(value, dict):
        return {key: _rounded(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(part) for part in value]
    return value


def _score_rows(tasks: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The primary metric of every task and baseline as rows: the shape that `dvc plots` draws."""
    return [
        {"task": name, "system": system, "metric": found["primary"], **metrics[found["primary"]]}
        for name, found in tasks.items()
        for system, metrics in {"model": found["metrics"], **found["baselines"]}.items()
    ]
