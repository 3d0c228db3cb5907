"""A compiled pipeline run on this machine, task by task, with kfp.local's SubprocessRunner."""

import io
import logging
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from kfp import components, local

from mtlops.errors import ArtefactError, PlatformError
from mtlops.files import atomic_folder

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STARTED = re.compile(r"Executing task '(.+?)'")
_FINISHED = re.compile(r"Task '(.+?)' finished with status (\w+)")
_CACHED = re.compile(r"Task (\S+) cache hit")
_LOGGED = re.compile(r"\[KFP Executor [^]]*\]: (?!Looking for|Loading KFP|Got executor|Wrote executor|Did not)(.+)")
_SAID = re.compile(r"mtlops\.errors\.\w+: (.+)")
_WITHOUT_FILE = ("system.Metrics", "system.ClassificationMetrics")


@dataclass
class Task:
    """One task of a run.

    Attributes:
        name: the task's component.
        state: RUNNING, SUCCESS or FAILURE.
        seconds: from start to end; 0 for a cached one.
        cached: its outputs are those of an earlier run.
        outputs: names of the artifacts that it declares.
    """

    name: str
    state: str
    seconds: float = 0.0
    cached: bool = False
    outputs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Run:
    """What a run made.

    Attributes:
        tasks: in the order in which they started.
        outputs: the pipeline's own outputs: artifacts and parameters by name.
        log: everything that the run printed.
    """

    tasks: tuple[Task, ...]
    outputs: Mapping[str, Any]
    log: Path


class Progress(io.TextIOBase):
    """Reads what kfp.local prints: keeps all of it in a file and the tasks in a list.

    Args:
        file: gets every line.
        echo: gets the lines that the steps log, or None.
    """

    def __init__(self, file: TextIO, echo: TextIO | None) -> None:
        super().__init__()
        self.tasks: list[Task] = []
        self.said = ""
        self._file, self._echo = file, echo
        self._line = ""
        self._started: dict[str, float] = {}

    def write(self, text: str) -> int:
        """Takes text as it comes, in pieces of lines."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._take(_COLOUR.sub("", line))
        return len(text)

    def _take(self, line: str) -> None:
        self._file.write(line + "\n")
        self._file.flush()
        if found := _STARTED.search(line):
            self._started[found[1]] = time.monotonic()
            self.tasks.append(Task(found[1], "RUNNING"))
            self._say(f"{found[1]}: started")
        elif found := _CACHED.search(line):
            self.tasks.append(Task(found[1], "SUCCESS", cached=True))
            self._say(f"{found[1]}: cached")
        elif found := _FINISHED.search(line):
            self._finish(found[1], found[2])
        elif found := _SAID.search(line):
            self.said = found[1]
        elif found := _LOGGED.search(line):
            self._say(f"  {found[1]}")

    def _finish(self, name: str, state: str) -> None:
        task = next(t for t in reversed(self.tasks) if t.name == name)
        task.state, task.seconds = state, time.monotonic() - self._started[name]
        self._say(f"{name}: {state} after {task.seconds:.1f} s")

    def _say(self, text: str) -> None:
        if self._echo:
            print(text, file=self._echo, flush=True)


def run_pipeline(compiled: Path, arguments: Mapping[str, str], *, workspace: Path, echo: TextIO | None = None) -> Run:
    """Runs a compiled pipeline to its end.

    Args:
        compiled: pipeline YAML.
        arguments: values of its inputs.
        workspace: folder for outputs, logs and the cache of earlier runs.
        echo: stream for progress lines.

    Raises:
        ArtefactError: there is no such pipeline.
        PlatformError: a task failed, or said SUCCESS without leaving what it promised.
    """
    if not compiled.is_file():
        raise ArtefactError(f"{compiled}: not found. Run `python -m pipelines compile` first.")
    workspace.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=workspace.resolve()))
    log = folder / "log.txt"
    pipeline = components.load_component_from_file(str(compiled))
    with log.open("w", encoding="utf-8") as file:
        progress = Progress(file, echo)
        with _captured(progress):
            local.init(
                runner=local.SubprocessRunner(use_venv=False),
                pipeline_root=str(folder),
                enable_caching=True,
                cache_root=str(workspace.resolve() / "cache"),
            )
            try:
                outputs = pipeline(**arguments).outputs
            except RuntimeError as error:
                raise _failure(progress, log) from error
    _check_outputs(pipeline.pipeline_spec, progress.tasks, folder=folder, log=log)
    return Run(tasks=tuple(progress.tasks), outputs=outputs, log=log)


def copy_bundle(run: Run, folder: Path) -> None:
    """Copies the bundle that a run made to `folder`, as a whole or not at all.

    Raises:
        PlatformError: the run has none, or the folder cannot be written.
    """
    source = Path(run.outputs["bundle"].path)
    if not (source / "manifest.json").is_file():
        raise PlatformError(f"{source}: the run left no bundle here. Read {run.log}.")
    with atomic_folder(folder) as part:
        shutil.copytree(source, part, dirs_exist_ok=True)


def table(run: Run) -> str:
    """Returns the run as a table: task, state, seconds, cached, outputs."""
    width = max(len(task.name) for task in run.tasks)
    rows = [f"{'task':<{width}}  {'state':<8} {'seconds':>8}  {'cached':<6}  outputs"]
    rows += [
        f"{task.name:<{width}}  {task.state:<8} {task.seconds:>8.1f}  {'yes' if task.cached else 'no':<6}  "
        f"{' '.join(task.outputs)}"
        for task in run.tasks
    ]
    return "\n".join(rows)


@contextmanager
def _captured(progress: Progress) -> Iterator[None]:
    """Hands kfp.local's prints, logs and warnings to `progress`."""
    root = logging.getLogger()
    level, handlers = root.level, root.handlers
    handler = logging.StreamHandler(progress)
    root.handlers, root.level = [handler], logging.INFO
    try:
        with redirect_stdout(progress), warnings.catch_warnings():
            # It warns that the image is not called python, and that requests for resources mean nothing here.
            warnings.simplefilter("ignore")
            yield
    finally:
        root.handlers, root.level = handlers, level


def _failure(progress: Progress, log: Path) -> PlatformError:
    failed = [task.name for task in progress.tasks if task.state != "SUCCESS"]
    said = f" ({progress.said})" if progress.said else ""
    return PlatformError(f"pipeline task {', '.join(failed) or 'unknown'} failed{said}. The whole log: {log}")


def _check_outputs(spec: Any, tasks: list[Task], *, folder: Path, log: Path) -> None:
    """kfp.local may say SUCCESS for a task that left nothing: looks at every file that was promised."""
    for task in tasks:
        declared = spec.components[f"comp-{task.name}"].output_definitions.artifacts
        task.outputs = tuple(sorted(declared))
        for name, artifact in declared.items():
            if task.cached or artifact.artifact_type.schema_title in _WITHOUT_FILE:
                continue
            found = list(folder.glob(f"*/{task.name}/{name}"))
            if not found or not all(_holds_something(path) for path in found):
                raise PlatformError(f"pipeline task {task.name} left no output {name!r}. The whole log: {log}")


def _holds_something(path: Path) -> bool:
    return any(p.is_file() for p in path.rglob("*")) if path.is_dir() else path.stat().st_size > 0
