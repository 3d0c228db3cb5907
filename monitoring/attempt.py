"""One attempt to carry a request out, in a process that outlives the monitor: `python -m monitoring.attempt`.

The attempt runs a command and leaves what became of it in a file. Everything that it starts inherits an environment
variable with the request's id, so a monitor that comes back finds what is still at work, whoever was killed.
"""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mtlops.files import write_json

VARIABLE = "MTLOPS_REQUEST"
"""Environment variable that names the request of a process."""

_VERDICTS = ("PROMOTE", "HOLD", "REJECT")


def start_attempt(command: Sequence[str], request_id: str, *, outcome: Path, log: Path) -> "subprocess.Popen[bytes]":
    """Starts an attempt as a process in a session of its own: what stops the monitor does not stop it.

    Args:
        command: what to run, without a shell.
        request_id: of the request.
        outcome: JSON file that gets `code` (exit code, negative for a signal, null when it could not be started),
            `verdict` and `note` (the gate's first reason, or why nothing was started).
        log: file that gets what the command says.

    Raises:
        OSError: this Python cannot be started again.
    """
    root = str(Path(__file__).parents[1])
    paths = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.Popen(  # noqa: S603 - our own module
        (sys.executable, "-m", "monitoring.attempt", str(outcome.resolve()), str(log.resolve()), *command),
        stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": paths, VARIABLE: request_id},
        start_new_session=True,
    )  # fmt: skip


def processes_of(request_id: str) -> list[int]:
    """Returns the ids of running processes that belong to a request.

    They are read from /proc; where a system has none the list is empty, and only the lease in the registry keeps two
    runs from each other.
    """
    marker = f"{VARIABLE}={request_id}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environment = (folder / "environ").read_bytes()
        except OSError:  # it has ended, or is somebody else's
            continue
        if marker in environment.split(b"\0"):
            found.append(int(folder.name))
    return found


def main(arguments: Sequence[str]) -> int:
    """Runs the command of one attempt: OUTCOME LOG COMMAND..."""
    outcome, log, *command = arguments
    code: int | None = None
    output, note = b"", ""
    with Path(log).open("ab") as file:
        try:
            found = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=file, check=False)  # noqa: S603
        except OSError as error:
            note = f"{command[0]}: {error.strerror}"
        else:
            code, output = found.returncode, found.stdout
        file.write(output)
    verdict, reason = verdict_of(output)
    write_json(Path(outcome), {"code": code, "verdict": verdict, "note": note or reason})
    return 0


def verdict_of(output: bytes) -> tuple[str | None, str]:
    """Returns the verdict, and its first reason, in the last line, when that is a JSON object with one."""
    lines = output.decode("utf-8", "replace").strip().splitlines()
    try:
        found = json.loads(lines[-1]) if lines else None
    except ValueError:
        return None, ""
    if not isinstance(found, dict) or found.get("verdict") not in _VERDICTS:
        return None, ""
    reasons = found.get("reasons") or [""]
    return str(found["verdict"]), str(reasons[0])


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
