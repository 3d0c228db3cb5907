"""Variants of an exported graph: written, judged by each task's metric on its test rows, kept or left out."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtlops import catalog
from mtlops.data.prepared import read_split
from mtlops.data.tokenisation import Tokenizer, pad
from mtlops.decoding import decode
from mtlops.errors import ArtefactError
from mtlops.export.graph import structure
from mtlops.model.predictor import Predictor
from mtlops.params import Params
from mtlops.serving.passes import golden_logits, open_session, run, task_logits
from mtlops.serving.runtime import GOLDEN_TOLERANCE
from mtlops.steps.taking_over import Golden, keep_golden
from mtlops.steps.updates import Update
from mtlops.tasks import Task

if TYPE_CHECKING:
    import onnxruntime

logger = logging.getLogger(__name__)

_CPU = "CPUExecutionProvider"
_MARGIN = 2.0
_UPDATE_ROWS = 400
"""Known test rows on which an update's variant is judged at most, evenly spread; of its window all are."""
_DIGITS = 6


@dataclass(frozen=True)
class Variants:
    """What became of the variants that params.yaml asks for.

    Attributes:
        facts: for the manifest, of those that were kept.
        golden: their expected logits, for each golden text, by task.
        report: for the export report, of all.
    """

    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    golden: dict[str, Golden] = field(default_factory=dict)
    report: dict[str, dict[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class _Rows:
    """Rows on which a task is judged; `expected` is the primary metric of PyTorch's model there."""

    task: int
    texts: list[str]
    labels: NDArray[Any]
    expected: float


class VariantMaker:
    """Makes the variants of one bundle.

    Args:
        params: of the suite.
        folder: of the bundle, with `model.onnx`.
        predictor: the trained model.
        tokenizer: of the encoder.
        prepared: folder of prepared splits.
        judged: content of evaluation.json.
        update: what is updated, if anything.
    """

    def __init__(
        self,
        params: Params,
        folder: Path,
        *,
        predictor: Predictor,
        tokenizer: Tokenizer,
        prepared: Path,
        judged: Mapping[str, Any],
        update: Update | None,
    ) -> None:
        self._params, self._folder, self._tokenizer = params, folder, tokenizer
        self._predictor, self._model = predictor, predictor.model
        self._prepared, self._judged, self._update = prepared, judged, update

    def make(self, texts: Sequence[str]) -> Variants:
        """Returns what became of them; `texts` are the golden ones.

        Raises:
            ArtefactError: one is not good enough and `export.variant_failure` is `fail`; or it answers for a task that
                an update was not to change otherwise than the parent's.
        """
        found = Variants()
        for name in self._params.export.variants:
            path = self._folder / f"model.{name}.onnx"
            started = time.process_time()
            catalog.load(catalog.VARIANTS[name].code)(
                self._folder / "model.onnx", path, passes=self._passes(), like=self._like(name)
            )
            session = open_session(path, _CPU, threads=0)
            tasks = self._measure(name, session)
            reasons = self._reasons(tasks)
            found.report[name] = {"kept": not reasons, "reasons": reasons, "tasks": tasks}
            if reasons:
                self._refuse(name, reasons)
                continue
            self._keep(name, session, texts, tasks=tasks, found=found)
            logger.info("variant=%s kept cpu_seconds=%.1f", name, time.process_time() - started)
        return found

    def _keep(
        self,
        name: str,
        session: "onnxruntime.InferenceSession",
        texts: Sequence[str],
        *,
        tasks: Mapping[str, Any],
        found: Variants,
    ) -> None:
        path = self._folder / f"model.{name}.onnx"
        golden = golden_logits(session, self._tokenizer, self._model.tasks, texts)
        files = (path, path.with_name(f"{path.name}.data"))
        facts = {
            "file": path.name,
            "bytes": sum(file.stat().st_size for file in files if file.exists()),
            "structure": structure(path),
            "batch_invariant": is_batch_invariant(session, self._tokenizer, texts, num_tasks=len(self._model.tasks)),
            "golden_tolerance": self._tolerance(path, texts, golden),
            "tasks": tasks,
        }
        found.facts[name] = facts
        found.report[name] |= {k: v for k, v in facts.items() if k != "tasks"}
        found.golden[name] = (
            keep_golden(self._update, golden, self._tokenizer, variant=name) if self._update else golden
        )

    def _refuse(self, name: str, reasons: Sequence[str]) -> None:
        path = self._folder / f"model.{name}.onnx"
        for file in (path, path.with_name(f"{path.name}.data")):
            file.unlink(missing_ok=True)
        said = f"export.variants: {name} is not good enough: {' '.join(reasons)}"
        if self._params.export.variant_failure == "fail":
            raise ArtefactError(f"{said} Nothing was exported: leave it out, or raise export.variant_loss.")
        logger.warning("%s The bundle is written without it.", said)

    def _like(self, name: str) -> Path | None:
        """The parent's file of a variant."""
        if self._update is None or name not in self._update.parent.variants:
            return None
        return self._update.parent.folder / str(self._update.parent.variant(name)["file"])

    def _passes(self) -> Iterator[dict[str, NDArray[np.int64]]]:
        """Validation rows of every task, one a pass, each asked for all tasks, its embedding, and tags of its words."""
        num_tasks = len(self._model.tasks)
        tagging = [position for position, task in enumerate(self._model.tasks) if task.per_word]
        of_words = {"word_pair": np.asarray(tagging, np.int64)} if tagging else {}
        for task in self._model.tasks:
            texts = read_split(self._prepared, task.name, "valid")["text"].to_pylist()
            wanted = np.unique(np.linspace(0, len(texts) - 1, self._params.export.calibration_rows).astype(np.int64))
            for ids in self._tokenizer.ids([texts[i] for i in wanted]):
                input_ids, mask = pad([ids], pad_id=self._tokenizer.pad_id)
                yield {
                    "input_ids": input_ids,
                    "attention_mask": mask,
                    "pair_row": np.zeros(num_tasks, np.int64),
                    "pair_task": np.arange(num_tasks, dtype=np.int64),
                    "embed_row": np.zeros(1, np.int64),
                    **of_words,
                }

    def _measure(self, name: str, session: "onnxruntime.InferenceSession") -> dict[str, dict[str, Any]]:
        """By task: the variant's metric on its test rows, and that of fp32."""
        tasks: dict[str, dict[str, Any]] = {}
        taken = self._update.untouched if self._update is not None and self._like(name) is not None else []
        for task in self._model.tasks:
            if task.name in taken:
                assert self._update is not None
                tasks[task.name] = dict(self._update.parent.variant(name)["tasks"][task.name])
                continue
            rows = self._rows(task.name)
            logits = task_logits(session, self._tokenizer, self._model.tasks, rows.texts, position=rows.task)
            tasks[task.name] = {
                "metric": task.primary,
                "rows": len(rows.texts),
                "fp32": rows.expected,
                "value": self._metric(task, rows.labels, logits),
            }
        return tasks

    def _rows(self, name: str) -> _Rows:
        """The test rows of a task: those of an update's window are too few to tell a point by themselves."""
        position, task = next((i, task) for i, task in enumerate(self._model.tasks) if task.name == name)
        tables = [read_split(folder, name, "test") for folder in self._folders(name)]
        columns = [table.select(["text", "row_id", "label"]).to_pydict() for table in tables]
        texts = [text for of in columns for text in of["text"]]
        labels = task.encode([label for of in columns for label in of["label"]])
        if self._update is None:
            judged = self._judged["tasks"][name]
            return _Rows(position, texts, labels, float(judged["metrics"][judged["primary"]]["value"]))
        # Asked for all rows, as `evaluate` did: its answers are kept.
        if task.per_word:
            logits = self._predictor.logits(texts, [row_id for of in columns for row_id in of["row_id"]], name)
        else:
            logits = np.concatenate([self._predictor.logits(of["text"], of["row_id"], name) for of in columns])
        known = len(columns[0]["text"])
        some = np.unique(np.linspace(0, known - 1, min(known, _UPDATE_ROWS)).astype(np.int64))
        rows = np.concatenate([some, np.arange(known, len(texts))])
        labels = labels[rows]
        return _Rows(position, [texts[row] for row in rows], labels, self._metric(task, labels, logits[rows]))

    def _folders(self, name: str) -> list[Path]:
        """Where a task's test rows lie: together; of a retrained task as `evaluate` read them, old rows and new."""
        if self._update is None or name not in self._update.retrained:
            return [self._prepared]
        mixed = self._update.mixed
        return [mixed.known] if self._update.lineage.retrained[name] is None else [mixed.known, mixed.window]

    def _metric(self, task: Task, labels: NDArray[Any], logits: NDArray[np.float32]) -> float:
        kind, outputs = catalog.KINDS[task.kind], decode(task, logits, self._model.calibrations[task.name])
        return round(float(catalog.load(kind.metrics)(task, labels, outputs)[task.primary]), _DIGITS)

    def _reasons(self, tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
        """What keeps a variant out, a sentence for each task that loses too much."""
        allowed = self._params.export.variant_loss
        return [
            f"Task {task}: {rows['metric']} {rows['value']:.3f}, fp32 has {rows['fp32']:.3f} on {rows['rows']} rows; "
            f"{allowed:g} may be lost (export.variant_loss)."
            for task, rows in tasks.items()
            if not rows["fp32"] - rows["value"] <= allowed
        ]

    def _tolerance(self, path: Path, texts: Sequence[str], golden: Golden) -> float:
        """How far golden logits may be off on another machine.

        Rounded values jump where float ones differ in their last bits. How far shows a run whose float nodes are
        computed in another order: unoptimised, as they stand in the graph.
        """
        plain = open_session(path, _CPU, threads=0, optimised=False)
        other = golden_logits(plain, self._tokenizer, self._model.tasks, texts)
        largest = max(
            float(np.abs(np.subtract(a[task], b[task])).max()) for a, b in zip(golden, other, strict=True) for task in a
        )
        return round(max(GOLDEN_TOLERANCE, _MARGIN * largest), _DIGITS)


def is_batch_invariant(
    session: "onnxruntime.InferenceSession", tokenizer: Tokenizer, texts: Sequence[str], *, num_tasks: int
) -> bool:
    """Returns whether each text has the same logits to the bit alone, and among all others, padded to the longest."""
    together = run(session, *pad(tokenizer.ids(texts), pad_id=tokenizer.pad_id), range(num_tasks))
    for row, text in enumerate(texts):
        alone = run(session, *pad(tokenizer.ids([text]), pad_id=tokenizer.pad_id), range(num_tasks))
        if alone[:, 0].tobytes() != together[:, row].tobytes():
            return False
    return True
