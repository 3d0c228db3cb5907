"""export: a trained and judged model in, a bundle out."""

import logging
import os
import shutil
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mtlops import __version__
from mtlops.bundle import Bundle, code_digest, write_manifest
from mtlops.data.prepared import read_split
from mtlops.data.tokenisation import Tokenizer
from mtlops.errors import ArtefactError
from mtlops.export.card import write_card
from mtlops.export.graph import PairsGraph, WordsGraph, replace_bank, structure, write_onnx
from mtlops.export.limits import check_limits
from mtlops.export.parity import check, measure
from mtlops.export.rows import RowsGraph
from mtlops.files import atomic_folder, link_or_copy, read_json, sha256_file, write_json, write_text
from mtlops.model.encoders import Trunk, load_trunk, save_trunk
from mtlops.model.multitask import PairModel
from mtlops.model.predictor import Predictor
from mtlops.model.sharing.anatomy import make
from mtlops.model.trained import TASK_FILES, TrainedModel, load_model, save_tensors
from mtlops.params import Params
from mtlops.report import write_report
from mtlops.serving.passes import golden_logits, open_session
from mtlops.serving.runtime import Runtime
from mtlops.steps.profiles import REFERENCE, Profiler, write_references
from mtlops.steps.taking_over import (
    Golden,
    check_taken_over,
    golden_texts,
    keep_golden,
    write_update_references,
)
from mtlops.steps.updates import Update, find_update
from mtlops.steps.variants import VariantMaker, Variants

logger = logging.getLogger(__name__)

_TRUNK_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_LATENCY_RUNS = 15
_UPDATE_LATENCY_RUNS = 3


@dataclass(frozen=True)
class Exported:
    """What the step made.

    Attributes:
        path: folder of the bundle.
        bundle_id: its id.
        max_error: largest difference of a logit between ONNX Runtime and PyTorch.
    """

    path: str
    bundle_id: str
    max_error: float


def export(
    params: Params,
    *,
    prepared: Path = Path("data/prepared"),
    encoder: Path = Path("data/encoder"),
    trained: Path = Path("models/trained"),
    cache: Path = Path("data/cache"),
    evaluation: Path = Path("reports/evaluation.json"),
    decision: Path = Path("reports/decision.json"),
    out: Path = Path("models/candidate"),
    report: Path = Path("reports/export.json"),
    registry: str = "",
) -> Exported:
    """Writes the bundle and the export report; nothing is written unless the graph agrees with PyTorch.

    Of an update only what changed is made: every other file is its parent's, which `registry` holds if the cache does
    not.

    Raises:
        ArtefactError: an input is missing or damaged, the graph does not agree with PyTorch, or what an update was not
            to change is not its parent's to the bit.
        PlatformError: something cannot be written.
    """
    model = load_model(trained)
    judged = read_json(evaluation, made_by="mtlops evaluate")
    decided = read_json(decision, made_by="mtlops evaluate")
    update = find_update(trained, prepared=prepared, registry=registry, cache=cache)
    _check_tasks_agree(update.retrained if update else [task.name for task in model.tasks], judged, evaluation)
    predictor = Predictor(trained, encoder, cache=cache)
    graph = _graph(params, model, predictor.backbone.cache.trunk)
    with atomic_folder(out) as folder:
        num_nodes = _write_graph(graph, folder, params, update)
        session = open_session(folder / "model.onnx", "CPUExecutionProvider", threads=0)
        parities = measure(graph, session, num_tasks=len(model.tasks))
        max_error = check(parities, tolerance=params.export.tolerance)
        logger.info("parity max_error=%.1e at %d shapes", max_error, len(parities))
        _copy_parts(folder, encoder=encoder, trained=trained, model=model, parent=update.parent if update else None)
        _write_shared(folder / "trunk", encoder, model)
        tokenizer = Tokenizer(encoder / "tokenizer.json", max_tokens=model.max_tokens)
        texts = _golden_texts(params, prepared, model) if update is None else golden_texts(update)
        golden = golden_logits(session, tokenizer, model.tasks, texts)
        if update is not None:
            golden = keep_golden(update, golden, tokenizer)
        maker = VariantMaker(
            params, folder, predictor=predictor, tokenizer=tokenizer, prepared=prepared, judged=judged, update=update
        )
        variants = maker.make(texts)
        _write_golden(folder / "golden.json", texts, golden, variants)
        if update is None:
            write_references(Profiler.open(params, prepared=prepared, predictor=predictor), folder / REFERENCE)
        else:
            write_update_references(params, update, predictor, folder / REFERENCE)
        parent = update.parent.manifest if update else None
        card = write_card(
            params, evaluation=judged, decision=decided, encoder=model.encoder, parent=parent, variants=variants.facts
        )
        write_text(folder / "card.md", card)
        facts = _manifest(folder, params, prepared, model, judged, decided, update)
        more = {"variants": variants.facts} if variants.facts else {}
        write_manifest(folder, {**facts, **_graph_facts(folder, params, predictor), **more})
        bundle = Bundle.open(folder)
        if update is not None:
            check_taken_over(update, bundle)
        runtime = Runtime(bundle)
        latencies = partial(_latencies, texts=texts, runs=_LATENCY_RUNS if update is None else _UPDATE_LATENCY_RUNS)
        payload = _report(folder, runtime, params, parities=[asdict(p) for p in parities], latencies=latencies)
        payload["variants"] = _measured_variants(runtime.bundle, variants, latencies)
    payload |= {
        "nodes": num_nodes,
        "bundle": {"path": out.as_posix(), "id": runtime.bundle_id, "bytes": payload["bytes"]},
    }
    payload["limits"] = asdict(
        check_limits(
            params.gates, latency_ms=payload["latency_ms"]["batch_1"], num_bytes=payload["bytes"],
            max_error=max_error, tolerance=params.export.tolerance, golden_rows=len(texts),
        )
    )  # fmt: skip
    write_report(report, payload)
    for reason in payload["limits"]["reasons"] if not payload["limits"]["passed"] else ():
        logger.warning("limit broken, promote will refuse this bundle: %s", reason)
    return Exported(path=out.as_posix(), bundle_id=runtime.bundle_id, max_error=max_error)


def _write_golden(path: Path, texts: list[str], golden: Golden, variants: Variants) -> None:
    rows: list[dict[str, Any]] = [{"text": text, "logits": logits} for text, logits in zip(texts, golden, strict=True)]
    for number, row in enumerate(rows if variants.golden else ()):
        row["variants"] = {name: found[number] for name, found in variants.golden.items()}
    write_json(path, {"schema_version": 1, "rows": rows})


def _check_tasks_agree(trained: list[str], judged: Mapping[str, Any], evaluation: Path) -> None:
    if trained != list(judged["tasks"]):
        raise ArtefactError(
            f"{evaluation}: judges tasks {list(judged['tasks'])}, but trained were {trained}. Run `mtlops evaluate` "
            f"again."
        )


def _write_graph(graph: PairsGraph | RowsGraph, folder: Path, params: Params, update: Update | None) -> int:
    """Writes the ONNX graph and its external data; returns its number of nodes."""
    path = folder / "model.onnx"
    if update is None:
        logger.info("writing the ONNX graph")
        return write_onnx(graph, path, opset=params.export.opset)
    weights = path.with_name("model.onnx.data")
    shutil.copyfile(update.parent.folder / weights.name, weights)
    assert isinstance(graph, PairsGraph)
    replaced = replace_bank(graph, path, like=update.parent.folder / "model.onnx")
    if replaced is not None:
        return replaced
    logger.info("writing the ONNX graph: the parent's has another bank")
    return write_onnx(graph, path, opset=params.export.opset, weights=weights)


def _copy_parts(folder: Path, *, encoder: Path, trained: Path, model: TrainedModel, parent: Bundle | None) -> None:
    """Puts tokenizer, trunk and tasks into a bundle; the trunk of an update is its parent's files themselves."""
    trunk, put = (encoder, shutil.copyfile) if parent is None else (parent.folder / "trunk", link_or_copy)
    (folder / "trunk").mkdir()
    for name in _TRUNK_FILES:
        put(trunk / name, folder / "trunk" / name)
    for task in model.tasks:
        (folder / "tasks" / task.name).mkdir(parents=True)
        for name in TASK_FILES:
            shutil.copyfile(trained / "tasks" / task.name / name, folder / "tasks" / task.name / name)


def _graph(params: Params, model: TrainedModel, trunk: Trunk) -> PairsGraph | RowsGraph:
    tensors = [model.tensors[task.name] for task in model.tasks]
    if model.model.sharing == "adapters":
        kind = WordsGraph if any(task.per_word for task in model.tasks) else PairsGraph
        return kind(trunk, PairModel(trunk, model.model), tasks=tensors, embedding=params.drift.embedding)
    return RowsGraph(make(trunk, model.model, [task.name for task in model.tasks]), model.shared, tensors)


def _write_shared(folder: Path, encoder: Path, model: TrainedModel) -> None:
    """Puts what the tasks trained together into the bundle's trunk: into its weights, or beside them as columns.

    In full: what was pruned is zero there, while the graph does without.
    """
    if not model.shared:
        return
    if model.model.sharing == "soft":
        save_tensors(folder / "columns.safetensors", model.shared)
    else:
        trunk = load_trunk(encoder)
        trunk.load_state_dict(dict(model.shared), strict=False)
        save_trunk(trunk, folder / "model.safetensors")


def _trunk_facts(folder: Path, model: TrainedModel) -> dict[str, Any]:
    """The encoder's facts; with weights of its own, the trunk's hash is theirs and `base_sha256` is the encoder's."""
    facts, trained = dict(model.encoder), sha256_file(folder / "trunk/model.safetensors")
    if trained == facts["trunk_sha256"]:
        return facts
    return {**facts, "trunk_sha256": trained, "base_sha256": facts["trunk_sha256"]}


def _golden_texts(params: Params, prepared: Path, model: TrainedModel) -> list[str]:
    """The first validation rows of each task, by row id; every text once."""
    texts: list[str] = []
    for task in model.tasks:
        texts += read_split(prepared, task.name, "valid")["text"].to_pylist()[: params.export.golden_rows]
    return list(dict.fromkeys(texts))


def _manifest(
    folder: Path,
    params: Params,
    prepared: Path,
    model: TrainedModel,
    judged: Mapping[str, Any],
    decided: Mapping[str, Any],
    update: Update | None,
) -> dict[str, Any]:
    data = read_json(prepared / "manifest.json", made_by="mtlops prepare")
    return {
        "suite": params.suite.name,
        "created": _created(data["data_as_of"]),
        "code": {"version": __version__, "digest": code_digest()},
        "data": {
            "manifest_sha256": sha256_file(prepared / "manifest.json"),
            "fingerprint": data["fingerprint"],
            "sources": {name: source["sha256"] for name, source in data["sources"].items()},
        },
        "parent": update.parent.id if update else None,
        **({"lineage": asdict(update.lineage)} if update else {}),
        "sharing": model.model.sharing,
        "trunk_is_frozen": not model.shared,
        "trunk": _trunk_facts(folder, model),
        "max_tokens": model.max_tokens,
        "verdict": decided["verdict"],
        "tasks": {
            task.name: {
                "position": position,
                **task.facts(),
                "columns": [0, task.num_outputs],
                "pooling": model.model.pooling,
                **model.calibrations[task.name].facts(task),
                **_measured(task.name, judged, update),
                "verdict": decided["tasks"][task.name]["verdict"],
            }
            for position, task in enumerate(model.tasks)
        },
        "params": _params_facts(params, data, update),
    }


def _measured(task: str, judged: Mapping[str, Any], update: Update | None) -> dict[str, Any]:
    """A task's primary metric and its metrics; those of a task that was taken over are its parent's."""
    is_taken = update is not None and task not in judged["tasks"]
    facts = update.parent.manifest["tasks"][task] if update is not None and is_taken else judged["tasks"][task]
    return {"primary": facts["primary"], "metrics": facts["metrics"]}


def _params_facts(params: Params, data: Mapping[str, Any], update: Update | None) -> dict[str, Any]:
    """The params, as if params.yaml had asked for what the command line did: windows, and what was retrained."""
    facts = params.model_dump(mode="json")
    facts["data"]["labelled"] = list(data.get("labelled", {}))
    if update is not None:
        done = update.lineage
        facts["retrain"] |= {
            "tasks": list(done.retrained), "parent": done.parent, "mix": done.mix, "start": done.start,
            "blend": done.blend, "fewest_old": done.fewest_old,
        }  # fmt: skip
    return facts


def _graph_facts(folder: Path, params: Params, predictor: Predictor) -> dict[str, Any]:
    layer = predictor.embedding_layer(params.drift.embedding)
    return {
        "graph": {"structure": structure(folder / "model.onnx")},
        "embedding": {
            "width": predictor.backbone.above.hidden,
            "layer": layer,
            "digest": predictor.embedding_digest(layer),
        },
    }


def _created(data_as_of: str) -> str:
    """A time that is the same on every run: SOURCE_DATE_EPOCH where it is set, else the newest date of the data.

    Wall-clock time would make every bundle differ; the registry records when a bundle was published.
    Source: https://reproducible-builds.org/specs/source-date-epoch/
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(int(epoch))) if epoch else data_as_of


def _report(
    folder: Path,
    runtime: Runtime,
    params: Params,
    *,
    parities: list[dict[str, Any]],
    latencies: Callable[[Runtime], dict[str, float]],
) -> dict[str, Any]:
    files = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    return {
        "schema_version": 1,
        "parity": {
            "max_error": max(p["max_error"] for p in parities),
            "tolerance": params.export.tolerance,
            "shapes": parities,
        },
        "opset": params.export.opset,
        "files": files,
        "bytes": sum(files.values()),
        "latency_ms": latencies(runtime),
    }


def _measured_variants(
    bundle: Bundle, variants: Variants, latencies: Callable[[Runtime], dict[str, float]]
) -> dict[str, Any]:
    """The report of the variants, with the latency of those that were kept, whose golden rows are checked here."""
    measured = {name: {"latency_ms": latencies(Runtime(bundle, variant=name))} for name in variants.facts}
    return {name: {**facts, **measured.get(name, {})} for name, facts in variants.report.items()}


def _latencies(runtime: Runtime, *, texts: list[str], runs: int) -> dict[str, float]:
    return {
        "batch_1": _latency_ms(runtime, texts[:1], runs=runs),
        "batch_8": _latency_ms(runtime, (texts * 8)[:8], runs=runs),
    }


def _latency_ms(runtime: Runtime, texts: list[str], *, runs: int) -> float:
    """Median milliseconds from texts to answers of all tasks."""
    seconds = []
    for _ in range(runs):
        started = time.perf_counter()
        runtime.predict(texts)
        seconds.append(time.perf_counter() - started)
    return round(statistics.median(seconds) * 1000, 2)
