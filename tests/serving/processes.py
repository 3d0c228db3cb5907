"""A real `mtlops serve` in a process of its own, on free ports, and servers for it to talk to."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from monitoring.processes import ANY_PORTS


@dataclass
class Server:
    """A running server."""

    process: subprocess.Popen[bytes]
    ports: dict[str, int]
    errors: Path

    def url(self, port: str = "rest", scheme: str = "http") -> str:
        return f"{scheme}://127.0.0.1:{self.ports[port]}"

    def get(self, path: str, port: str = "rest", *, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        return self._ask(urllib.request.Request(self.url(port) + path, headers=headers or {}))

    def post(
        self, path: str, body: Any, port: str = "rest", *, headers: dict[str, str] | None = None
    ) -> tuple[int, Any]:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return self._ask(urllib.request.Request(self.url(port) + path, data=content, headers=headers or {}))

    def predict(self, *texts: str, **more: Any) -> dict[str, Any]:
        status, answer = self.post("/predict", {"text": list(texts), **more})
        assert status == 200, answer
        return answer

    def metric(self, sample: str) -> float:
        """The value of a line of /metrics, by its name and labels."""
        with urllib.request.urlopen(self.url("metrics") + "/metrics") as page:
            lines = page.read().decode().splitlines()
        return next((float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{sample} ")), 0.0)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    @staticmethod
    def _ask(request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, json.loads(response.read() or b"null")
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.loads(error.read())


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Server]:
    """A server that is ready; it is killed at the end if it still runs."""
    folder.mkdir(parents=True, exist_ok=True)
    errors = folder / "server.log"
    command = [sys.executable, "-m", "mtlops", "serve", "--json", "--threads", "1", "--cache", str(folder / "cache")]
    with errors.open("wb") as log:
        process = subprocess.Popen(
            [*command, *ANY_PORTS, *options], stdout=subprocess.PIPE, stderr=log, env={**os.environ, "TZ": "UTC"}
        )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, errors.read_text()
        yield Server(process, json.loads(line)["ports"], errors)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@contextmanager
def listening(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The address of an HTTP server on this machine that answers with `handler`, without a slash at its end."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()
