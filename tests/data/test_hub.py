"""Encoders of the hub, fetched by its own client from a real server on this machine."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mtlops.data.hub import is_hub_name
from tests.data.miniatures import encoder_folder

COMMIT = "5c38ec7c405ec4b44b94cc5a9bb96e735b38267a"
NAME = "someone/tiny-bert"
CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\n# Tiny\n"


class _Hub(BaseHTTPRequestHandler):
    """One repository, as https://huggingface.co answers for it: what it holds, and its files."""

    protocol_version = "HTTP/1.1"

    def __init__(self, *arguments: object, folder: Path) -> None:
        self.folder = folder
        super().__init__(*arguments)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, start = self.path.partition("?")[0], f"/{NAME}/resolve/{COMMIT}/"
        if path.startswith(start) and (file := self.folder / path.removeprefix(start)).is_file():
            self._send(file.read_bytes())
        elif path == f"/api/models/{NAME}/revision/{COMMIT}":
            files = [{"rfilename": file.name} for file in sorted(self.folder.iterdir())]
            self._send(json.dumps({"id": NAME, "sha": COMMIT, "siblings": files}).encode())
        elif path.startswith(f"/api/models/{NAME}/tree/{COMMIT}"):
            self._send(json.dumps([_entry(file) for file in sorted(self.folder.iterdir())]).encode())
        else:
            self._send(b"{}", status=404, code="RevisionNotFound" if NAME in path else "RepoNotFound")

    def _send(self, content: bytes, *, status: int = 200, code: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Content-Type", "application/json")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{sha1(content).hexdigest()}"')
        if code:
            self.send_header("X-Error-Code", code)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


def _entry(file: Path) -> dict[str, object]:
    content = file.read_bytes()
    return {"type": "file", "path": file.name, "size": len(content), "oid": sha1(content).hexdigest()}


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[str]:
    folder = encoder_folder(tmp_path / "repository")
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    (folder / "pytorch_model.bin").write_bytes(b"never fetched")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(_Hub, folder=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def _read(tmp_path: Path, *, source: str = NAME, revision: str = COMMIT, **environment: str) -> str:
    """What `read_encoder` finds, or the error and its exit code, from a process whose environment says where."""
    program = f"""
from pathlib import Path
from mtlops.data.encoders import read_encoder
from mtlops.errors import MtlopsError
try:
    files = read_encoder({source!r}, base=Path("."), raw=Path({str(tmp_path / "raw")!r}), revision={revision!r})
    print(files.name, files.requirement, files.licence, *files.content)
except MtlopsError as error:
    print(error.exit_code, error)
"""
    clean = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True,
        env=clean | {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1", "NO_PROXY": "*"} | environment,
    )  # fmt: skip
    return done.stdout.strip()


def test_a_repository_is_fetched_once_and_recorded_with_its_commit(tmp_path: Path, endpoint: str) -> None:
    expected = f"{NAME} {NAME}@{COMMIT} apache-2.0 config.json model.safetensors tokenizer.json"
    assert _read(tmp_path, HF_ENDPOINT=endpoint) == expected
    assert not list(tmp_path.glob("raw/**/pytorch_model.bin"))
    assert _read(tmp_path, HF_HUB_OFFLINE="1") == expected


@pytest.mark.parametrize(
    "changes, error",
    [
        ({"source": "someone/else"}, "2 params.yaml: encoder.source: the hub has no 'someone/else'"),
        ({"revision": "f" * 40}, f"2 params.yaml: encoder.source: the hub has no '{NAME}' at ffff"),
        ({"revision": "main"}, f"2 params.yaml: encoder.source: '{NAME}' is no folder, and to fetch it from the"),
        ({"revision": None}, f"2 params.yaml: encoder.source: '{NAME}' is no folder, and to fetch it from the"),
    ],
)
def test_what_the_hub_does_not_have_is_a_usage_error(
    tmp_path: Path, endpoint: str, changes: dict[str, str], error: str
) -> None:
    assert _read(tmp_path, HF_ENDPOINT=endpoint, **changes).startswith(error)


@pytest.mark.parametrize(
    "environment",
    [
        {"HF_HUB_OFFLINE": "1"},
        pytest.param({"HF_ENDPOINT": "http://127.0.0.1:9"}, marks=pytest.mark.e2e),  # the client tries for 20 s
    ],
)
def test_a_hub_that_cannot_be_reached_is_a_platform_error(tmp_path: Path, environment: dict[str, str]) -> None:
    printed = _read(tmp_path, **environment)
    assert printed.startswith(f"5 encoder.source: {NAME!r} cannot be fetched from the hub ("), printed
    assert "hf download" in printed


@pytest.mark.parametrize("source, expected", [(NAME, True), ("a/b/c", False), ("./folder", False), ("name", False)])
def test_hub_names(source: str, expected: bool) -> None:
    assert is_hub_name(source) is expected
