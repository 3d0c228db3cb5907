"""Every way of adapting and sharing on the same rows: `python -m tests.benchmarks.methods --work FOLDER`.

Each (method, seed) is trained in a process of its own on one core, judged on test rows and, once a method, served;
what was measured becomes one JSON file. A second call does what is missing, so it can be killed and continued, and
`--seeds 0,1,2` after `--seeds 0` adds two more. The measured part of docs/methods.md is made from all files there.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mtlops import catalog
from mtlops.data.prepared import read_split
from mtlops.data.tokenisation import Tokenizer, pad
from mtlops.decoding import decode
from mtlops.export.graph import PairsGraph, write_onnx
from mtlops.export.rows import RowsGraph
from mtlops.files import write_json
from mtlops.model.adapters.anatomy import Cut
from mtlops.model.encoders import load_trunk
from mtlops.model.multitask import PairModel
from mtlops.model.predictor import Backbone, Predictor
from mtlops.model.sharing.anatomy import make
from mtlops.model.trained import TASK_FILES, load_model
from mtlops.params import Params, read_params
from mtlops.serving.passes import open_session, run
from mtlops.steps.evaluate import evaluate
from mtlops.steps.export import export
from mtlops.steps.prepare import prepare
from mtlops.steps.train import train
from tests.benchmarks.methods_page import METHODS_PAGE, part
from tests.benchmarks.page import write_part
from tests.benchmarks.training import plain_loop

ROWS = 600
"""Rows of each task, all splits together."""

SHARES = ("data.valid_share=0.1", "data.test_share=0.4")
"""Many rows are tested on: passing one once costs little beside training, and few would say little."""

_CHEAP_TEACHER = (
    "gates.twins=never", "gates.resamples=100", "gates.robustness_rows=0", "data.behaviour=[]", "drift.embedding=cut",
)  # fmt: skip
_SERVED_TEXTS, _SERVED_BATCH, _REPETITIONS = 32, 8, 5
_PLAIN_EPOCHS = 1


@dataclass(frozen=True)
class Method:
    """One line of the comparison.

    Attributes:
        group: the table that it belongs to.
        overrides: what it changes in params.yaml.
        teacher: the method whose first seed it is distilled from.
        plain: it is a plain loop (`tests.benchmarks.training`): whether the encoder stays frozen in it.
    """

    group: str
    overrides: tuple[str, ...] = ()
    teacher: str = ""
    plain: bool | None = None


ALL_LAYERS = "pfeiffer, n = 0"
_PFEIFFER = "model.adapter=pfeiffer"

METHODS: Mapping[str, Method] = {
    "parallel, tuned": Method("kinds", ("preset=balanced",)),
    "pfeiffer, n = 3": Method("drop", (_PFEIFFER, "model.adapter_drop=3")),
    ALL_LAYERS: Method("drop", (_PFEIFFER, "model.adapter_drop=0")),
    "pfeiffer, n = 4": Method("drop", (_PFEIFFER, "model.adapter_drop=4")),
    "parallel, tuned, distilled": Method("distilled", ("preset=balanced",), teacher="lora, n = 0"),
    **{
        kind: Method("kinds", (f"model.adapter={kind}", "model.adapter_drop=3"))
        for kind in catalog.ADAPTERS
        if kind != "pfeiffer"
    },
    "hard, top half": Method("sharing", ("model.sharing=hard",)),
    "robust": Method("robust", (_PFEIFFER, "model.adapter_drop=0", "train.adapter_drop=robust")),
    "hard, all layers": Method("sharing", ("model.sharing=hard", "model.tuned_layers=all")),
    "lora, n = 0": Method("kinds", ("model.adapter=lora", "model.adapter_drop=0")),
    "lora, n = 4": Method("kinds", ("model.adapter=lora", "model.adapter_drop=4")),
    "pfeiffer, n = 0, distilled from hard": Method(
        "distilled", (_PFEIFFER, "model.adapter_drop=0"), teacher="hard, all layers"
    ),
    "plain loop, adapters in every layer": Method("plain", (_PFEIFFER,), plain=True),
    "pfeiffer, n = 2": Method("drop", (_PFEIFFER, "model.adapter_drop=2")),
    "pfeiffer, n = 5": Method("drop", (_PFEIFFER, "model.adapter_drop=5", "model.pooling=mean")),
    "hierarchical, top half": Method(
        "sharing", ("model.sharing=hierarchical", "model.depths={subjectivity: 5, sentiment: 5}")
    ),
    "soft, top half, l2": Method("sharing", ("model.sharing=soft",)),
    "soft, top half, cross-stitch": Method("sharing", ("model.sharing=soft", "model.soft=cross-stitch")),
    "pfeiffer, n = 1": Method("drop", (_PFEIFFER, "model.adapter_drop=1")),
    "plain loop, full fine-tuning": Method("plain", plain=False),
}
"""The methods by name, the more important ones first: that is the order in which they run."""


@dataclass(frozen=True)
class Place:
    """Where the benchmark keeps what it makes.

    Attributes:
        work: its folder.
        extra: overrides of every method, beside its own.
    """

    work: Path
    extra: tuple[str, ...] = ()

    @property
    def prepared(self) -> Path:
        """The prepared splits."""
        return self.work / "prepared"

    @property
    def encoder(self) -> Path:
        """The encoder."""
        return self.work / "encoder"

    def result(self, method: str, seed: int) -> Path:
        """The file that says what was measured."""
        return self.work / "results" / f"{_slug(method)}-{seed}.json"

    def model(self, method: str, seed: int) -> Path:
        """The folder of the trained model."""
        return self.work / "models" / f"{_slug(method)}-{seed}"

    def teacher(self, method: str) -> Path:
        """The bundle that others learn from."""
        return self.work / "teachers" / _slug(method)

    def params(self, method: str, seed: int) -> Params:
        """The params that a method is trained with."""
        of_method = METHODS[method]
        overrides = [*of_method.overrides, f"train.seed={seed}", "train.threads=1", *self.extra]
        if of_method.teacher:
            overrides.append(f"train.teacher={self.teacher(of_method.teacher)}")
        return read_params(Path("params.yaml"), overrides=overrides)


def measure(place: Place, method: str, seed: int, *, serve: bool) -> dict[str, Any]:
    """Trains and judges one method, and serves it where asked; returns what was measured."""
    params, of_method = place.params(method, seed), METHODS[method]
    found: dict[str, Any] = {"method": method, "seed": seed, "group": of_method.group}
    if of_method.plain is not None:
        return found | _plain(place, params, frozen=of_method.plain)
    if of_method.teacher:
        _make_teacher(place, of_method.teacher)
    filled = _filled(place, params)
    for checkpoint in (place.work / "cache").glob("checkpoint-*"):
        checkpoint.unlink()  # A run that was stopped would go on, and seem to have cost less.
    memory_mb, started = _peak_mb(), time.process_time()
    out = place.model(method, seed)
    train(params, prepared=place.prepared, encoder=place.encoder, out=out / "trained", cache=place.work / "cache",
          report=out / "training.json")  # fmt: skip
    found |= {
        "fill_seconds": filled.seconds, "fill_rows": filled.rows, "train_seconds": time.process_time() - started,
        "start_mb": memory_mb, "peak_mb": _peak_mb(), **_sizes(out),
        "learning_rate": params.learning_rate(), "adapter_drop": params.model.adapter_drop,
    }  # fmt: skip
    found["f1"], found["f1_by_drop"] = _judge(place, params, out / "trained")
    if serve:
        found["serve_ms"], found["encoder_ms"] = _serve(place, params, out)
    return found


@dataclass(frozen=True)
class _Filled:
    seconds: float
    rows: int


def _filled(place: Place, params: Params) -> _Filled:
    """Fills the trunk cache with all rows, so that training finds them there."""
    started = time.process_time()
    backbone = Backbone(
        place.encoder, cache=place.work / "cache", model=params.model, max_tokens=params.encoder.max_tokens,
        tasks=list(params.suite.tasks),
    )  # fmt: skip
    splits = [(task.name, split) for task in params.tasks() for split in ("train", "valid", "test")]
    columns = [read_split(place.prepared, *split).select(["row_id", "text"]).to_pydict() for split in splits]
    texts = {row_id: text for of in columns for row_id, text in zip(of["row_id"], of["text"], strict=True)}
    backbone.fill(list(texts), list(texts.values()))
    return _Filled(time.process_time() - started, backbone.cache.rows_computed)


def _plain(place: Place, params: Params, *, frozen: bool) -> dict[str, Any]:
    """The plain loop's cost: one epoch a task, reckoned up to the epochs that all others train."""
    fewer = params.model_copy(update={"train": params.train.model_copy(update={"epochs": _PLAIN_EPOCHS})})
    started = time.process_time()
    for task in fewer.tasks():
        plain_loop(task, fewer, place.work, frozen=frozen)
    seconds = (time.process_time() - started) * params.train.epochs / _PLAIN_EPOCHS
    return {"train_seconds": seconds, "peak_mb": _peak_mb()}


def _make_teacher(place: Place, method: str) -> None:
    """Exports the first seed's model of a method as the bundle that others learn from."""
    folder = place.teacher(method)
    if (folder / "manifest.json").exists():
        return
    out = place.model(method, 0)
    params = place.params(method, 0)
    for section, name, value in (override.replace("=", ".", 1).split(".", 2) for override in _CHEAP_TEACHER):
        now = read_params(Path("params.yaml"), overrides=(f"{section}.{name}={value}",))
        changed = getattr(params, section).model_copy(update={name: getattr(getattr(now, section), name)})
        params = params.model_copy(update={section: changed})
    reports = {"evaluation": out / "evaluation.json", "decision": out / "decision.json"}
    places = {"prepared": place.prepared, "encoder": place.encoder, "trained": out / "trained",
              "cache": place.work / "cache"}  # fmt: skip
    evaluate(params, **places, report=reports["evaluation"], decision=reports["decision"])
    export(params, **places, **reports, out=folder, report=out / "export.json")


def _sizes(out: Path) -> dict[str, Any]:
    """Trained parameters and bytes, of the tasks' own and of what they share."""
    report = json.loads((out / "training.json").read_text(encoding="utf-8"))
    files = [sum((folder / name).stat().st_size for name in TASK_FILES) for folder in (out / "trained/tasks").iterdir()]
    shared = out / "trained/shared.safetensors"
    return {
        "trunk_parameters": report["parameters"]["trunk"],
        "own_parameters": sum(report["parameters"]["per_task"].values()),
        "shared_parameters": report.get("sharing", {}).get("parameters", 0),
        "bytes_per_task": sum(files) / len(files),
        "shared_bytes": shared.stat().st_size if shared.exists() else 0,
    }


def _judge(place: Place, params: Params, trained: Path) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Macro-F1 of each task on its test rows; of a robust model also with n of the lowest adapters left out."""
    predictor = Predictor(trained, place.encoder, cache=place.work / "cache")
    f1, by_drop = {}, {}
    for task in params.tasks():
        table = read_split(place.prepared, task.name, "test")
        labels = task.encode(table["label"].to_pylist())
        score, row_ids = catalog.load(catalog.KINDS[task.kind].metrics), table["row_id"].to_pylist()

        def value(logits: np.ndarray) -> float:
            outputs = decode(task, logits, predictor.model.calibrations[task.name])  # noqa: B023 - called at once
            return float(score(task, labels, outputs)[catalog.KINDS[task.kind].primary])  # noqa: B023

        f1[task.name] = value(predictor.logits(table["text"].to_pylist(), row_ids, task.name))
        if params.train.adapter_drop == "robust":
            tensors, layers = predictor.model.tensors[task.name], predictor.backbone.pairs.adapter.layers
            for n in range(len(layers)):
                found = value(predictor.backbone.logits(row_ids, tensors, skipped=layers[:n]))
                by_drop.setdefault(str(n), {})[task.name] = found
    return f1, by_drop


def _serve(place: Place, params: Params, out: Path) -> tuple[float, float]:
    """CPU milliseconds a text, all tasks, of the exported graph; and of the bare encoder in PyTorch beside it."""
    model, trunk = load_model(out / "trained"), load_trunk(place.encoder)
    tensors = [model.tensors[task.name] for task in model.tasks]
    if model.model.sharing == "adapters":
        graph: PairsGraph | RowsGraph = PairsGraph(
            trunk, PairModel(trunk, model.model), tasks=tensors, embedding="cut"
        )  # fmt: skip
    else:
        graph = RowsGraph(make(trunk, model.model, [t.name for t in model.tasks]), model.shared, tensors)
    write_onnx(graph, out / "model.onnx", opset=params.export.opset)
    session = open_session(out / "model.onnx", "CPUExecutionProvider", threads=1)
    bare = load_trunk(place.encoder)
    served, encoded = [], []
    batches = _batches(place, params)
    for repetition in range(_REPETITIONS + 1):
        started = time.process_time()
        for ids, mask in batches:
            run(session, ids, mask, range(len(tensors)))
        between = time.process_time()
        with torch.inference_mode():
            for ids, mask in batches:
                bare(torch.from_numpy(ids), torch.from_numpy(mask), depth=len(bare.layers) - 1, cut=Cut.SUM)
        if repetition:
            served.append(between - started)
            encoded.append(time.process_time() - between)
    for path in out.glob("model.onnx*"):
        path.unlink()
    return 1000 * min(served) / _SERVED_TEXTS, 1000 * min(encoded) / _SERVED_TEXTS


def _batches(place: Place, params: Params) -> list[tuple[Any, Any]]:
    tokenizer = Tokenizer(place.encoder / "tokenizer.json", max_tokens=params.encoder.max_tokens)
    share = _SERVED_TEXTS // len(params.tasks())
    texts = [
        text
        for task in params.tasks()
        for text in read_split(place.prepared, task.name, "test")["text"].to_pylist()[:share]
    ]
    ids = sorted(tokenizer.ids(texts), key=len)
    return [pad(ids[i : i + _SERVED_BATCH], pad_id=tokenizer.pad_id) for i in range(0, len(ids), _SERVED_BATCH)]


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _slug(method: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in method)


def main() -> None:
    """Measures what is missing, and writes docs/methods.md."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/methods"), help="where everything is kept")
    parser.add_argument("--raw", type=Path, default=Path("data/raw"), help="folder of fetched packages")
    parser.add_argument("--seeds", default="0", help="comma list")
    parser.add_argument("--only", default="", help="names of methods, separated by `;`; default: all")
    parser.add_argument("--rows", type=int, default=ROWS, help="rows of each task, all splits together")
    parser.add_argument("--set", action="append", default=[], help="an override of every method")
    parser.add_argument("--dry", action="store_true", help="do not write docs/methods.md")
    options = parser.parse_args()
    place = Place(options.work, tuple(options.set))
    _in_own_process(_prepare, place, raw=options.raw, rows=options.rows)
    wanted = options.only.split(";") if options.only else list(METHODS)
    for seed in map(int, options.seeds.split(",")):
        for method in wanted:
            _measure_missing(place, method, seed)
    if not options.dry:
        write_part("methods", part(place.work / "results", methods=METHODS), page=METHODS_PAGE)


def _prepare(place: Place, *, raw: Path, rows: int) -> None:
    if not (place.prepared / "manifest.json").exists():
        small = read_params(Path("params.yaml"), overrides=(*SHARES, f"data.max_rows_per_task={rows}"))
        prepare(small, raw=raw, out=place.prepared, encoder=place.encoder)
    write_json(place.work / "results/about.json", _about(place, rows=rows))


def _about(place: Place, *, rows: int) -> dict[str, Any]:
    """What docs/methods.md says of the data; `noise` is the standard error of the tasks' mean accuracy, at 75 %."""
    params = read_params(Path("params.yaml"), overrides=place.extra)
    counts = {
        split: [read_split(place.prepared, task.name, split).num_rows for task in params.tasks()]
        for split in ("train", "valid", "test")
    }
    noise = sum(0.75 * 0.25 / n for n in counts["test"]) ** 0.5 / len(counts["test"])
    totals = {split: sum(of) for split, of in counts.items()}
    return {"rows": rows, **totals, "epochs": params.train.epochs, "batch_size": params.train.batch_size,
            "noise": noise, "set": list(place.extra)}  # fmt: skip


def _measure_missing(place: Place, method: str, seed: int) -> None:
    """Measures a method unless that was done; one that others learn from comes first."""
    if place.result(method, seed).exists():
        return
    if METHODS[method].teacher:
        _measure_missing(place, METHODS[method].teacher, 0)
    print(f"method={method!r} seed={seed}", flush=True)
    _in_own_process(_measure, place, method, seed)


def _measure(place: Place, method: str, seed: int) -> None:
    torch.set_num_threads(1)
    write_json(place.result(method, seed), measure(place, method, seed, serve=seed == 0))


def _in_own_process(work: Callable[..., None], *arguments: object, **options: object) -> None:
    """Calls something in a fork of this process, which itself starts no threads: its peak of memory is its own."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, kwargs=options)
    process.start()
    process.join()
    if process.exitcode:
        sys.exit(process.exitcode)


if __name__ == "__main__":
    main()
