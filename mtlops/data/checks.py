"""Behavioural checks that a user writes as data: what must hold of the answers to texts made for the purpose.

Source: Ribeiro et al. 2020, "Beyond Accuracy: Behavioral Testing of NLP Models with CheckList", sections 2.2 and 2.3
(arXiv:2005.04118): the three types of test. `prepare` reads the files strictly and writes them to `behaviour.json`.
"""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from mtlops import catalog
from mtlops.catalog import suggest
from mtlops.errors import ArtefactError, DataError
from mtlops.files import read_json, sha256_file, to_json
from mtlops.params import StrictLoader
from mtlops.tasks import Task

SCHEMA_VERSION = 1
BEHAVIOUR = "behaviour.json"
"""Name of the file in the prepared folder; there is one only when params.yaml names checks."""

_MADE_BY = "mtlops prepare"


def _not_blank(text: str) -> str:
    if not text.strip():
        raise ValueError("must not be blank")
    return text


Text = Annotated[str, AfterValidator(_not_blank)]
Pair = tuple[Text, Text]


class _Check(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=False, allow_inf_nan=False)

    name: Text
    """What must hold, in a few words."""
    task: str
    """Whose answers are looked at."""


class Invariance(_Check):
    """The second text of a pair must be answered like the first."""

    type: Literal["invariance"]
    tolerance: float | None = Field(None, ge=0)
    """No probability (a regression's value) may move by more; without it, the label must be the same."""
    cases: list[Pair] = Field(min_length=1)


class Directional(_Check):
    """From the first text of a pair to the second, a probability (a regression's value) must rise or fall."""

    type: Literal["directional"]
    class_: str | None = Field(None, alias="class", coerce_numbers_to_str=True)
    """Whose probability; none for a regression."""
    direction: Literal["rise", "fall"]
    delta: float = Field(0.0, ge=0)
    """By at least this much; 0: by anything at all."""
    cases: list[Pair] = Field(min_length=1)


class Minimum(_Check):
    """Minimum functionality: each text must get the label."""

    type: Literal["minimum"]
    label: str | list[str] | float
    """A class; for multilabel the list of all classes that hold; for a regression a number."""
    tolerance: float | None = Field(None, ge=0)
    """How far a regression's value may be from the label."""
    cases: list[Text] = Field(min_length=1)

    @property
    def classes(self) -> tuple[str, ...]:
        """The classes that each text must get, of any task but a regression; YAML reads a class named 1 as a number."""
        names = self.label if isinstance(self.label, list) else [self.label]
        return tuple(f"{name:g}" if isinstance(name, float) else name for name in names)


Check = Annotated[Invariance | Directional | Minimum, Field(discriminator="type")]
_CHECK: TypeAdapter[Invariance | Directional | Minimum] = TypeAdapter(Check)


def check_files(names: Sequence[str], *, base: Path) -> dict[str, Path]:
    """Returns the file of each name in `data.behaviour`: a built-in one, or one of the user's in the folder `base`."""
    built_in = {name: Path(__file__).with_name(entry.code) for name, entry in catalog.BEHAVIOUR.items()}
    return {name: built_in.get(name, base / name) for name in names}


def read_checks(path: Path, *, tasks: Sequence[Task], left_out: Sequence[str] = ()) -> list[Check]:
    """Returns the checks in a file that are about one of `tasks`.

    Args:
        path: YAML (a list of checks) or JSON Lines (one check a line).
        tasks: the suite's tasks.
        left_out: tasks whose checks are passed over.

    Raises:
        DataError: the file is missing or says something that cannot be meant; one line for each fault, with its line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = suggest(path.name, list(catalog.BEHAVIOUR))
        raise DataError(f"{path}: not found. Put the file there, or correct data.behaviour: {hint}") from None
    except (UnicodeDecodeError, OSError) as error:
        raise DataError(f"{path}: cannot be read as UTF-8 text: {error}. Correct data.behaviour.") from None
    known = {task.name: task for task in tasks}
    checks: list[Check] = []
    faults: list[str] = []
    first: dict[tuple[str, str], int] = {}
    for entry in _json_lines(path, text) if path.suffix.lower() in (".jsonl", ".ndjson") else _yaml(path, text):
        try:
            check = _CHECK.validate_python(entry.value)
        except ValidationError as error:
            faults += [f"{path}:{entry.line_of(_place(fault))}: {_explain(fault)}" for fault in error.errors()]
            continue
        if check.task in left_out:
            continue
        fault = _unfit(check, known)
        earlier = first.setdefault((check.task, check.name), entry.line)
        if fault is None and earlier != entry.line:
            fault = f"name: task {check.task!r} has a check {check.name!r} in line {earlier} already. Rename one."
        if fault is None:
            checks.append(check)
        else:
            faults.append(f"{path}:{entry.line}: {fault}")
    if faults:
        raise DataError("\n".join(faults))
    return checks


def write_behaviour(folder: Path, checks: Sequence[Check], *, files: Mapping[str, Path]) -> None:
    """Writes behaviour.json into a prepared folder: the checks, and the hashes of the `files` they come from."""
    value = {
        "schema_version": SCHEMA_VERSION,
        "files": {name: sha256_file(path) for name, path in files.items()},
        "checks": [check.model_dump(mode="json", by_alias=True) for check in checks],
    }
    (folder / BEHAVIOUR).write_text(to_json(value) + "\n", encoding="utf-8")


def read_behaviour(folder: Path, *, files: Sequence[str]) -> list[Check]:
    """Returns the checks of a prepared folder; none when params.yaml names no `files`.

    Raises:
        ArtefactError: the folder was prepared with other files, or behaviour.json is damaged.
    """
    if not files:
        return []
    path = folder / BEHAVIOUR
    value = read_json(path, made_by=_MADE_BY)
    try:
        if value["schema_version"] != SCHEMA_VERSION or list(value["files"]) != list(files):
            raise ArtefactError(f"{path}: was made from other files than {list(files)}. Run `{_MADE_BY}` again.")
        return [_CHECK.validate_python(check) for check in value["checks"]]
    except (KeyError, TypeError, ValidationError) as error:
        raise ArtefactError(f"{path}: is damaged ({type(error).__name__}). Run `{_MADE_BY}` again.") from None


class _Entry:
    """One check as it stands in a file, with the lines on which its parts stand."""

    def __init__(self, value: Any, line: int, node: yaml.Node | None = None) -> None:
        self.value, self.line, self._node = value, line, node

    def line_of(self, place: Sequence[str | int]) -> int:
        """Returns the line of the part at `place`, or of the nearest thing around it."""
        node, line = self._node, self.line
        for step in place:
            if isinstance(node, yaml.MappingNode):
                node = next((value for key, value in node.value if key.value == step), None)
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
            else:
                node = None
            if node is None:
                break
            line = node.start_mark.line + 1
        return line


def _yaml(path: Path, text: str) -> Iterator[_Entry]:
    try:
        loader = StrictLoader(text)
        root = loader.get_single_node()
        if not isinstance(root, yaml.SequenceNode):
            raise DataError(f"{path}: must hold a list of checks, each starting with `- name:`.")
        for node in root.value:
            yield _Entry(loader.construct_document(node), node.start_mark.line + 1, node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f":{mark.line + 1}" if mark else ""
        raise DataError(f"{path}{line}: {error.problem}.") from None
    except yaml.YAMLError as error:
        raise DataError(f"{path}: is not YAML: {error}.") from None


def _json_lines(path: Path, text: str) -> Iterator[_Entry]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                yield _Entry(json.loads(line), number)
            except (json.JSONDecodeError, RecursionError) as error:
                raise DataError(f"{path}:{number}: is not JSON ({getattr(error, 'msg', 'nested too deep')}).") from None


def _place(fault: Any) -> list[str | int]:
    """Where a fault lies in the file, without the name of the type, which pydantic puts first."""
    types = ("invariance", "directional", "minimum")
    return [step for i, step in enumerate(fault["loc"]) if not (i == 0 and step in types)]


def _explain(fault: Any) -> str:
    place = _place(fault)
    at = f"{'.'.join(map(str, place))}: " if place else ""
    kind = fault["type"]
    if kind == "extra_forbidden":
        models: dict[str, type[_Check]] = {"invariance": Invariance, "directional": Directional, "minimum": Minimum}
        model = models[str(fault["loc"][0])]
        return f"{at}unknown key. {suggest(str(place[-1]), [f.alias or n for n, f in model.model_fields.items()])}"
    if kind == "missing":
        return f"{at}is required."
    if kind == "value_error":
        return f"{at}{fault['ctx']['error']}."
    if kind == "union_tag_not_found":
        return "type: is required: invariance, directional or minimum."
    if kind == "union_tag_invalid":
        return f"type: unknown choice {fault['ctx']['tag']!r}. Choose one of: directional, invariance, minimum."
    message = fault["msg"][0].lower() + fault["msg"][1:].removesuffix(".")
    return f"{at}{message}; {json.dumps(fault['input'], default=str)} given."


def _unfit(check: Check, tasks: Mapping[str, Task]) -> str | None:
    """Returns why a check cannot be meant for its task, or None."""
    if check.task not in tasks:
        return f"task: no task {check.task!r} in suite.tasks. {suggest(check.task, list(tasks))}"
    task = tasks[check.task]
    if task.per_word:
        return f"task: {task.name} tags words; checks are for tasks with one answer to a text."
    is_value = task.kind == "regression"
    if isinstance(check, Invariance):
        return "tolerance: is required for a regression." if is_value and check.tolerance is None else None
    if isinstance(check, Directional):
        if is_value:
            return None if check.class_ is None else "class: a regression has none. Remove it."
        return "class: is required." if check.class_ is None else _unknown(check.class_, task, "class")
    if is_value:
        return _unfit_number(check)
    if check.tolerance is not None:
        return "tolerance: is for a regression. Remove it."
    if task.kind == "multilabel":
        if not isinstance(check.label, list):
            return f"label: must be the list of all classes that hold, as {task.name} is multilabel."
        return next((fault for name in check.classes if (fault := _unknown(name, task, "label"))), None)
    if isinstance(check.label, list):
        return f"label: must be one class, as {task.name} is {task.kind}."
    return _unknown(check.classes[0], task, "label")


def _unfit_number(check: Minimum) -> str | None:
    if not isinstance(check.label, float) or not math.isfinite(check.label):
        return "label: must be a number, as the task is a regression."
    return "tolerance: is required for a regression." if check.tolerance is None else None


def _unknown(name: str, task: Task, key: str) -> str | None:
    if name in task.classes:
        return None
    return f"{key}: {name!r} is no class of {task.name}. {suggest(name, list(task.classes))}"
