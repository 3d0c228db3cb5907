"""Facts that no single table shows: what tasks and splits share, and whether the manifest tells the truth.

Great Expectations looks at one table at a time. So each fact is computed once and becomes a row of one
evidence table, which says between which limits its number must lie; that table is then checked like any
other.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc

from mtlops.data import normalisation
from mtlops.data.prepared import SPLITS
from mtlops.data.rows import fold
from mtlops.tasks import Task
from mtlops.validation.checks import MOST_ROWS, NO_ROW_ID, Wording
from mtlops.validation.parts import LoadedPart, column_types, single_labels, wrong_columns

USEFUL_CLASS_ROWS = 5
"""With fewer rows of a class in a split, its F1 there is one of a handful of values."""

LARGEST_CLASS_SHARE = 0.99
"""Above it, almost every batch of training holds one class only."""

_PREPARE = "Run `mtlops prepare` again."
_SPLIT = f"A shared encoder would have seen the answer: {_PREPARE.lower()}"

WORDINGS: Mapping[str, Wording] = MappingProxyType({
    "columns": Wording(
        "each of the prepared columns with its type", f"No other check of this split was run. {_PREPARE}"
    ),
    "manifest_rows": Wording("as many rows as manifest.json says", _PREPARE),
    "manifest_labels": Wording("as many rows of each label as manifest.json says", _PREPARE),
    "label_space": Wording(
        "the kind and classes for which the data was prepared", f"suite.tasks has changed since: {_PREPARE.lower()}"
    ),
    "normalisation": Wording("the data prepared with the normalisation that serving uses", _PREPARE),
    "text_normalised": Wording("normalised texts, and their hash as row_id", _PREPARE),
    "shared_texts": Wording(
        "no text that is, but for case and punctuation, in another split or window of any task", _SPLIT
    ),
    "shared_groups": Wording("no group that is in another split or control window of any task", _SPLIT),
    "conflicting_labels": Wording(
        "one label for one text", "Remove all but the right one of these rows from the source."
    ),
    "class_in_training": Wording(
        "a training row of every class",
        "A class without one cannot be learned: add labelled rows, or remove the class.",
    ),
    "class_rows": Wording(
        f"at least {USEFUL_CLASS_ROWS} rows of every class",
        "Metrics of rarer classes are noise: add labelled rows, or merge classes.",
        "warning",
    ),
    "class_balance": Wording(
        f"no class on more than {LARGEST_CLASS_SHARE:.0%} of the rows",
        "Add rows of the other classes; do not trust the accuracy.",
        "warning",
    ),
    "label_varies": Wording("at least 2 different labels", "A constant needs no model: look at the label column."),
})  # fmt: skip


@dataclass(frozen=True)
class Fact:
    """One row of the evidence table.

    Attributes:
        check: a name of `WORDINGS`.
        task: name of the task, or None for the whole suite.
        split: the split it is about, or None for all of them.
        subject: what was counted: another split, a class, a column.
        observed: the number.
        lowest: least value that keeps the promise.
        highest: greatest value that keeps the promise.
        rows: `row_id` of rows to show when it is broken.
    """

    check: str
    task: str | None
    split: str | None
    subject: str
    observed: float
    lowest: float = 0.0
    highest: float = math.inf
    rows: tuple[str, ...] = ()


@dataclass(frozen=True)
class Keys:
    """What is kept of a part after its texts are gone, to compare it with the others.

    Attributes:
        part: `task/split`.
        task: name of the task.
        split: the split or window.
        is_apart: see `LoadedPart`.
        row_ids: (N,) string.
        texts: (N,) string: equal for texts that differ in case, punctuation and space only.
        groups: (N,) string.
        labels: (N,) string: each label, or list of labels (in any order, unless there is one a word), as one word.
    """

    part: str
    task: str
    split: str
    is_apart: bool
    row_ids: pa.ChunkedArray
    texts: pa.Array
    groups: pa.ChunkedArray
    labels: pa.Array


def evidence_table(facts: Sequence[Fact]) -> pa.Table:
    """Returns facts as a table, one row each, with their position in `fact`."""
    columns = ("check", "task", "split", "subject", "observed", "lowest", "highest")
    table = {name: [getattr(fact, name) for fact in facts] for name in columns}
    return pa.table({"fact": range(len(facts)), **table})


def column_fact(part: LoadedPart) -> Fact:
    """Returns how many columns of a part are missing or of another type than promised."""
    wrong = wrong_columns(part)
    faults = "".join(f", {name} {fault}" for name, fault in wrong.items())
    subject = f"wrong columns of {len(column_types(part.task))}{faults}"
    return Fact("columns", part.task.name, part.split, subject, len(wrong), highest=0)


def part_facts(part: LoadedPart) -> Iterator[Fact]:
    """Yields the facts about one part whose columns are right."""
    task, split = part.task.name, part.split
    rows = part.table.num_rows
    yield Fact("manifest_rows", task, split, "rows", rows, lowest=part.entry["rows"], highest=part.entry["rows"])
    yield _text_fact(part)
    counts = _label_counts(part)
    if part.task.classes:
        yield from _manifest_label_facts(part, counts)
    if split in SPLITS:
        yield from _class_facts(part, counts) if part.task.classes else _number_facts(part)


def label_space_fact(task: Task, *, kind: str, classes: Sequence[str]) -> Fact:
    """Returns whether a task still has the kind and the classes, in order, that the data was prepared for."""
    differs = (task.kind, task.classes) != (kind, tuple(classes))
    was = f"prepared as {kind}" + (f" of {', '.join(classes)}" if classes else "")
    return Fact("label_space", task.name, None, f"differences, {was}", int(differs), highest=0)


def normalisation_fact(prepared_with: str) -> Fact:
    """Returns whether the data was prepared with the normalisation that this version of mtlops serves with."""
    serves_with = normalisation.fingerprint()
    subject = f"differences, prepared with {prepared_with}, serving with {serves_with}"
    return Fact("normalisation", None, None, subject, int(prepared_with != serves_with), highest=0)


def keys(part: LoadedPart) -> Keys:
    """Returns what later comparisons need of a part."""
    return Keys(
        part.name,
        part.task.name,
        part.split,
        part.is_apart,
        row_ids=part.table["row_id"],
        texts=pa.array([_text_key(text) for text in part.table["text"].to_pylist()], pa.string()),
        groups=part.table["group"],
        labels=pa.array([_spell(label, part.task) for label in part.table["label"].to_pylist()], pa.string()),
    )


def shared_facts(parts: Sequence[Keys]) -> Iterator[Fact]:
    """Yields how many rows of each other split and window stand in a split too, for every pair of tasks.

    Windows may share rows with one another.
    """
    for one in parts:
        for other in parts:
            if _may_not_meet(one.split, other.split):
                yield _shared("shared_texts", one, other, pc.is_in(other.texts, value_set=_values(one.texts)))
                if other.is_apart:
                    yield _shared("shared_groups", one, other, pc.is_in(other.groups, value_set=_values(one.groups)))


def conflict_facts(parts: Sequence[Keys]) -> Iterator[Fact]:
    """Yields for each task how many texts carry different labels in its splits and windows."""
    for task in dict.fromkeys(part.task for part in parts):
        labels: dict[str | None, set[str | None]] = {}
        for part in parts:
            if part.task == task:
                for row_id, label in zip(part.row_ids.to_pylist(), part.labels.to_pylist(), strict=True):
                    labels.setdefault(row_id, set()).add(label)
        rows = sorted(row_id for row_id, found in labels.items() if row_id is not None and len(found) > 1)
        yield _none_allowed("conflicting_labels", task, None, "texts with several labels", rows)


def _text_fact(part: LoadedPart) -> Fact:
    rows = zip(part.table["row_id"].to_pylist(), part.table["text"].to_pylist(), strict=True)
    wrong = [row_id for row_id, text in rows if text is not None and not _is_normalised(row_id, text)]
    return _none_allowed(
        "text_normalised", part.task.name, part.split, "other rows", [row_id or NO_ROW_ID for row_id in wrong]
    )


def _is_normalised(row_id: str | None, text: str) -> bool:
    return normalisation.normalise(text) == text and _digest(text) == row_id


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _label_counts(part: LoadedPart) -> Counter[str]:
    return Counter(str(label) for label in single_labels(part)["label"].to_pylist() if label is not None)


def _manifest_label_facts(part: LoadedPart, counts: Mapping[str, int]) -> Iterator[Fact]:
    told = part.entry["label_counts"]
    for label in dict.fromkeys((*told, *sorted(counts))):
        expected = told.get(label, 0)
        yield Fact("manifest_labels", part.task.name, part.split, repr(label), counts[label], expected, expected)


def _class_facts(part: LoadedPart, counts: Mapping[str, int]) -> Iterator[Fact]:
    task, split, what = part.task.name, part.split, "words" if part.task.per_word else "rows"
    rows = max(sum(counts.values()) if part.task.per_word else part.table.num_rows, 1)
    for name in part.task.classes:
        if split == "train":
            yield Fact("class_in_training", task, split, repr(name), counts[name], lowest=1)
            share = counts[name] / rows
            yield Fact("class_balance", task, split, f"of the {what} are {name!r}", share, highest=LARGEST_CLASS_SHARE)
        yield Fact("class_rows", task, split, repr(name), counts[name], lowest=USEFUL_CLASS_ROWS)


def _number_facts(part: LoadedPart) -> Iterator[Fact]:
    if part.split == "train":
        different = pc.count_distinct(part.table["label"]).as_py()
        yield Fact("label_varies", part.task.name, part.split, "different labels", different, lowest=2)


def _may_not_meet(one: str, other: str) -> bool:
    if one not in SPLITS or one == other:
        return False
    return other not in SPLITS or SPLITS.index(one) < SPLITS.index(other)


def _shared(check: str, one: Keys, other: Keys, is_shared: pa.ChunkedArray) -> Fact:
    rows = sorted(set(other.row_ids.filter(is_shared).fill_null(NO_ROW_ID).to_pylist()))
    return _none_allowed(check, one.task, one.split, f"in {other.part}", rows)


def _none_allowed(check: str, task: str, split: str | None, subject: str, rows: Sequence[str]) -> Fact:
    return Fact(check, task, split, subject, len(rows), highest=0, rows=tuple(rows[:MOST_ROWS]))


def _values(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    known = column.drop_null()
    return known.combine_chunks() if isinstance(known, pa.ChunkedArray) else known


def _text_key(text: str | None) -> str | None:
    return None if text is None else _digest(fold(text))


def _spell(label: object, task: Task) -> str | None:
    if isinstance(label, list):
        names = map(str, label)
        return "|".join(names if task.per_word else sorted(names))
    return None if label is None else str(label)
