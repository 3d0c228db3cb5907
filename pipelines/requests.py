"""The values of a run's parameters, from what a user says on the command line."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from mtlops.bundle import code_digest
from mtlops.catalog import BEHAVIOUR, DATASETS, ENCODERS
from mtlops.errors import PlatformError, UsageError
from mtlops.files import sha256_file
from mtlops.params import Params, read_params
from mtlops.tasks import split_names

LONGEST_PARAMETER = 10_000
"""Bytes; Kubeflow refuses longer parameters."""


@dataclass(frozen=True)
class Request:
    """Parameters of the training pipeline; the fields are its inputs.

    Attributes:
        params: params.yaml as text, with overrides applied.
        tasks: comma list of tasks; empty for all.
        reason: why the run is started.
        registry: URL or absolute folder of the registry; empty: nothing is compared with a champion or promoted.
        data_repo: folder or git/DVC repository with the user's files.
        data_rev: revision of that repository.
        data_md5: digest of the user's files; empty when there are none.
        code_digest: digest of the library's code.
    """

    params: str
    tasks: str
    reason: str
    registry: str
    data_repo: str
    data_rev: str
    data_md5: str
    code_digest: str

    def arguments(self) -> dict[str, Any]:
        """Returns the pipeline's arguments by name."""
        return asdict(self)

    def label(self) -> str:
        """Returns what tells the run from others, for people."""
        return f"{self.tasks or 'all tasks'} {self.code_digest[:8]}"


@dataclass(frozen=True)
class WindowRequest(Request):
    """Parameters of the continuous pipeline.

    Attributes:
        window: file of labelled rows, or folder of a recorded window, in `data_repo`.
        window_md5: digest of its content.
    """

    window: str
    window_md5: str


@dataclass(frozen=True)
class LogRequest:
    """Parameters of the profiling pipeline; the fields are its inputs.

    Attributes:
        params: params.yaml as text, with overrides applied.
        log: URL or absolute folder of the prediction log.
        registry: URL or absolute folder of the registry whose champion is watched.
        since: first day, YYYY-MM-DD, UTC.
        until: last day, one that has ended.
        parts: `1/N` to `N/N`.
    """

    params: str
    log: str
    registry: str
    since: str
    until: str
    parts: list[str]

    def arguments(self) -> dict[str, Any]:
        """Returns the pipeline's arguments by name."""
        return asdict(self)

    def label(self) -> str:
        """Returns what tells the run from others, for people."""
        return f"{self.since} to {self.until} in {len(self.parts)} parts"


def of_log(request: Request, *, log: str, since: str, until: str, parts: int) -> LogRequest:
    """Returns the parameters of the profiling pipeline.

    Raises:
        UsageError: log, registry or days are missing, or the number of parts is none.
    """
    needed = ((log, "--log URL"), (request.registry, "--registry URL"), (since, "--since DAY"), (until, "--until DAY"))
    for value, option in needed:
        if not value:
            raise UsageError(f"the profiling pipeline judges some days of a prediction log: give {option}.")
    if parts < 1:
        raise UsageError(f"--parts {parts}: give at least 1.")
    shares = [f"{number}/{parts}" for number in range(1, parts + 1)]
    return LogRequest(request.params, _registry_place(log), request.registry, since, until, shares)


def with_window(request: Request, window: str) -> WindowRequest:
    """Returns the parameters of the continuous pipeline.

    Raises:
        UsageError: no task, window or registry is named.
        PlatformError: the data repository cannot be read.
    """
    for value, option in ((request.tasks, "--tasks A,B"), (window, "--window FILE"), (request.registry, "--registry")):
        if not value:
            raise UsageError(f"the continuous pipeline updates some tasks of a registry's champion: give {option}.")
    is_folder = not request.data_rev and Path(request.data_repo or ".").is_dir()
    if is_folder and not (Path(request.data_repo or ".") / window).exists():
        raise UsageError(f"--window {window}: not found in {request.data_repo or '.'}.")
    digest = _data_md5([window], repository=request.data_repo, revision=request.data_rev)
    return WindowRequest(**vars(request), window=window, window_md5=digest)


def read_request(
    path: Path,
    *,
    overrides: Sequence[str] = (),
    tasks: str = "",
    reason: str = "",
    registry: str = "",
    data_repo: str = "",
    data_rev: str = "",
) -> Request:
    """Returns a run's parameters; what the pipeline would refuse is refused here.

    Raises:
        UsageError: the params or tasks are wrong, or too long for Kubeflow.
        PlatformError: the data repository cannot be read.
    """
    params = read_params(path, overrides=overrides)
    chosen = params.only(split_names(tasks)) if tasks else params
    text = yaml.safe_dump(params.model_dump(mode="json", exclude_unset=True), sort_keys=False, width=120)
    if len(text.encode()) > LONGEST_PARAMETER:
        raise UsageError(
            f"{path}: {len(text.encode())} bytes are more than the {LONGEST_PARAMETER} that Kubeflow takes in a "
            f"parameter. Make it shorter, or run fewer tasks from a file of their own."
        )
    return Request(
        params=text,
        tasks=",".join(split_names(tasks)),
        reason=reason,
        registry=_registry_place(registry),
        data_repo=data_repo,
        data_rev=data_rev,
        data_md5=_data_md5(_own_files(chosen), repository=data_repo, revision=data_rev),
        code_digest=code_digest(),
    )


def _registry_place(registry: str) -> str:
    """A URL as it is, a folder in full: a task runs in a folder of its own.

    kfp.local takes a condition on a value with such characters for false, and says SUCCESS.
    """
    if any(character in registry for character in "'\"\\\n\r"):
        raise UsageError(f"--registry {registry!r}: must be without quotes, backslashes and line breaks.")
    is_folder = registry and "://" not in registry and "::" not in registry
    return str(Path(registry).resolve()) if is_folder else registry


def _own_files(params: Params) -> list[str]:
    sources = {spec.source for spec in params.suite.tasks.values()} - set(DATASETS)
    return sorted(sources | ({params.encoder.source} - set(ENCODERS)) | (set(params.data.behaviour) - set(BEHAVIOUR)))


def _data_md5(files: Sequence[str], *, repository: str, revision: str) -> str:
    """One digest over the names and contents of `files`; a DVC repository knows them without a download."""
    if not files:
        return ""
    if revision or not Path(repository or ".").is_dir():
        contents = _repository_digests(files, repository=repository, revision=revision)
    else:
        contents = [_folder_digest(Path(repository or ".") / name) for name in files]
    lines = "".join(f"{name}\0{content}\n" for name, content in zip(files, contents, strict=True))
    return hashlib.md5(lines.encode(), usedforsecurity=False).hexdigest()


def _folder_digest(path: Path) -> str:
    """A file that is missing has no digest; `prepare` says that it is missing."""
    if path.is_dir():
        return ",".join(f"{p.relative_to(path)}={sha256_file(p)}" for p in sorted(path.rglob("*")) if p.is_file())
    return sha256_file(path) if path.is_file() else ""


def _repository_digests(files: Sequence[str], *, repository: str, revision: str) -> list[str]:
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import SCMError

    try:
        system = DVCFileSystem(repository, rev=revision or None)
        return [system.info(name).get("md5") or _read_digest(system, name) for name in files]
    except (DvcException, SCMError, OSError) as error:
        raise PlatformError(
            f"{repository}@{revision or 'HEAD'}: {files[0]} and its siblings cannot be read ({error}). "
            f"Check --data-repo and --data-rev."
        ) from error


def _read_digest(system: Any, name: str) -> str:
    if system.isdir(name):
        return ",".join(f"{path}={_read_digest(system, path)}" for path in sorted(system.find(name)))
    return hashlib.sha256(system.cat_file(name)).hexdigest()
