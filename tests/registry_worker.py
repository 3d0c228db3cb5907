"""Programs that change a registry and are killed while they do: `python -m tests.registry_worker COMMAND ...`.

kills ACTION FOLDER      does the action again and again, each time in a process that is killed with -9 one system call
                         later; checks the registry after each; prints how many calls there were
promote FOLDER NAME      promotes a bundle of its own in every round, as the command line does
collect FOLDER           collects without a grace period until it is told to stop
"""

import io
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path

from mtlops.bundle import Bundle
from mtlops.cli import main
from mtlops.files import sha256_file, write_json
from mtlops.registry import Registry
from tests.small_bundles import make_bundle, write_reports

WHO = {"by": "worker", "reason": "test"}
EVENTS = ("open", "os.rename", "os.link", "os.remove", "os.mkdir", "os.rmdir", "os.chmod", "shutil.rmtree")


def check(folder: Path, *, cache: Path) -> Registry:
    """Returns the registry after checking all that must hold whatever was killed."""
    registry = Registry(folder)
    history, champion = registry.history(), registry.champion()
    assert champion == (history[-1] if history else None)
    if champion:
        assert json.loads((folder / "champion.json").read_bytes())["bundle_id"] == champion.bundle_id
        Bundle.open(registry.fetch(champion.bundle_id, cache))
    for previous, entry in zip([None, *history], history, strict=False):
        assert entry.previous == (previous.bundle_id if previous else None)
    for bundle_id in registry.ids():
        bundle = Bundle.open(folder / "bundles" / bundle_id)
        assert bundle.id == bundle_id
        for digest in bundle.manifest["files"].values():
            assert sha256_file(folder / "blobs" / digest) == digest
    return registry


def _actions(folder: Path, bundles: list[Path]) -> dict[str, Callable[[], object]]:
    registry = Registry(folder)
    ids = [Bundle.open(path).id for path in bundles]
    return {
        "publish": lambda: registry.publish(bundles[3]),
        "promote": lambda: registry.promote(ids[2], expect=ids[1], **WHO),
        "rollback": lambda: registry.rollback(ids[0], **WHO),
        "gc": lambda: registry.gc(keep=1, grace_seconds=0),
    }


def _prepare(folder: Path, bundles: list[Path]) -> None:
    """Two champions and a third bundle that is only published."""
    registry = Registry(folder)
    ids = [registry.publish(path) for path in bundles[:3]]
    registry.promote(ids[0], expect=None, **WHO)
    registry.promote(ids[1], expect=ids[0], **WHO)


def _kill_before(number: int, folder: Path) -> None:
    """Kills this process before its `number`th call that touches the folder."""
    left = number

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal left
        if event in EVENTS and any(str(argument).startswith(str(folder)) for argument in arguments):
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def kills(action: str, folder: Path) -> None:
    """Kills the action at every call; afterwards the registry is valid and the action can be done again."""
    bundles = [folder / f"bundle-{number}" for number in range(4)]
    for number, path in enumerate(bundles):
        make_bundle(path, tasks={"topic": number})
    _prepare(folder / "start", bundles)
    for number in range(1, 10_000):
        registry, cache = folder / f"registry-{number}", folder / f"cache-{number}"
        shutil.copytree(folder / "start", registry, copy_function=os.link)
        process = os.fork()
        if process == 0:
            _kill_before(number, registry)
            _actions(registry, bundles)[action]()
            os._exit(0)
        status = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        assert status in (0, -signal.SIGKILL), status
        before = check(registry, cache=cache)
        assert len(before.history()) in (2, 3)
        again = _actions(registry, bundles)[action]
        done = len(before.history()) == 3
        if not (done and action == "rollback"):
            again()
        after = check(registry, cache=cache)
        assert len(after.history()) == (3 if action in ("promote", "rollback") else 2)
        after.gc(keep=5, grace_seconds=0)
        assert list((registry / "uploads").iterdir()) == [] and not (registry / "gc.json").exists()
        shutil.rmtree(registry)
        shutil.rmtree(cache)
        if status == 0:
            sys.stdout.write(str(number - 1))
            return


def promote(folder: Path, name: str) -> None:
    """In each round, as soon as the file go-N is there: promotes a new bundle against the champion that it names."""
    for number in range(1, 1000):
        bundle, reports = folder / f"{name}-{number}", folder / f"reports-{name}-{number}"
        make_bundle(bundle, tasks={"topic": number}, trunk=0, parent=name)
        go = folder / f"go-{number}"
        (folder / f"ready-{name}-{number}").touch()
        while not go.exists():
            time.sleep(0.001)
        if go.read_text() == "stop":
            return
        paths = write_reports(reports, bundle, champion=go.read_text() or None)
        arguments = [f"--{key}={path}" for key, path in paths.items()]
        said = io.StringIO()
        with redirect_stderr(said):
            code = main(["promote", f"--bundle={bundle}", f"--registry={folder / 'registry'}", "--json", *arguments])
        result = {"code": code, "id": Bundle.open(bundle).id, "said": said.getvalue()}
        write_json(folder / f"result-{number}-{name}.json", result)


def collect(folder: Path) -> None:
    """Collects again and again; that another collection is under way is said by PlatformError."""
    while not (folder / "go-stop").exists():
        Registry(folder / "registry").gc(keep=3, grace_seconds=0)
        time.sleep(0.01)


if __name__ == "__main__":
    command, *words = sys.argv[1:]
    if command == "kills":
        kills(words[0], Path(words[1]))
    elif command == "promote":
        promote(Path(words[0]), words[1])
    else:
        collect(Path(words[0]))
