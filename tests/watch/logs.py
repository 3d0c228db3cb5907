"""A bundle that is nothing but references, and logs of traffic against it; every file has the real layout."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from mtlops.bundle import Bundle, write_manifest
from mtlops.decoding import Outputs
from mtlops.drift.columns import (
    Column,
    embedding_column,
    label_columns,
    prediction_columns,
    quality_columns,
)
from mtlops.drift.finding import Settings
from mtlops.drift.profile import ENCODER, Profile
from mtlops.params import Drift
from mtlops.prediction_log import (
    FEEDBACK,
    FEEDBACK_SCHEMA,
    PREDICTION_SCHEMA,
    PREDICTIONS,
    file_name,
)
from mtlops.tasks import Task

MOOD = Task("mood", "multiclass", ("bad", "fair", "good"))
STARS = Task("stars", "regression", range=(1.0, 5.0))
TAGS = Task("tags", "multilabel", ("a", "b"))
TASKS = (MOOD, STARS, TAGS)
START = datetime(2026, 3, 1, tzinfo=UTC)
SETTINGS = Settings.of(Drift())
WIDTH = 6
SHARES = (0.3, 0.3, 0.4)


class World:
    """Where rows come from.

    Args:
        seed: of its chance.
        shift: of texts, in standard deviations.
        shares: of the classes of mood.
        concept: share of mood's labels that are not what they were.
        width: numbers in an embedding.
    """

    def __init__(
        self, seed: int, *, shift: float = 0.0, shares: Sequence[float] = SHARES, concept: float = 0.0,
        width: int = WIDTH,
    ) -> None:  # fmt: skip
        self.rng = np.random.default_rng(seed)
        self.shift, self.shares, self.concept, self.width = shift, np.asarray(shares), concept, width

    def texts(self, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """Statistics and embeddings of N texts."""
        statistics = {
            "characters": self.rng.normal(100 + 20 * self.shift, 20, rows),
            "words": self.rng.poisson(12, rows) * 1.0,
        }
        return statistics, (self.rng.normal(size=(rows, self.width)) + self.shift).astype(np.float32)

    def answers(self, task: Task, rows: int) -> tuple[Outputs, list[Any]]:
        """Calibrated answers and true labels."""
        rng = self.rng
        if task.kind == "regression":
            values = rng.uniform(1, 5, rows).astype(np.float32)
            return Outputs(values=values), np.clip(values + rng.normal(0, 0.3, rows), 1, 5).tolist()
        if task.kind == "multilabel":
            shares = rng.beta(1, 1, size=(rows, 2)).astype(np.float32)
            truth = rng.random((rows, 2)) < shares
            names = np.asarray(task.classes)
            return Outputs(probabilities=shares, labels=shares >= 0.5), [names[row].tolist() for row in truth]
        true = rng.choice(3, size=rows, p=self.shares)
        seen = np.eye(3)[true] * 2.0 + rng.gumbel(size=(rows, 3))
        odds = np.exp(seen * 1.2) * SHARES
        shares = (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32)
        moved = rng.random(rows) < self.concept
        true = np.where(moved, (true + 1) % 3, true)
        return Outputs(probabilities=shares, labels=shares.argmax(axis=1)), [task.classes[k] for k in true]


def write_bundle(
    folder: Path, *, seed: int = 0, rows: int = 4000, tasks: Sequence[Task] = TASKS, world: World | None = None
) -> Bundle:
    """Writes a bundle with real references of synthetic rows; task files say which seed they are of."""
    world = world or World(seed)
    statistics, vectors = world.texts(rows)
    inputs = {f"text.{name}": Column("input", "numeric", values) for name, values in statistics.items()}
    inputs |= embedding_column(vectors)
    keys = [f"r{k}" for k in range(rows)]
    everything = Profile.fit(ENCODER, inputs, trunk="t" * 64, settings=SETTINGS, keys=keys)
    everything.save(folder / "reference" / ENCODER)
    facts = {}
    for task in tasks:
        outputs, labels = world.answers(task, rows)
        columns = {**inputs, **label_columns(task, labels), **prediction_columns(task, outputs),
                   **quality_columns(task, outputs, task.encode(labels))}  # fmt: skip
        profile = Profile.fit(task.name, columns, trunk="t" * 64, settings=SETTINGS, keys=keys, like=everything)
        profile.save(folder / "reference" / task.name)
        (folder / f"tasks/{task.name}").mkdir(parents=True)
        (folder / f"tasks/{task.name}/head.safetensors").write_bytes(f"{seed} {task.name}".encode())
        facts[task.name] = {**task.facts(), "metrics": {}, "verdict": "PROMOTE", "primary": "macro_f1"}
    (folder / "golden.json").write_text('{"schema_version": 1, "rows": []}')
    write_manifest(folder, {"suite": "small", "trunk": {"trunk_sha256": "t" * 64}, "tasks": facts, "params": {},
                            "created": "2026-01-01T00:00:00Z", "verdict": "PROMOTE",
                            "code": {"version": "0", "digest": "0" * 64}, "parent": None,
                            "data": {"manifest_sha256": "0" * 64, "fingerprint": "0"}})  # fmt: skip
    return Bundle.open(folder)


class Writer:
    """Writes a log as a server would: numbered files whose rows go on in time.

    Args:
        log: folder.
        bundle: id of the bundle that answers.
        name: of the writer.
        per_day: rows a day.
    """

    def __init__(self, log: Path, bundle: str, *, name: str = "w1", per_day: float = 2000.0) -> None:
        self.log, self.bundle, self.name = log, bundle, name
        self.gap = timedelta(days=1.0 / per_day)
        self.now = START
        self.numbers = {PREDICTIONS: 0, FEEDBACK: 0}
        self.row = 0
        self.truth: list[dict[str, Any]] = []

    def traffic(self, world: World, rows: int, *, tasks: Sequence[Task] = TASKS, change: Any = None) -> Path:
        """Writes one file of `rows` requests, each asked for `tasks`; `change` may alter the entries."""
        statistics, vectors = world.texts(rows)
        answers = {task: world.answers(task, rows) for task in tasks}
        found: list[dict[str, Any]] = []
        first = self.now
        for k in range(rows):
            common = {"time": self.now, "request_id": f"{self.name}-{self.row}", "row": 0, "bundle_id": self.bundle,
                      "role": "champion"}  # fmt: skip
            said = [(name, float(values[k])) for name, values in statistics.items()]
            texts: Mapping[str, Any] = {"statistics": said, "embedding": vectors[k]}
            for task in tasks:
                outputs, labels = answers[task]
                found.append({**common, "task": task.name, **_answer(task, outputs, k), **texts})
                self.truth.append({**common, "task": task.name, **_label(task, labels[k])})
                texts = {}
            self.row += 1
            self.now += self.gap
        if change:
            change(found)
        return self._write(PREDICTIONS, first, pa.Table.from_pylist(found, schema=PREDICTION_SCHEMA))

    def feedback(self, *, tasks: Sequence[Task] = TASKS, change: Any = None) -> Path:
        """Writes the true labels of everything since the last call."""
        names = {task.name for task in tasks}
        found = [
            {key: entry.get(key) for key in FEEDBACK_SCHEMA.names} for entry in self.truth if entry["task"] in names
        ]
        self.truth = []
        if change:
            change(found)
        return self._write(FEEDBACK, self.now, pa.Table.from_pylist(found, schema=FEEDBACK_SCHEMA))

    def skip(self, table: str = PREDICTIONS) -> None:
        """Leaves out a number, as a lost file does."""
        self.numbers[table] += 1

    def _write(self, table: str, first: datetime, rows: pa.Table) -> Path:
        path = self.log / file_name(table, first, writer=self.name, sequence=self.numbers[table])
        self.numbers[table] += 1
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(rows, path)
        return path


def _answer(task: Task, outputs: Outputs, k: int) -> dict[str, Any]:
    if outputs.values is not None:
        return {"value": float(outputs.values[k])}
    assert outputs.labels is not None and outputs.probabilities is not None
    chosen = outputs.labels[k]
    names = (
        [name for name, is_set in zip(task.classes, chosen, strict=True) if is_set]
        if task.kind == "multilabel"
        else [task.classes[int(chosen)]]
    )
    return {"label": names, "probabilities": outputs.probabilities[k]}


def _label(task: Task, label: Any) -> dict[str, Any]:
    if task.kind == "regression":
        return {"value": float(label)}
    return {"label": label if isinstance(label, list) else [label]}
