"""Profiles of a suite's rows: drift of the test rows for `evaluate`, the references in the bundle for `export`."""

import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from mtlops.data.prepared import SPLITS, read_split
from mtlops.decoding import Outputs, decode
from mtlops.drift.columns import (
    Columns,
    embedding_column,
    label_columns,
    prediction_columns,
    quality_columns,
    text_columns,
    user_columns,
)
from mtlops.drift.finding import Settings
from mtlops.drift.profile import ENCODER, Profile
from mtlops.drift.verdicts import Findings, judge
from mtlops.errors import DataError
from mtlops.evaluation.baselines import training_rows
from mtlops.model.predictor import Predictor
from mtlops.params import Params
from mtlops.serving.champion import Champion
from mtlops.tasks import Task

REFERENCE = "reference"
"""Folder of the profiles in a bundle."""

MOST_ANSWERS = 5_000
"""A reference holds the answers to at most this many held-out rows of a task, evenly spread: each costs a pass."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Profiler:
    """Reads prepared rows and says what is watched of them.

    Attributes:
        tasks: of the suite.
        settings: section `drift` of params.yaml as the tests need it.
        tests: columns of the user to watch, each with its test.
        prepared: folder of prepared splits.
        predictor: the trained model.
        layer: where the embedding is taken (`drift.embedding`).
    """

    tasks: tuple[Task, ...]
    settings: Settings
    tests: Mapping[str, str]
    prepared: Path
    predictor: Predictor
    layer: str

    @classmethod
    def open(cls, params: Params, *, prepared: Path, predictor: Predictor) -> "Profiler":
        """Returns a profiler of the suite that `params` describes."""
        layer = predictor.embedding_layer(params.drift.embedding)
        return cls(params.tasks(), Settings.of(params.drift), params.drift.columns, prepared, predictor, layer)

    @property
    def trunk(self) -> str:
        """Digest of what makes the embeddings: every profile is bound to it."""
        return self.predictor.embedding_digest(self.layer)

    def rows(self, task: Task, *splits: str) -> pa.Table:
        """Returns the rows of some splits of a task; of a large split as many as the baselines learn from."""
        tables = [read_split(self.prepared, task.name, split) for split in splits]
        return pa.concat_tables([table.take(training_rows(table.num_rows)) for table in tables])

    def inputs(self, table: pa.Table) -> Columns:
        """Returns the columns that follow from the rows alone: text, columns of the user, embedding."""
        texts = table["text"].to_pylist()
        return {
            **text_columns(texts, self.predictor.backbone.tokenizer.unknown_shares(texts)),
            **user_columns(table, self.tests),
            **embedding_column(self.predictor.embeddings(texts, table["row_id"].to_pylist(), layer=self.layer)),
        }

    def outputs(self, task: Task, table: pa.Table) -> Outputs:
        """Returns the model's answers to the rows."""
        logits = self.predictor.logits(table["text"].to_pylist(), table["row_id"].to_pylist(), task.name)
        return decode(task, logits, self.predictor.model.calibrations[task.name])


def measure_drift(
    profiler: Profiler, *, champion: Champion | None, answers: Mapping[str, Outputs]
) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Returns for each task, and for `encoder`, the drift of the test rows as evaluation.json has it.

    `train` compares their texts, embeddings and labels with the training rows. (Answers cannot be: the model was
    fitted on the training rows and is surer there.) `reference` compares them with the champion's reference profile:
    its answers, too, for tasks that it does in the same way. Each is corrected over all its tasks and kinds.

    Args:
        profiler: of the suite's rows.
        champion: the champion, if there is one.
        answers: its answers to the test rows, by task.

    Raises:
        ArtefactError: a file is missing or damaged.
        DataError: `drift.columns` names a column that no task has.
    """
    tasks = profiler.tasks
    # Every test row: `answers` are to these.
    tables = {task.name: read_split(profiler.prepared, task.name, "test") for task in tasks}
    _check_user_columns(profiler, tables)
    inputs = {name: profiler.inputs(table) for name, table in tables.items()}
    train: dict[str, Findings] = {}
    reference: dict[str, Findings] = {}
    for task in tasks:
        table = tables[task.name]
        columns = {**inputs[task.name], **label_columns(task, table["label"].to_pylist())}
        train[task.name] = _against_train(profiler, task, columns, keys=_keys(table))
        if champion is not None:
            reference[task.name] = _against_champion(
                profiler, task, columns, keys=_keys(table), champion=champion, answers=answers.get(task.name),
                labels=task.encode(table["label"].to_pylist()),
            )  # fmt: skip
    found: dict[str, dict[str, list[dict[str, Any]]]] = {task.name: {"train": [], "reference": []} for task in tasks}
    for against, findings in (("train", train), ("reference", reference)):
        for cell in judge(findings, profiler.settings):
            found[cell.task][against].append(cell.to_json())
    return found


def write_references(profiler: Profiler, folder: Path) -> None:
    """Writes the reference profile of each task, and of all rows together, below `folder`.

    Texts, embeddings and labels come from all splits: more rows make a sharper reference. Answers and losses come
    from validation and test rows, which no weight was fitted on (the validation rows chose the epoch and the
    temperature, the test rows nothing): on training rows a model is surer than it will be on new ones, and every
    window of production would look like drift.

    Raises:
        ArtefactError: a file is missing or damaged.
        DataError: `drift.columns` names a column that no task has.
    """
    tasks = profiler.tasks
    tables = {task.name: profiler.rows(task, *SPLITS) for task in tasks}
    _check_user_columns(profiler, tables)
    settings, trunk = profiler.settings, profiler.trunk
    together = _together(list(tables.values()))
    everything = Profile.fit(
        ENCODER, profiler.inputs(together), trunk=trunk, settings=settings, keys=_keys(together)
    )  # fmt: skip
    everything.save(folder / ENCODER)
    for task in tasks:
        _write_reference(profiler, task, folder, like=everything)
    logger.info("reference tasks=%d rows=%d", len(tasks), together.num_rows)


def update_references(profiler: Profiler, folder: Path, *, parent: Path) -> None:
    """Writes the reference profiles of the profiler's tasks below `folder`, and takes all others over from `parent`.

    What all rows together are compared with stays as it was: one task's update does not say how the others' inputs
    look now.

    Raises:
        ArtefactError: a file is missing or damaged.
    """
    shutil.copytree(parent, folder)
    everything = Profile.load(folder / ENCODER, trunk=profiler.trunk)
    for task in profiler.tasks:
        _write_reference(profiler, task, folder, like=everything)


def _write_reference(profiler: Profiler, task: Task, folder: Path, *, like: Profile) -> None:
    table, held_out = profiler.rows(task, *SPLITS), _at_most(MOST_ANSWERS, profiler.rows(task, "valid", "test"))
    outputs = profiler.outputs(task, held_out)
    columns = {
        **profiler.inputs(table),
        **label_columns(task, table["label"].to_pylist()),
        **prediction_columns(task, outputs),
        **quality_columns(task, outputs, task.encode(held_out["label"].to_pylist())),
    }
    profile = Profile.fit(
        task.name, columns, trunk=profiler.trunk, settings=profiler.settings, keys=_keys(table), like=like
    )  # fmt: skip
    profile.save(folder / task.name)


def _against_train(profiler: Profiler, task: Task, columns: Columns, *, keys: list[str]) -> Findings:
    table = profiler.rows(task, "train")
    known = {**profiler.inputs(table), **label_columns(task, table["label"].to_pylist())}
    reference = Profile.fit(
        task.name, known, trunk=profiler.trunk, settings=profiler.settings, keys=_keys(table)
    )  # fmt: skip
    return reference.compare(reference.of(columns, keys=keys), profiler.settings)


def _against_champion(
    profiler: Profiler, task: Task, columns: Columns, *,
    keys: list[str], champion: Champion, answers: Outputs | None, labels: Any,
) -> Findings:  # fmt: skip
    folder = champion.bundle.folder / REFERENCE / task.name
    comparison = champion.comparison(task)
    if comparison == "new" or not folder.exists():
        logger.info("task=%s drift.reference=none reason=the champion has no reference for it", task.name)
        return {}
    if "embedding" not in champion.bundle.manifest:
        logger.info("task=%s drift.reference=none reason=the champion was exported by an earlier mtlops", task.name)
        return {}
    trunk = champion.bundle.embedding_digest
    reference = Profile.load(folder, trunk=trunk)
    if answers is None:
        reference = reference.without("prediction", "estimate", "quality")
    if comparison == "classes-changed":
        reference = reference.without("label")
    if trunk != profiler.trunk:
        logger.info("task=%s drift.reference=without embedding reason=the champion embeds otherwise", task.name)
        reference = reference.without("embedding")
    if answers is not None:
        columns = {**columns, **prediction_columns(task, answers), **quality_columns(task, answers, labels)}
    return reference.compare(reference.of(columns, keys=keys), profiler.settings)


def _check_user_columns(profiler: Profiler, tables: Mapping[str, pa.Table]) -> None:
    there = {name for table in tables.values() for name in table.column_names}
    for name in profiler.tests:
        if name not in there:
            raise DataError(
                f"params.yaml: drift.columns.{name}: no task has such a column. Its sources have: "
                f"{', '.join(sorted(there))}."
            )


def _at_most(most: int, table: pa.Table) -> pa.Table:
    """The rows of `table`, or `most` of them evenly spread."""
    return table.take(np.linspace(0, table.num_rows - 1, min(most, table.num_rows)).astype(np.int64))


def _together(tables: list[pa.Table]) -> pa.Table:
    """Rows of all tasks, each row once, in the order of their ids."""
    columns = ["row_id", "text", "group"]
    table = pa.concat_tables([table.select(columns) for table in tables])
    _, first = np.unique(table["row_id"].to_numpy(zero_copy_only=False).astype(str), return_index=True)
    return table.take(first)


def _keys(table: pa.Table) -> list[str]:
    return [str(group) for group in table["group"].to_pylist()]
