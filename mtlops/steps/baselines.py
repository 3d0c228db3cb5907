"""What the baselines answer to a task's test rows, computed once: they depend on its rows and the encoder alone."""

import json
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from mtlops.evaluation import baselines, word_baselines
from mtlops.model.predictor import Predictor
from mtlops.tasks import Task


def baseline_logits(
    task: Task, tables: Mapping[str, pa.Table], predictor: Predictor, names: Collection[str]
) -> dict[str, baselines.Logits]:
    """Returns the logits of some baselines for a task's test rows; what was computed from the same rows is read again.

    Args:
        task: the task.
        tables: `train` and `valid`, which they learn from, and `test`.
        predictor: for its encoder, without any adapter.
        names: of `baselines.NAMES`; others are left out.

    Raises:
        PlatformError: what was computed cannot be kept.
    """
    train, of_words = tables["train"], word_baselines.training_rows
    chosen = of_words(train["text"].to_pylist()) if task.per_word else baselines.training_rows(train.num_rows)
    tables = {**tables, "train": train.take(chosen)}
    labels = {split: task.encode(table["label"].to_pylist()) for split, table in tables.items()}
    row_ids = [row_id for table in tables.values() for row_id in table["row_id"].to_pylist()]
    known = {split: torch.from_numpy(values) for split, values in labels.items()}
    paths = {
        name: predictor.answers.path(known, [name, json.dumps(task.facts()), *row_ids])
        for name in baselines.NAMES if name in names
    }  # fmt: skip
    shape = (*labels["test"].shape, len(task.classes)) if task.per_word else (len(labels["test"]), task.num_outputs)
    found = {name: predictor.answers.read(path, shape) for name, path in paths.items()}
    if missing := [name for name, logits in found.items() if logits is None]:
        if task.per_word:
            made = word_baselines.logits(task, **_word_rows(tables, labels, predictor), names=missing)
        else:
            made = baselines.logits(task, **_text_rows(tables, labels, predictor, missing), names=missing)
        for name, logits in made.items():
            predictor.answers.write(paths[name], logits)
            found[name] = logits
    return {name: logits for name, logits in found.items() if logits is not None}


def _text_rows(
    tables: Mapping[str, pa.Table], labels: Mapping[str, Any], predictor: Predictor, names: Collection[str]
) -> dict[str, baselines.Rows]:
    columns = {split: table.select(["text", "row_id"]).to_pydict() for split, table in tables.items()}
    vectors = np.zeros((sum(table.num_rows for table in tables.values()), 0), dtype=np.float32)
    if "frozen" in names:  # All splits in one go compute fewer half-empty batches.
        texts, row_ids = ([value for of in columns.values() for value in of[key]] for key in ("text", "row_id"))
        vectors = predictor.pooled(texts, row_ids)
    rows, start = {}, 0
    for split, of in columns.items():
        end = start + len(of["text"])
        rows[split] = baselines.Rows(of["text"], labels[split], vectors[start:end])
        start = end
    return rows


def _word_rows(
    tables: Mapping[str, pa.Table], labels: Mapping[str, Any], predictor: Predictor
) -> dict[str, word_baselines.WordRows]:
    rows = {}
    for split, table in tables.items():
        texts = table["text"].to_pylist()
        vectors = predictor.frozen_words(texts, table["row_id"].to_pylist())
        rows[split] = word_baselines.WordRows(texts, labels[split], vectors)
    return rows
