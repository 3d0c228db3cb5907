"""Scenarios: what `make demo` and `python -m monitoring replay --scenario` play, and what must come of it.

A file lists phases of traffic and says what the monitor must find after each, what it must ask for, and what the gate
must say. Those that come with mtlops lie in `monitoring/scenarios/`.
"""

from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from monitoring.replay import Traffic, read_traffic
from mtlops.catalog import suggest
from mtlops.drift.profile import ENCODER
from mtlops.errors import UsageError
from mtlops.tasks import Task

FOLDER = Path(__file__).parent / "scenarios"
DEFAULT = "topic"

Level = Literal["ok", "suspected", "drifted"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Part):
    """Rows of one kind in a phase.

    Attributes:
        rows: name of a production window in `data/prepared/windows`, or a table as `replay` reads it. A phase goes on
            where an earlier one stopped.
        tasks: that the rows are asked for; none: all.
        number: of rows.
        labels: come back as they are (`true`), of other rows (`shuffled`), or not at all (`none`).
        garbled: share of the texts that arrive as UTF-8 read as UTF-16.
    """

    rows: str
    tasks: list[str] = []
    number: Annotated[int, Field(ge=1)]
    labels: Literal["true", "shuffled", "none"] = "true"
    garbled: Annotated[float, Field(ge=0, le=1)] = 0.0


class Phase(_Part):
    """A phase of traffic.

    Attributes:
        name: one word.
        about: for people: what comes in.
        traffic: its sources; their requests take turns.
        levels: of tasks, or of `encoder`, that the monitor must come to.
        causes: of tasks: the likeliest cause that the monitor must name.
    """

    name: str
    about: str
    traffic: Annotated[list[Source], Field(min_length=1)]
    levels: dict[str, Level] = {}
    causes: dict[str, str] = {}


class Expected(_Part):
    """What must come of it.

    Attributes:
        scope: `tasks`: some are trained again; `suite`: training everything is recommended; `none`: nothing is asked.
        tasks: that are asked for, in one request or in several.
        verdicts: each request must end with one of these.
        gains: tasks that must do better on rows of the last phase's kind that nobody labelled.
    """

    scope: Literal["tasks", "suite", "none"]
    tasks: list[str] = []
    verdicts: list[Literal["PROMOTE", "HOLD", "REJECT"]] = []
    gains: list[str] = []


class Scenario(_Part):
    """A whole scenario.

    Attributes:
        about: for people, one or two sentences.
        window_rows: rows, and labels, of a window of the monitor.
        probes: rows that are asked for every task before and after.
        background: rows that come in as long as a pipeline runs, each for its own tasks.
        phases: in their order.
        expect: what must come of it.
    """

    about: str
    window_rows: Annotated[int, Field(ge=20)] = 400
    probes: str = "control-reviews"
    background: list[str] = ["control-reviews", "control-topic"]
    phases: Annotated[list[Phase], Field(min_length=1)]
    expect: Expected

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if self.expect.scope == "tasks" and not (self.expect.tasks and self.expect.verdicts):
            raise ValueError("expect: scope `tasks` needs `tasks` and `verdicts`.")
        if not set(self.expect.gains) <= set(self.expect.tasks):
            raise ValueError("expect.gains: must be among expect.tasks.")
        return self

    def check_tasks(self, tasks: list[str], *, where: str) -> None:
        """Raises UsageError when a task that is named is none of these."""
        named = {name for phase in self.phases for source in phase.traffic for name in source.tasks}
        named |= {name for phase in self.phases for name in (*phase.levels, *phase.causes)} - {ENCODER}
        for name in sorted(named | set(self.expect.tasks)):
            if name not in tasks:
                raise UsageError(f"{where}: no task {name!r}. {suggest(name, tasks)}")


def scenario_names() -> list[str]:
    """Returns the names of the scenarios that come with mtlops."""
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def read_scenario(name: str) -> Scenario:
    """Returns a scenario.

    Args:
        name: of one that comes with mtlops, or a YAML file.

    Raises:
        UsageError: there is none, or it is not as it must be; every fault is named.
    """
    path = FOLDER / f"{name}.yaml" if name in scenario_names() else Path(name)
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError:
        raise UsageError(f"--scenario {name}: no such file. {suggest(name, scenario_names())}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: is not YAML ({' '.join(str(error).split())}).") from None
    try:
        return Scenario.model_validate(content)
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc'])) or 'scenario'}: {fault['msg']}" for fault in error.errors())
        raise UsageError("\n".join(f"{path}: {fault}" for fault in faults)) from None


class Rows:
    """The rows of every source of a scenario, each handed out once.

    Args:
        windows: folder of the prepared production windows.
        tasks: of the bundle.
    """

    def __init__(self, windows: Path, tasks: tuple[Task, ...]) -> None:
        self._windows, self.tasks = windows, tasks
        self._traffic: dict[str, Traffic] = {}
        self._used: dict[str, int] = {}

    def next(self, source: Source) -> Traffic:
        """Returns the next rows of a source, as they come in.

        Raises:
            UsageError: it has too few.
        """
        found = self.rest(source.rows)
        if len(found.texts) < source.number:
            raise UsageError(f"{source.rows}: has {len(found.texts)} rows left, the scenario wants {source.number}.")
        self._used[source.rows] = self._used.get(source.rows, 0) + source.number
        texts = list(found.texts[: source.number])
        for row in range(round(source.garbled * len(texts))):
            texts[row] = garble(texts[row])
        labels = {name: values[: source.number] for name, values in found.labels.items()}
        order = np.random.default_rng(1).permutation(source.number)
        if source.labels == "shuffled":
            labels = {name: [values[i] for i in order] for name, values in labels.items()}
        mixed = np.random.default_rng(2).permutation(source.number)
        return _taken(Traffic(texts, found.groups, {} if source.labels == "none" else labels), mixed.tolist())

    def rest(self, rows: str) -> Traffic:
        """Returns the rows of a source that no phase has used so far, in a random order that is always the same."""
        if rows not in self._traffic:
            folder = self._windows / rows
            whole = read_traffic(folder if folder.is_dir() else Path(rows), self.tasks)
            order = np.random.default_rng(0).permutation(len(whole.texts)).tolist()
            self._traffic[rows] = _taken(whole, order)
        whole = self._traffic[rows]
        return _taken(whole, list(range(self._used.get(rows, 0), len(whole.texts))))


def garble(text: str) -> str:
    """Returns a text as a program shows it that takes its UTF-8 for UTF-16."""
    content = text.encode()
    return (content + b" " * (len(content) % 2)).decode("utf-16-le", "replace")


def _taken(traffic: Traffic, rows: list[int]) -> Traffic:
    labels = {name: [values[i] for i in rows] for name, values in traffic.labels.items()}
    asked = None if traffic.asked is None else [traffic.asked[i] for i in rows]
    return Traffic([traffic.texts[i] for i in rows], [traffic.groups[i] for i in rows], labels, asked)
