"""Prometheus and Alertmanager, as Debian packages them: where they are, and how a test starts them."""

import os
import shutil
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

REQUIRED = "MTLOPS_PROMETHEUS_TESTS"
PROGRAMS = ("prometheus", "promtool", "prometheus-alertmanager", "amtool")


def find(program: str) -> str:
    """Path of a program; without it the test is skipped, or fails where CI promised it."""
    found = shutil.which(program)
    if found is None:
        reason = f"{program} is not installed (Debian: apt-get install prometheus prometheus-alertmanager)"
        if os.environ.get(REQUIRED):
            pytest.fail(f"{reason}, and {REQUIRED} is set")
        pytest.skip(reason)
    return found


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def running(*command: str, log: Path, ready: str, seconds: float = 60.0) -> Iterator[subprocess.Popen]:
    """A process that is ended at the end; `ready` is an address that answers once it works."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: answers(ready) or process.poll() is not None, seconds=seconds, what=command[0])
        assert process.poll() is None, f"{command[0]} ended by itself: {log.read_text()[-2000:]}"
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def answers(address: str) -> bool:
    try:
        with urllib.request.urlopen(address, timeout=2) as found:
            return found.status == 200
    except OSError:
        return False


def wait_for(claim: Callable[[], object], *, seconds: float = 60.0, what: str = "") -> None:
    deadline = time.monotonic() + seconds
    while not claim():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {what}")
        time.sleep(0.2)
