"""The container engine of this machine, and how the steps of a pipeline run on it.

Spoken through Docker's API, which podman serves as well. A step's container gets the folders that it needs and
nothing else of this machine: no root, no capabilities, a read-only root file system, /tmp in memory.
"""

import codecs
import io
import os
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from docker.errors import DockerException, ImageNotFound, NotFound
from docker.types import Mount
from kfp import local
from kfp.local import docker_task_handler

from mtlops.errors import PlatformError
from pipelines.local import environment

USER = 10001
"""The image's user and group. Steps run as the caller; a caller who is root hands their folders to this user."""

LABEL = "mtlops.run"
"""Label of a step's container; its value is the name of the run's folder."""

_START_SECONDS = 120.0
_WORK = ("raw", "cache")
_PASSED_ON = (
    "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
    "OMP_NUM_THREADS", "PIP_INDEX_URL", "SOURCE_DATE_EPOCH",
)  # fmt: skip
_CONFINED = {
    "read_only": True,
    "tmpfs": {"/tmp": ""},  # noqa: S108 - a container's own
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "healthcheck": {"test": ["NONE"]},
    "shm_size": "1g",
}


@dataclass(frozen=True)
class Containers:
    """An engine that answers, an image that works on it, and what its containers may see.

    Attributes:
        client: the engine.
        image: its name.
        image_id: digest of its content.
        code_digest: `mtlops.bundle.code_digest()` in the image.
        data: folder that containers may read at the same path, or None.
        work: folder for downloads and the trunk cache; containers may write its `raw` and `cache`.
        registry: folder of the registry, which containers may write, or None.
    """

    client: docker.DockerClient
    image: str
    image_id: str
    code_digest: str
    data: Path | None
    work: Path
    registry: Path | None

    def runner(self, folder: Path) -> local.DockerRunner:
        """Returns kfp's runner for a pipeline whose root is `folder`; kfp itself mounts that.

        Earlier runs beside `folder` can be read, because kfp.local's cache hands on what they made.
        """
        written = [*(self.work / name for name in _WORK), *([self.registry] if self.registry else [])]
        for path in written:
            path.mkdir(parents=True, exist_ok=True)
        _give(folder, *written)
        read = [folder.parent, *([self.data] if self.data else [])]
        return local.DockerRunner(
            **_CONFINED,
            **_identity(self.client),
            environment={"MTLOPS_WORK": str(self.work)} | {k: os.environ[k] for k in _PASSED_ON if k in os.environ},
            mounts=[_mount(path, read_only=True) for path in read] + [_mount(path) for path in written],
            labels={LABEL: folder.name},
        )


@contextmanager
def open_containers(image: str, *, data: Path | None, work: Path, registry: Path | None = None) -> Iterator[Containers]:
    """Yields what the steps of a run are started with.

    DOCKER_HOST names the engine. Without it, it is the first of the usual sockets that answers, or else a podman
    service that lives as long as the run. kfp.local reads DOCKER_HOST, so it is set meanwhile.

    Args:
        image: name of an image that the engine has.
        data: folder that the steps read.
        work: folder for downloads and the trunk cache.
        registry: folder of the registry, when there is one.

    Raises:
        PlatformError: no engine answers, it has no such image, or the image does not hold mtlops.
    """
    with _engine() as address, environment(DOCKER_HOST=address), _patient_kfp():
        client = docker.from_env()
        try:
            image_id, digest = _image_id(client, image), _code_digest(client, image)
            yield Containers(client, image, image_id, digest, data=data, work=work, registry=registry)
        finally:
            client.close()


@contextmanager
def _patient_kfp() -> Iterator[None]:
    """Has kfp's DockerRunner start containers by `_run_container`.

    kfp lets the engine remove a container at its end, while it still asks for the log and the exit code: when the
    container is gone first, kfp reports SUCCESS whatever happened, or fails on one that ended well.
    """
    original = docker_task_handler.run_docker_container
    docker_task_handler.run_docker_container = _run_container
    try:
        yield
    finally:
        docker_task_handler.run_docker_container = original


def _run_container(client: docker.DockerClient, image: str, command: list[str], volumes: Any, **settings: Any) -> int:
    """Runs a container to its end, prints what it prints, removes it, and returns its exit code."""
    container = client.containers.create(image, command, volumes=volumes, **settings)
    try:
        container.start()
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        followed = b""
        for piece in container.logs(stream=True, follow=True):
            followed += piece
            print(decoder.decode(piece), end="")
        code = int(container.wait()["StatusCode"])
        # podman may lose pieces of a log that is followed, most often the end, where a traceback stands.
        if not (whole := container.logs()).startswith(followed):
            print("\nPieces are missing above. The whole log:")
            followed = b""
        print(decoder.decode(whole[len(followed) :], final=True), end="")
        print(f"The container's exit code: {code}")
        return code
    except DockerException as error:
        print(f"{type(error).__name__}: {error}")
        return 1
    finally:
        with suppress(NotFound):
            container.remove(v=True, force=True)


def _mount(path: Path, *, read_only: bool = False) -> Mount:
    return Mount(str(path), str(path), type="bind", read_only=read_only)


def _give(*folders: Path) -> None:
    """As root: hands folders and what is in them to the image's user; the steps never run as root."""
    if os.getuid() != 0:
        return
    for folder in folders:
        for path in (folder, *folder.rglob("*")):
            os.chown(path, USER, USER, follow_symlinks=False)


def _identity(client: docker.DockerClient) -> dict[str, str]:
    user = {"user": f"{os.getuid() or USER}:{os.getgid() or USER}"}
    rootless = any("rootless" in option for option in client.info().get("SecurityOptions") or [])
    podman = any("Podman" in part["Name"] for part in client.version().get("Components") or [])
    return user | ({"userns_mode": "keep-id"} if rootless and podman else {})


def _image_id(client: docker.DockerClient, image: str) -> str:
    try:
        return str(client.images.get(image).id)
    except ImageNotFound as error:
        raise PlatformError(f"{image}: the container engine has no such image. Run `make image` first.") from error


def _code_digest(client: docker.DockerClient, image: str) -> str:
    program = "from mtlops.bundle import code_digest; print(code_digest())"
    printed = io.StringIO()
    with redirect_stdout(printed):
        try:
            _run_container(client, image, ["python3", "-c", program], None, **_CONFINED, **_identity(client))
        except DockerException as error:
            print(error)
    if found := re.search("^[0-9a-f]{64}$", printed.getvalue(), re.MULTILINE):
        return found[0]
    said = [line for line in printed.getvalue().splitlines() if not line.startswith("The container's exit code")]
    raise PlatformError(f"{image}: mtlops does not run in this image ({' '.join(said[-1:])}). Run `make image`.")


@contextmanager
def _engine() -> Iterator[str]:
    """Yields the address of an engine that answers."""
    if address := os.environ.get("DOCKER_HOST"):
        if not _answers(address):
            raise PlatformError(f"DOCKER_HOST={address}: no container engine answers. Start it, or unset DOCKER_HOST.")
        yield address
        return
    for address in (f"unix://{path}" for path in _sockets()):
        if _answers(address):
            yield address
            return
    if not shutil.which("podman"):
        raise PlatformError("no container engine answers. Start Docker, install podman, or set DOCKER_HOST.")
    with _podman_service() as address:
        yield address


def _sockets() -> list[Path]:
    own = Path(os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}")
    folders = [Path("/run"), own] if os.getuid() == 0 else [own, Path("/run")]
    return [folder / name for folder in folders for name in ("docker.sock", "podman/podman.sock")]


def _answers(address: str) -> bool:
    if address.startswith("unix://"):  # docker leaves a socket open that nobody listens to
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(address.removeprefix("unix://"))
            except OSError:
                return False
    try:
        client = docker.from_env(timeout=10, environment=os.environ | {"DOCKER_HOST": address})
    except DockerException:
        return False
    client.close()
    return True


@contextmanager
def _podman_service() -> Iterator[str]:
    """Yields the address of podman's API, served on a socket of its own until the end."""
    with tempfile.TemporaryDirectory(prefix="mtlops-podman-") as folder:
        address, log = f"unix://{folder}/podman.sock", Path(folder) / "log.txt"
        with log.open("wb") as output:
            # In a session of its own, so that Ctrl-C does not end it before the containers.
            process = subprocess.Popen(  # noqa: S603 - podman, no shell
                ["podman", "system", "service", "--time=0", address],  # noqa: S607 - the user's podman
                stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        try:
            _await(process, address, log=log)
            yield address
        finally:
            process.terminate()
            process.wait()


def _await(process: subprocess.Popen[bytes], address: str, *, log: Path) -> None:
    end = time.monotonic() + _START_SECONDS
    while not _answers(address):
        if process.poll() is not None or time.monotonic() > end:
            said = log.read_text(encoding="utf-8", errors="replace").strip().rpartition("\n")[2]
            raise PlatformError(f"podman system service does not answer ({said or 'it says nothing'}). Check podman.")
        time.sleep(0.1)
