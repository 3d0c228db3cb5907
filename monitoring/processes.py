"""Processes of this Python that a scenario starts, and what it says to them over HTTP."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mtlops.errors import PlatformError

ANY_PORTS = tuple(word for name in ("port", "grpc-port", "admin-port", "metrics-port") for word in (f"--{name}", "0"))
"""Options of `mtlops serve` that let the system choose every port."""

_START_SECONDS = 120.0
_STOP_SECONDS = 60.0


@contextmanager
def running(arguments: Sequence[str], log: Path, ready: str) -> Iterator[str]:
    """A process of this Python that is ended at the end; yields what `ready` found in its log.

    Args:
        arguments: of Python.
        log: file that gets what it says.
        ready: pattern with one group that its log matches once it works.

    Raises:
        PlatformError: it did not start.
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path.cwd()), os.environ.get("PYTHONPATH", "")])}
    with log.open("wb") as file:
        process = subprocess.Popen((sys.executable, *arguments), stdout=file, stderr=file, env=environment)  # noqa: S603
    try:
        stop = time.monotonic() + _START_SECONDS
        while not (found := re.search(ready, log.read_text(encoding="utf-8", errors="replace"))):
            if process.poll() is not None or time.monotonic() > stop:
                raise PlatformError(f"{' '.join(arguments[:3])} did not start. {log} says why.")
            time.sleep(0.1)
        yield found.group(1)
    finally:
        process.terminate()
        try:
            process.wait(timeout=_STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def get(address: str) -> Any:
    """Returns the JSON value at an address of a process of ours. Raises OSError."""
    with urllib.request.urlopen(address, timeout=30) as response:  # noqa: S310 - our own process
        return json.load(response)


def post(address: str, content: Any) -> dict[str, Any]:
    """Posts a JSON value to an address of a process of ours and returns the answer. Raises OSError."""
    request = urllib.request.Request(address, json.dumps(content).encode(), {"Content-Type": "application/json"})  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310 - our own process
        body = response.read()
    return dict(json.loads(body)) if body else {}
