"""Many processes change one registry at once, and are killed at any moment: it stays valid and says who won."""

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from mtlops.registry import Registry
from tests.clones import ROOT
from tests.registry_worker import check

PROCESSES = 20
KILLED = 6
ROUNDS = 4


pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("action", "least_calls"), [("publish", 40), ("promote", 10), ("rollback", 10), ("gc", 20)])
def test_killed_before_any_system_call_it_stays_valid(tmp_path: Path, action: str, least_calls: int) -> None:
    command = [sys.executable, "-m", "tests.registry_worker", "kills", action, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= least_calls


def test_of_processes_that_promote_at_once_exactly_one_wins(tmp_path: Path) -> None:
    """Twenty promote, one collects without a grace period, and some are killed; in every round one at most wins."""
    names = [f"p{number}" for number in range(PROCESSES)]
    choose = random.Random(0)
    won: list[str] = []
    with _workers(tmp_path, names) as running:
        for number in range(1, ROUNDS + 1):
            _wait(lambda n=number: all((tmp_path / f"ready-{name}-{n}").exists() for name in running))
            _go(tmp_path, number, won[-1] if won else "")
            victims = choose.sample(sorted(running), KILLED // (ROUNDS - 1)) if number < ROUNDS else []
            for name in victims:
                time.sleep(choose.uniform(0, 0.15))
                running[name].send_signal(signal.SIGKILL)
                assert running.pop(name).wait() in (0, -signal.SIGKILL)
            _wait(lambda n=number: all((tmp_path / f"result-{n}-{name}.json").exists() for name in running))
            won.append(_check_round(tmp_path, number, running, before=won[-1] if won else None))
        _go(tmp_path, ROUNDS + 1, "stop")
    registry = check(tmp_path / "registry", cache=tmp_path / "cache")
    assert [entry.bundle_id for entry in registry.history()] == won
    assert len(set(won)) == ROUNDS
    registry.gc(keep=3, grace_seconds=0)
    assert set(registry.ids()) == set(won[-3:])
    assert list((tmp_path / "registry/uploads").iterdir()) == []


def _check_round(folder: Path, number: int, running: dict[str, subprocess.Popen[bytes]], *, before: str | None) -> str:
    """Returns the round's champion: that of the one process that was told so, or of a killed one."""
    results = {name: json.loads((folder / f"result-{number}-{name}.json").read_bytes()) for name in running}
    champion = Registry(folder / "registry").champion()
    assert champion is not None and champion.version == number and champion.previous == before
    winners = [r["id"] for r in results.values() if r["code"] == 0]
    assert winners in ([champion.bundle_id], [])
    if not winners:
        assert champion.bundle_id not in {r["id"] for r in results.values()}
    for result in results.values():
        if result["code"] != 0:
            assert result["code"] == 4, result
            last = result["said"].splitlines()[-1]
            assert "champion has changed" in last or "was made against champion" in last, last
            assert champion.bundle_id in last
    return champion.bundle_id


@contextmanager
def _workers(folder: Path, names: list[str]) -> Iterator[dict[str, subprocess.Popen[bytes]]]:
    start = [sys.executable, "-m", "tests.registry_worker"]
    running = {name: subprocess.Popen([*start, "promote", str(folder), name], cwd=ROOT) for name in names}
    collector = subprocess.Popen([*start, "collect", str(folder)], cwd=ROOT)
    everyone = [*running.values(), collector]
    try:
        yield running
        (folder / "go-stop").touch()
        assert [process.wait(timeout=60) for process in (*running.values(), collector)] == [0] * (len(running) + 1)
    finally:
        for process in everyone:
            process.kill()
            process.wait()


def _go(folder: Path, number: int, text: str) -> None:
    part = folder / f"part-{number}"
    part.write_text(text)
    part.rename(folder / f"go-{number}")


def _wait(condition: object, *, seconds: float = 120) -> None:
    assert callable(condition)
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "the processes do not answer"
        time.sleep(0.01)
