"""label-queue: production rows in, a file for people to label out; and back, as a labelled window that admit takes."""

import csv
import io
import json
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from pyarrow import BufferReader

from mtlops.bundle import Bundle
from mtlops.catalog import suggest
from mtlops.data.grouping import chance
from mtlops.data.labels import is_empty, read_labels
from mtlops.data.normalisation import normalise
from mtlops.data.prepared import SPLITS, read_manifest, read_split
from mtlops.data.rows import row_id
from mtlops.data.sources import QUEUE_SPLIT, window_text_column
from mtlops.data.tables import READERS, RawTable, read_table
from mtlops.decoding import Outputs, decode
from mtlops.drift.embeddings import Embeddings
from mtlops.drift.profile import Profile
from mtlops.drift.usefulness import spread, usefulness
from mtlops.errors import DataError, UsageError
from mtlops.files import write_text
from mtlops.params import Params
from mtlops.prediction_log import PREDICTIONS
from mtlops.serving.description import label_names
from mtlops.serving.runtime import Runtime
from mtlops.steps.profiles import REFERENCE
from mtlops.storage import open_storage
from mtlops.tasks import Task

USEFUL, RANDOM = "useful", "random"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Queued:
    """What was written: the file, rows by purpose, candidates that were looked at, and rows that were none, by why."""

    path: str
    rows: dict[str, int]
    candidates: int
    left_out: dict[str, int]


@dataclass(frozen=True)
class Answered:
    """What came back: the window's file, labelled rows by label, and rows without a label."""

    path: str
    labels: dict[str, int]
    unlabelled: int


@dataclass(frozen=True)
class Candidate:
    """A production row that might be labelled."""

    row_id: str
    text: str
    request_id: str


def fill_queue(
    params: Params,
    *,
    task: str,
    bundle: Path,
    log: str = "",
    table: Path | None = None,
    since: datetime | None = None,
    rows: int = 100,
    random_share: float = 0.3,
    most_candidates: int = 1000,
    prepared: Path = Path("data/prepared"),
    out: Path = Path("queue.csv"),
) -> Queued:
    """Writes the most useful unlabelled rows of a task, and some drawn at random, for people to label.

    The useful ones are for training. They are not like production, so nothing may be measured on them; the random ones
    are, and become the test rows of the window.

    Args:
        params: of the suite.
        task: to label for.
        bundle: folder of the bundle whose doubts and drift reference count.
        log: URL of a prediction log that keeps texts.
        table: or a file of texts, in the columns of the task's source.
        since: only rows of the log from then on.
        rows: how many to write.
        random_share: share of them that is drawn at random.
        most_candidates: rows that are looked at; of more, these are drawn by hash.
        prepared: folder of prepared splits; what they hold is not asked again. Need not exist.
        out: file to write, .csv or .jsonl.

    Raises:
        UsageError: the request cannot be.
        DataError: there is no row with a text to label.
        ArtefactError: the bundle or the log is damaged.
    """
    spec = _task(params, task)
    if (table is None) == (not log):
        raise UsageError("where are the rows? Give either --log URL or --table FILE.")
    if out.suffix not in (".csv", ".jsonl"):
        raise UsageError(f"--out {out}: the suffix must be .csv or .jsonl.")
    found = _of_table(params, task, table) if table is not None else _of_log(log, task, since)
    left_out: Counter[str] = Counter()
    candidates = _distinct(found, known=_known(prepared, task), left_out=left_out)
    if len(candidates) > most_candidates:
        left_out["over --candidates"] = len(candidates) - most_candidates
        candidates = _drawn(candidates, most_candidates, purpose="candidates")
    if not candidates:
        said = ", ".join(f"{count} {why}" for why, count in left_out.items()) or "no rows at all"
        raise DataError(f"{table or log}: no row of task {task} to label ({said}). Log texts, or look further back.")
    lines = _choose(spec, candidates, Bundle.open(bundle), rows=rows, random_share=random_share)
    label, text = params.suite.tasks[task].label, window_text_column(params, task)
    names = [label] if isinstance(label, str) else list(label)
    table_rows = [_line(line, text=text, labels=names) for line in lines]
    _write(out, table_rows)
    purposes = Counter(line["purpose"] for line in lines)
    logger.info("queue=%s task=%s rows=%d candidates=%d", out, task, len(lines), len(candidates))
    return Queued(str(out), dict(purposes), len(candidates), dict(left_out))


def take_answers(params: Params, *, task: str, answers: Path, out: Path) -> Answered:
    """Checks a queue that came back with labels, and writes it as the file of a labelled window.

    Raises:
        UsageError: the task or a suffix is none that is possible.
        DataError: a row is unknown, stands there twice, has another text than was asked, or a label that is none.
    """
    spec = _task(params, task)
    label, text = params.suite.tasks[task].label, window_text_column(params, task)
    names = [label] if isinstance(label, str) else list(label)
    found = read_table(answers)
    _refuse_bad(found, answers)
    for name in ("queue_id", "queue_purpose", text, *names):
        if name not in found.columns:
            raise DataError(f"{answers}: no column {name!r}. Answer in the file that `mtlops label-queue` wrote.")
    labels = read_labels(spec, found.columns, label=label)
    seen: dict[str, int] = {}
    kept, counts = [], Counter[str]()
    for position, line in enumerate(found.lines):
        where = f"{answers}: {found.unit} {line}"
        row = {name: found.columns[name][position] for name in ("queue_id", "queue_purpose", text, *names)}
        _check_answer(row, text=text, where=where, seen=seen, line=line)
        if position in labels.faults:
            raise DataError(f"{where}: {labels.faults[position]}. Correct the label.")
        if labels.values[position] is None:
            continue
        for name in _names(spec, labels.values[position], where=where):
            counts[name] += 1
        split = "test" if row["queue_purpose"] == RANDOM else "train"
        kept.append({text: row[text], **{name: row[name] for name in names}, QUEUE_SPLIT: split})
    if not kept:
        raise DataError(f"{answers}: no row has a label. Fill in the column {names[0]!r}.")
    _write(out, kept)
    return Answered(str(out), dict(counts), len(found.lines) - len(kept))


def _task(params: Params, name: str) -> Task:
    if name not in params.suite.tasks:
        raise UsageError(f"--task: no task {name!r}. {suggest(name, list(params.suite.tasks))}")
    return next(task for task in params.tasks() if task.name == name)


def _of_log(url: str, task: str, since: datetime | None) -> Iterator[Candidate]:
    """The rows of a prediction log that the task answered; "" where the log kept no text."""
    storage = open_storage(url)
    texts: dict[tuple[str, int], str] = {}
    columns = ["time", "request_id", "row", "task", "text"]
    for name in sorted(name for name in storage.sizes(PREDICTIONS) if name.endswith(".parquet")):
        content = storage.read(name)
        if content is None:  # a collection of old files ran meanwhile
            continue
        for row in pq.read_table(BufferReader(content), columns=columns).to_pylist():
            key = row["request_id"], row["row"]
            if row["text"] is not None:
                texts[key] = row["text"]
            if row["task"] == task and (since is None or row["time"] >= since.astimezone(UTC)):
                yield _candidate(texts.get(key, ""), row["request_id"])


def _of_table(params: Params, task: str, path: Path) -> Iterator[Candidate]:
    table, column = read_table(path), window_text_column(params, task)
    _refuse_bad(table, path)
    if column not in table.columns:
        raise DataError(f"{path}: no column {column!r} with the texts of task {task}.")
    for text in table.columns[column]:
        yield _candidate("" if text is None else str(text), "")


def _refuse_bad(table: RawTable, path: Path) -> None:
    if table.bad:
        raise DataError(f"{path}: {table.unit} {table.bad[0].line}: {table.bad[0].reason}. Correct it.")


def _candidate(text: str, request_id: str) -> Candidate:
    text = normalise(text)
    return Candidate(row_id(text), text, request_id)


def _distinct(found: Iterator[Candidate], *, known: set[str], left_out: Counter[str]) -> list[Candidate]:
    """Each text once, in the order of ids; counts in `left_out` what is none."""
    kept: dict[str, Candidate] = {}
    for one in found:
        if not one.text:
            left_out["without text"] += 1
        elif one.row_id in known:
            left_out["labelled already"] += 1
        elif one.row_id in kept:
            left_out["duplicate"] += 1
        else:
            kept[one.row_id] = one
    return [kept[name] for name in sorted(kept)]


def _known(prepared: Path, task: str) -> set[str]:
    if not (prepared / "manifest.json").exists() or task not in read_manifest(prepared)["tasks"]:
        return set()
    return {name for split in SPLITS for name in read_split(prepared, task, split)["row_id"].to_pylist()}


def _drawn(candidates: Sequence[Candidate], most: int, *, purpose: str) -> list[Candidate]:
    order = sorted(candidates, key=lambda one: chance(one.row_id, seed=0, purpose=purpose))
    return sorted(order[:most], key=lambda one: one.row_id)


def _choose(
    task: Task, candidates: Sequence[Candidate], bundle: Bundle, *, rows: int, random_share: float
) -> list[dict[str, Any]]:
    """The rows of the queue: the random ones are drawn first, so that usefulness has no say in them."""
    if task.per_word:
        raise UsageError(
            f"task {task.name!r} tags words: a label queue is for tasks with one answer to a text. Label texts of the "
            f"log elsewhere, and bring them in with `mtlops admit`."
        )
    runtime = Runtime(bundle)
    texts = [one.text for one in candidates]
    outputs = decode(task, runtime.logits(texts, task.name), bundle.calibrations[task.name])
    vectors = runtime.embeddings(texts)
    profile = Profile.load(bundle.folder / REFERENCE / task.name, trunk=bundle.embedding_digest)
    reference = profile.parts["embedding"].sketch
    assert isinstance(reference, Embeddings)
    found = usefulness(outputs, vectors, reference=reference)
    most_random = round(min(rows, len(candidates)) * random_share)
    at_random = {one.row_id for one in _drawn(candidates, most_random, purpose="label queue")}
    rest = np.asarray([i for i, one in enumerate(candidates) if one.row_id not in at_random], dtype=np.int64)
    useful = rest[spread(found.score[rest], vectors[rest], most=rows - len(at_random))] if len(rest) else rest
    chosen = [(int(i), USEFUL) for i in useful]
    chosen += [(i, RANDOM) for i, one in enumerate(candidates) if one.row_id in at_random]
    return [
        {
            "candidate": candidates[i], "purpose": purpose, "answered": _answer(task, outputs, i),
            "uncertainty": found.uncertainty[i], "density": found.density[i], "drift": found.drift[i],
            "score": found.score[i],
        }
        for i, purpose in sorted(chosen, key=lambda one: candidates[one[0]].row_id)
    ]  # fmt: skip


def _answer(task: Task, outputs: Outputs, row: int) -> str:
    if outputs.values is not None:
        return f"{float(outputs.values[row]):g}"
    return "|".join(label_names(task, outputs, row) or ())


def _line(found: Mapping[str, Any], *, text: str, labels: Sequence[str]) -> dict[str, Any]:
    one: Candidate = found["candidate"]
    factors = {f"queue_{name}": f"{found[name]:.6f}" for name in ("uncertainty", "density", "drift", "score")}
    return {
        text: one.text, **dict.fromkeys(labels, ""), "queue_id": one.row_id, "queue_purpose": found["purpose"],
        "queue_answered": found["answered"], **factors, "queue_request_id": one.request_id,
    }  # fmt: skip


def _check_answer(row: Mapping[str, Any], *, text: str, where: str, seen: dict[str, int], line: int) -> None:
    name = row["queue_id"]
    if is_empty(name) or row["queue_purpose"] not in (USEFUL, RANDOM):
        raise DataError(f"{where}: is no row of a queue. Answer in the file that `mtlops label-queue` wrote.")
    if row_id(normalise(str(row[text] or ""))) != name:
        raise DataError(f"{where}: column {text!r} is not the text that was asked. Put it back, or remove the row.")
    if name in seen:
        raise DataError(f"{where}: the row stands on {seen[name]} already. Remove one.")
    seen[name] = line


def _names(task: Task, label: Any, *, where: str) -> list[str]:
    """The classes of an answer, checked; a regression's is checked against its range."""
    if task.kind == "regression":
        low, high = task.range or (float("-inf"), float("inf"))
        if not low <= label <= high:
            raise DataError(f"{where}: {label:g} is outside {low:g} to {high:g}. Correct the label.")
        return ["numbers"]
    names = list(label) if isinstance(label, tuple) else [label]
    for name in names:
        if name not in task.classes:
            raise DataError(f"{where}: {name!r} is not one of {', '.join(task.classes)}. Correct the label.")
    return names or ["(none)"]


def _write(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    if path.suffix not in READERS or path.suffix == ".parquet":
        raise UsageError(f"{path}: the suffix must be .csv or .jsonl.")
    if path.suffix != ".csv":
        write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        return
    file = io.StringIO(newline="")
    writer = csv.DictWriter(file, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, file.getvalue())
