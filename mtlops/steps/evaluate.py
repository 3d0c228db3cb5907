"""evaluate: a trained model and the test rows in, measurements and a verdict out.

The verdict rests on what evaluation.json says and on nothing else (`evaluation.gate.decide`), so it can be made again
from that file.
"""

import hashlib
import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mtlops.data.prepared import SPLITS, read_split
from mtlops.decoding import Outputs, decode
from mtlops.errors import ArtefactError, DataError
from mtlops.evaluation import baselines
from mtlops.evaluation.gate import decide
from mtlops.evaluation.scores import Scores, mean_primary, score
from mtlops.files import write_json
from mtlops.model.predictor import Predictor
from mtlops.params import Gates, Params
from mtlops.report import write_report
from mtlops.serving.champion import Champion, open_champion
from mtlops.steps.baselines import baseline_logits
from mtlops.steps.measurements import measure_affinity, measure_closer
from mtlops.steps.profiles import Profiler, measure_drift
from mtlops.steps.tradeoff import measure_window, model_answers, prove_untouched
from mtlops.steps.twins import train_twins
from mtlops.steps.updates import Update, find_update
from mtlops.tasks import Task

SCHEMA_VERSION = 1

UPDATE_BASELINES = ("majority", "frozen")
"""Baselines of an update, beside the one that `gates.baseline` names: what it has to beat is its parent. They learn
from the rows that were known before its window, as its parent's did."""

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


@dataclass(frozen=True)
class _Parent:
    """What an update is compared with in place of the registry's champion.

    Attributes:
        champion: the bundle that is updated.
        model: its trained model, which answers in its place.
        windows: of the tasks that are updated, the newest. Their other rows are the champion's own reference: there is
            no drift between the two to measure.
        split: from a task and a split to the rows that it knew.
    """

    champion: Champion
    model: Predictor
    windows: Mapping[str, str | None]
    split: Callable[[str, str], pa.Table]


@dataclass(frozen=True)
class _Opponents:
    """Answers of others to the test rows of each task that they do, and what baselines there are.

    Attributes:
        champion: its answers, by task.
        twins: theirs.
        baselines: names of those that answer, too.
        split: from a task and a split to the rows that these learn from; None: those that the model has, too.
    """

    champion: Mapping[str, Outputs]
    twins: Mapping[str, Outputs]
    baselines: Collection[str]
    split: Callable[[str, str], pa.Table] | None


def evaluate(
    params: Params,
    *,
    prepared: Path = Path("data/prepared"),
    encoder: Path = Path("data/encoder"),
    trained: Path = Path("models/trained"),
    cache: Path = Path("data/cache"),
    registry: str = "",
    report: Path = Path("reports/evaluation.json"),
    decision: Path = Path("reports/decision.json"),
) -> Evaluated:
    """Measures every task on its test rows, beside three baselines and the champion, and writes report and decision.

    Args:
        params: of the suite.
        prepared: folder of prepared splits.
        encoder: folder of the pretrained encoder.
        trained: folder of the trained model.
        cache: folder of the trunk cache, of fetched bundles and of twins.
        registry: URL of the registry whose champion answers the same rows; empty: there is no champion.
        report: where evaluation.json goes.
        decision: where decision.json goes.

    Raises:
        ArtefactError: an earlier step's file or the champion is missing or damaged, or the model answers not-a-number.
        DataError: a task has no test rows, or a label outside its classes.
        PlatformError: a report cannot be written, or the registry not be reached.
    """
    predictor = Predictor(trained, encoder, cache=cache)
    update = find_update(trained, prepared=prepared, registry=registry, cache=cache)
    if update is None:
        content = _measure(params, predictor, prepared=prepared, encoder=encoder, cache=cache, registry=registry)
    else:
        content = _measure_update(
            params, predictor, update, trained=trained, prepared=prepared, encoder=encoder, cache=cache
        )
    decided = decide(content)
    write_report(report, content)
    write_json(report.with_name("scores.json"), _score_rows(content["tasks"]))
    write_report(decision, {"schema_version": SCHEMA_VERSION, **asdict(decided)})
    logger.info("verdict=%s champion=%s report=%s", decided.verdict, decided.champion, report)
    return Evaluated(
        verdict=decided.verdict,
        tasks={name: task.verdict for name, task in decided.tasks.items()},
        metrics={f"{name}/{t['primary']}": t["metrics"][t["primary"]]["value"] for name, t in content["tasks"].items()},
        report=str(report),
        decision=str(decision),
    )


def _measure(
    params: Params,
    predictor: Predictor,
    *,
    prepared: Path,
    encoder: Path,
    cache: Path,
    registry: str = "",
    parent: _Parent | None = None,
) -> dict[str, Any]:
    """The content of evaluation.json for the tasks of `params`; with `parent`, of an update of that."""
    tests = {task.name: read_split(prepared, task.name, "test") for task in params.tasks()}
    _fill(predictor, tests)
    names: Collection[str] = baselines.NAMES
    split: Callable[[str, str], pa.Table] | None = None
    if parent is not None:
        champion: Champion | None = parent.champion
        answers = model_answers(parent.model, tests)
        names, split = {*UPDATE_BASELINES, params.gates.baseline}, parent.split
    else:
        champion = open_champion(registry, cache=cache, threads=params.train.threads) if registry else None
        answers = _champion_answers(params, champion, tests)
    twins = train_twins(params, predictor.model, prepared=prepared, encoder=encoder, cache=cache)
    opponents = _Opponents(answers, twins.answers(tests), names, split)
    scores = {task.name: _scores(task, prepared, predictor, params.gates, opponents) for task in params.tasks()}
    drift: Mapping[str, Any] = {}
    if watched := [name for name in params.suite.tasks if parent is None or parent.windows[name] is None]:
        profiler = Profiler.open(params.only(watched), prepared=prepared, predictor=predictor)
        drift = measure_drift(profiler, champion=champion, answers=opponents.champion)
    closer = measure_closer(
        params, prepared=prepared, predictor=predictor, tests=tests, champion=opponents.champion
    )  # fmt: skip
    return {
        "schema_version": SCHEMA_VERSION,
        "bootstrap": params.gates.model_dump(include={"confidence", "resamples", "seed"}),
        "gate": _gate(params),
        "champion": _champion_facts(params, champion),
        "twins": {"mode": params.gates.twins, "said": twins.said},
        "affinity": _rounded(measure_affinity(predictor, tests)),
        "mean": _rounded(mean_primary(scores, weights={t: spec.weight for t, spec in params.suite.tasks.items()})),
        "tasks": {
            task.name: {
                **_to_json(task, scores[task.name], champion),
                "comparison": champion.comparison(task) if champion else "new",
                "rows_sha256": _rows_sha256(tests[task.name]),
                **_rounded(closer[task.name]),
                "drift": _rounded(drift.get(task.name)),
            }
            for task in params.tasks()
        },
    }


def _fill(predictor: Predictor, tests: Mapping[str, pa.Table]) -> None:
    """Puts the test rows of all tasks into the trunk cache in one go, which computes fewer half-empty batches."""
    columns = [table.select(["row_id", "text"]).to_pydict() for table in tests.values()]
    texts = {row_id: text for of in columns for row_id, text in zip(of["row_id"], of["text"], strict=True)}
    predictor.backbone.fill(list(texts), list(texts.values()))


def _measure_update(
    params: Params, predictor: Predictor, update: Update, *, trained: Path, prepared: Path, encoder: Path, cache: Path
) -> dict[str, Any]:
    """The content of evaluation.json for an update: its own tasks on old and new rows, and proof about the others."""
    model = predictor.beside(update.parent_model)
    parent = _Parent(Champion(update.parent), model, update.lineage.retrained, partial(_known_split, prepared, update))
    # Nothing is decided by perturbed rows, and each costs five passes: an update has none.
    suite = params.only(update.retrained)
    suite = suite.model_copy(update={"gates": suite.gates.model_copy(update={"robustness_rows": 0})})
    content = _measure(suite, predictor, prepared=update.mixed.known, encoder=encoder, cache=cache, parent=parent)
    content["champion"] = {"bundle_id": update.parent.id, "url": "", "removed": []}
    for task in suite.tasks():
        if update.lineage.retrained[task.name] is not None:
            found = measure_window(task, update, ours=predictor, parent=model, gates=params.gates)
            content["tasks"][task.name]["window"] = _rounded(found)
    content["retrain"] = {
        **asdict(update.lineage),
        "untouched": prove_untouched(update, trained=trained, prepared=prepared, ours=predictor, parent=model),
    }
    return content


def _known_split(prepared: Path, update: Update, task: str, split: str) -> pa.Table:
    """The rows of a split that there were before the update's window."""
    return read_split(prepared, task, split, without=update.lineage.retrained[task])


def _champion_answers(params: Params, champion: Champion | None, tests: Mapping[str, pa.Table]) -> dict[str, Outputs]:
    """The champion's answers to the test rows of each task that it does in the same way."""
    if champion is None or params.gates.mode == "disabled":
        return {}
    compared = [task.name for task in params.tasks() if champion.comparison(task) == "compared"]
    started = time.monotonic()
    answers = champion.answers({name: tests[name]["text"].to_pylist() for name in compared})
    logger.info("champion=%s tasks=%d seconds=%.1f", champion.bundle.id, len(compared), time.monotonic() - started)
    return answers


def _champion_facts(params: Params, champion: Champion | None) -> dict[str, Any] | None:
    if champion is None:
        return None
    return {"bundle_id": champion.bundle.id, "url": champion.url, "removed": champion.removed(params.tasks())}


def _gate(params: Params) -> dict[str, Any]:
    """The settings that the verdict rests on, and how often it may be wrong with them."""
    gates = params.gates
    settings = {
        "mode", "baseline", "promote_when", "alpha", "max_drop", "allow_removed", "slice_rows", "behaviour_pass_rate",
    }  # fmt: skip
    noise = {task: gates.seed_noise_of(task) for task in params.suite.tasks}
    stated = {
        "promote_without_cause": gates.alpha,
        "reject_without_cause": gates.alpha,
        "promote_in_spite_of_max_drop": None if gates.max_drop is None else gates.alpha,
    }
    return {**gates.model_dump(include=settings), "seed_noise": noise, "stated_error_rates": stated}


def _rows_sha256(table: pa.Table) -> str:
    """Names the test rows: which they are, in which order, what their labels and groups are."""
    columns = [table[name].to_pylist() for name in ("row_id", "label", "group")]
    rows = json.dumps(list(zip(*columns, strict=True)), ensure_ascii=False, default=str)
    return hashlib.sha256(rows.encode()).hexdigest()


def _scores(task: Task, prepared: Path, predictor: Predictor, gates: Gates, opponents: _Opponents) -> Scores:
    """What the test rows say about a task."""
    started = time.monotonic()
    tables = {split: read_split(prepared, task.name, split) for split in SPLITS}
    counts = {split: table.num_rows for split, table in tables.items()}
    if empty := [split for split, rows in counts.items() if rows == 0]:
        raise DataError(f"{prepared}: task {task.name}: no rows in {', '.join(empty)}. Give it more labelled rows.")
    model = decode(task, _model_logits(task, tables["test"], predictor), predictor.model.calibrations[task.name])
    known = {split: opponents.split(task.name, split) for split in ("train", "valid")} if opponents.split else {}
    logits = baseline_logits(task, {**tables, **known}, predictor, opponents.baselines)
    outputs = {name: decode(task, values) for name, values in logits.items()}
    found = score(
        task, task.encode(tables["test"]["label"].to_pylist()), groups=tables["test"]["group"].to_pylist(),
        model=model, baselines=outputs, rows=counts, gates=gates,
        champion=opponents.champion.get(task.name), twin=opponents.twins.get(task.name),
    )  # fmt: skip
    value, seconds = found.metrics[found.primary].value, time.monotonic() - started
    logger.info("task=%s test_rows=%d %s=%.3f seconds=%.1f", task.name, counts["test"], found.primary, value, seconds)
    return found


def _model_logits(task: Task, table: pa.Table, predictor: Predictor) -> baselines.Logits:
    logits = predictor.logits(table["text"].to_pylist(), table["row_id"].to_pylist(), task.name)
    seen = predictor.backbone.tokenizer.word_tokens(table["text"].to_pylist()) >= 0 if task.per_word else True
    is_wrong = ~np.isfinite(logits).all(axis=-1) & seen
    if wrong := int(is_wrong.reshape(len(logits), -1).any(axis=1).sum()):
        raise ArtefactError(
            f"task {task.name}: the model answers not-a-number on {wrong} of {len(logits)} test rows. Run "
            f"`mtlops train` again with a lower train.learning_rate."
        )
    return logits


def _to_json(task: Task, scores: Scores, champion: Champion | None) -> dict[str, Any]:
    """Returns a task's part of evaluation.json, in the order in which people read it."""
    content = asdict(scores)
    content["classes"] = content["classes"] or None
    content["confusion"] = (
        None if scores.confusion is None else {"classes": list(task.classes), "counts": scores.confusion.tolist()}
    )
    content["calibration"] = {"bins": content["calibration"]}
    if champion and content["champion"]:
        content["champion"] = {"bundle_id": champion.bundle.id, **content["champion"]}
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
    """The primary metric of every task, champion and baseline as rows: the shape that `dvc plots` draws."""
    rows = []
    for name, found in tasks.items():
        systems = {"model": found["metrics"], **found["baselines"]}
        if found["champion"]:
            systems["champion"] = found["champion"]["metrics"]
        metric = found["primary"]
        rows += [{"task": name, "system": s, "metric": metric, **metrics[metric]} for s, metrics in systems.items()]
    return rows
