"""A compiled pipeline run on this machine, task by task, in processes or in containers, with kfp.local."""

import builtins
import io
import json
import logging
import os
import re
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kfp import components, local

from mtlops import errors
from mtlops.errors import MtlopsError, PlatformError
from mtlops.files import atomic_folder
from pipelines.compiling import read_compiled, with_image

if TYPE_CHECKING:
    from pipelines.containers import Containers

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_STARTED = re.compile(r"Executing task '(.+?)'")
_FINISHED = re.compile(r"Task '(.+?)' finished with status (\w+)")
_CACHED = re.compile(r"Task (\S+) cache hit")
_LOGGED = re.compile(r"\[KFP Executor [^]]*\]: (?!Looking for|Loading KFP|Got executor|Wrote executor|Did not)(.+)")
_RAISED = re.compile(r"\s*(?:mtlops\.errors\.(?P<error>\w+): (?P<said>.+)|(?P<other>[\w.]*(?:Error|Exception)\b.*))")
_WITHOUT_FILE = ("system.Metrics", "system.ClassificationMetrics")


@dataclass
class Task:
    """One task of a run.

    Attributes:
        name: the task's component.
        state: RUNNING, SUCCESS, FAILURE, or LOST: kfp calls it a success, but it wrote no result.
        seconds: from start to end; 0 for a cached one.
        cached: its outputs are those of an earlier run.
        outputs: names of the artifacts that it declares.
        log: file with everything that it printed; empty for a cached one.
        error: name of the error in `mtlops.errors` that it raised, or empty.
        said: what the last error that it raised says.
    """

    name: str
    state: str
    log: str = ""
    seconds: float = 0.0
    cached: bool = False
    outputs: tuple[str, ...] = ()
    error: str = ""
    said: str = ""


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
    """Reads what kfp.local prints: keeps it as log.txt and as one file for each task, and the tasks in a list.

    Args:
        folder: root of the run; gets the logs.
        echo: gets the lines that the steps log, or None.
    """

    def __init__(self, folder: Path, *, echo: TextIO | None) -> None:
        super().__init__()
        self.tasks: list[Task] = []
        self.log = folder / "log.txt"
        self._folder, self._echo = folder, echo
        self._line = ""
        self._started: dict[str, list[float]] = {}
        (folder / "logs").mkdir()

    def write(self, text: str) -> int:
        """Takes text as it comes, in pieces of lines."""
        *lines, self._line = (self._line + text).split("\n")
        for line in lines:
            self._take(_COLOUR.sub("", line))
        return len(text)

    def _take(self, line: str) -> None:
        if found := _STARTED.search(line):
            self._started.setdefault(found[1], []).append(time.monotonic())
            log = self._folder / f"logs/{len(self.tasks) + 1:02}-{found[1]}.txt"
            self.tasks.append(Task(found[1], "RUNNING", log=str(log)))
            self._say(f"{found[1]}: started")
        elif found := _CACHED.search(line):
            self.tasks.append(Task(found[1], "SUCCESS", cached=True))
            self._say(f"{found[1]}: cached")
        elif found := _FINISHED.search(line):
            self._finish(found[1], found[2])
        elif (found := _RAISED.fullmatch(line)) and self.tasks:
            self.tasks[-1].error, self.tasks[-1].said = found["error"] or "", found["said"] or found["other"]
        elif found := _LOGGED.search(line):
            self._say(f"  {found[1]}")
        self._keep(line)

    def _keep(self, line: str) -> None:
        for path in {str(self.log), self.tasks[-1].log if self.tasks else ""} - {""}:
            with open(path, "a", encoding="utf-8") as file:  # noqa: PTH123
                file.write(line + "\n")

    def _finish(self, name: str, state: str) -> None:
        # Of tasks of one name side by side kfp does not say which has ended: the first of them is taken.
        task = next(t for t in self.tasks if t.name == name and t.state == "RUNNING")
        task.state, task.seconds = state, time.monotonic() - self._started[name].pop(0)
        if state == "SUCCESS" and self._results(name) < self._successes(name):
            task.state = "LOST"
        self._say(f"{name}: {task.state} after {task.seconds:.1f} s")

    def _successes(self, name: str) -> int:
        return sum(task.name == name and task.state == "SUCCESS" and not task.cached for task in self.tasks)

    def _results(self, name: str) -> int:
        """Counts the files that kfp's executor writes as its last act."""
        return sum(1 for _ in self._folder.glob(f"**/{name}/executor_output.json"))

    def _say(self, text: str) -> None:
        if self._echo:
            print(text, file=self._echo, flush=True)


def run_pipeline(
    compiled: Path,
    arguments: Mapping[str, str],
    *,
    workspace: Path,
    containers: "Containers | None" = None,
    echo: TextIO | None = None,
) -> Run:
    """Runs a compiled pipeline to its end.

    Args:
        compiled: pipeline YAML.
        arguments: values of its inputs.
        workspace: folder for outputs, logs and the cache of earlier runs.
        containers: what the tasks run in; None for processes of this Python.
        echo: stream for progress lines.

    Raises:
        ArtefactError: there is no such pipeline.
        MtlopsError: a task failed; of the kind that the task raised where it said so.
        PlatformError: a task said SUCCESS without leaving what it promised, or failed for another reason.
    """
    text = read_compiled(compiled)
    workspace.mkdir(parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=workspace.resolve()))
    pipeline = components.load_component_from_text(with_image(text, containers.image) if containers else text)
    progress = Progress(folder, echo=echo)
    with _captured(progress), _temporary_files():
        local.init(
            runner=containers.runner(folder) if containers else local.SubprocessRunner(use_venv=False),
            pipeline_root=str(folder),
            enable_caching=True,
            cache_root=str(workspace.resolve() / "cache"),
        )
        try:
            outputs = pipeline(**arguments).outputs
        except Exception as error:
            if not progress.tasks:
                raise
            raise _failure(progress, str(error)) from error
    if any(task.state != "SUCCESS" for task in progress.tasks):
        raise _failure(progress, "")
    _check_outputs(pipeline.pipeline_spec, progress.tasks, folder=folder)
    return Run(tasks=tuple(progress.tasks), outputs=outputs, log=progress.log)


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


def copy_reports(run: Run, folder: Path) -> Path:
    """Copies drift.json and its page, which a run of `profiling` made, to `folder`; returns where the first lies.

    Raises:
        PlatformError: the run has none.
    """
    source = Path(run.outputs["reports"].path)
    if not (source / "drift.json").is_file():
        raise PlatformError(f"{source}: the run left no report here. Read {run.log}.")
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("drift.json", "drift.html"):
        shutil.copyfile(source / name, folder / name)
    return folder / "drift.json"


def reasons(run: Run) -> list[str]:
    """Returns why the gate decided as it did: those of decision.json; none for a pipeline without such a step."""
    found = sorted(run.log.parent.glob("**/evaluate/**/decision.json"))
    return list(json.loads(found[-1].read_text(encoding="utf-8"))["reasons"]) if found else []


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
def environment(**values: str) -> Iterator[None]:
    """Sets environment variables, and puts the old ones back."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _captured(progress: Progress) -> Iterator[None]:
    """Hands kfp.local's prints, logs and warnings to `progress`, and takes back what it leaves changed."""
    # Tasks side by side each put an indenting `print` in place of the one before, and restore what they found.
    root, plain_print = logging.getLogger(), builtins.print
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
        builtins.print = plain_print


@contextmanager
def _temporary_files() -> Iterator[None]:
    """Gives kfp.local and the tasks' processes a folder for temporary files, and removes it: they leave theirs behind.

    Not below the run's folder, whose path may be too long for a socket.
    """
    before = tempfile.tempdir
    with tempfile.TemporaryDirectory(prefix="mtlops-", ignore_cleanup_errors=True) as folder:
        tempfile.tempdir = folder
        try:
            with environment(TMPDIR=folder):
                yield
        finally:
            tempfile.tempdir = before


def _failure(progress: Progress, raised: str) -> MtlopsError:
    """Returns the error of the first task that did not succeed; later ones may only have missed its outputs."""
    task = next((task for task in progress.tasks if task.state != "SUCCESS"), None)
    if task is None:
        return PlatformError(f"the pipeline failed after its last task ({raised}). The whole log: {progress.log}")
    reasons = {
        "RUNNING": raised,
        "FAILURE": "it gave no reason; it may have been killed, or have run out of memory",
        "LOST": "it disappeared before it wrote its result",
    }
    kind: type[MtlopsError] = getattr(errors, task.error, PlatformError)
    return kind(f"pipeline task {task.name} failed ({task.said or reasons[task.state]}). Its log: {task.log}")


def _check_outputs(spec: Any, tasks: list[Task], *, folder: Path) -> None:
    """kfp.local may say SUCCESS for a task that left nothing: looks at every file that was promised."""
    for task in tasks:
        declared = spec.components[f"comp-{task.name}"].output_definitions.artifacts
        task.outputs = tuple(sorted(declared))
        for name, artifact in declared.items():
            if task.cached or artifact.artifact_type.schema_title in _WITHOUT_FILE:
                continue
            found = list(folder.glob(f"**/{task.name}/{name}"))
            if not found or not all(_holds_something(path) for path in found):
                raise PlatformError(f"pipeline task {task.name} left no output {name!r}. Its log: {task.log}")


def _holds_something(path: Path) -> bool:
    return any(p.is_file() for p in path.rglob("*")) if path.is_dir() else path.stat().st_size > 0
