"""A Kubeflow Pipelines server in memory, strict about what its API description allows.

kfp-v2beta1.json beside this file holds the parts of Kubeflow's own swagger description that are used here.
"""

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import jsonschema

API: dict[str, Any] = json.loads((Path(__file__).parent / "kfp-v2beta1.json").read_text(encoding="utf-8"))
PAGE = 2
"""Items in a page, however many are asked for: clients must follow the token."""


def _closed(schema: Any) -> Any:
    """The schema with unknown keys forbidden wherever keys are listed."""
    if isinstance(schema, dict):
        closed = {key: _closed(value) for key, value in schema.items()}
        return {**closed, "additionalProperties": False} if "properties" in closed else closed
    return schema


DEFINITIONS = _closed(API["definitions"])


class Server:
    """State of the server; `requests` lists (method, path) in the order of arrival.

    Args:
        fail_on: (method, ending of the path) that is answered with 500 once.
        status: answer to every request when it is not 200.
        token: when given, requests must carry it as a bearer token.
    """

    def __init__(self, *, fail_on: tuple[str, str] | None = None, status: int = 200, token: str = "") -> None:
        self.requests: list[tuple[str, str]] = []
        self.bodies: list[tuple[str, dict[str, Any]]] = []
        self.pipelines: dict[str, dict[str, Any]] = {}
        self.versions: list[dict[str, Any]] = []
        self.uploads: list[str] = []
        self.experiments: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.schedules: dict[str, dict[str, Any]] = {}
        self.fail_on, self.status, self.token = fail_on, status, token

    def answer(self, method: str, path: str, query: dict[str, str], body: bytes) -> tuple[int, dict[str, Any]]:
        """Returns (status, JSON) for one request, after checking it against the API description."""
        self.requests.append((method, path))
        if self.status != 200:
            return self.status, {"error": "no", "code": 7, "message": "not allowed"}
        if self.fail_on and method == self.fail_on[0] and path.endswith(self.fail_on[1]):
            self.fail_on = None
            return 500, {"error": "the database is away"}
        template, names = _match(method, path)
        operation = API["paths"][template][method.lower()]
        known = {p["name"] for p in operation.get("parameters", []) if p["in"] == "query"}
        assert query.keys() <= known, f"{method} {template} has no {query.keys() - known}"
        value = self._checked_body(template, operation, body)
        return self._do(method, template.removeprefix("/apis/v2beta1"), names, query, value, body)

    def _checked_body(self, template: str, operation: dict[str, Any], body: bytes) -> dict[str, Any]:
        schema = next((p["schema"] for p in operation.get("parameters", []) if p["in"] == "body"), None)
        if schema is None:
            return {}
        value: dict[str, Any] = json.loads(body)
        jsonschema.validate(value, {**schema, "definitions": DEFINITIONS})
        self.bodies.append((template, value))
        return value

    def _do(
        self, method: str, path: str, names: dict[str, str], query: dict[str, str], value: dict[str, Any], body: bytes
    ) -> tuple[int, dict[str, Any]]:
        match (method, path):
            case ("GET", "/healthz"):
                return 200, {"multi_user": False}
            case ("GET", "/pipelines/names/{name}"):
                found = self.pipelines.get(names["name"])
                return (200, found) if found else (404, {"error": "not found"})
            case ("POST", "/pipelines"):
                self.pipelines[value["display_name"]] = {**value, "pipeline_id": "p1"}
                return 200, self.pipelines[value["display_name"]]
            case ("GET", "/pipelines/{pipeline_id}/versions"):
                return 200, _page("pipeline_versions", self.versions, query)
            case ("POST", "/pipelines/upload_version"):
                self.uploads.append(body.decode())
                version = {
                    "pipeline_id": query["pipelineid"],
                    "pipeline_version_id": f"v{len(self.versions) + 1}",
                    "display_name": query["display_name"],
                }
                self.versions.append(version)
                return 200, version
            case ("GET", "/experiments"):
                return 200, _page("experiments", self.experiments, query)
            case ("POST", "/experiments"):
                self.experiments.append({**value, "experiment_id": f"e{len(self.experiments) + 1}"})
                return 200, self.experiments[-1]
            case ("POST", "/runs"):
                self.runs.append({**value, "run_id": f"r{len(self.runs) + 1}"})
                return 200, self.runs[-1]
        return self._do_schedule(method, path, names, query, value)

    def _do_schedule(
        self, method: str, path: str, names: dict[str, str], query: dict[str, str], value: dict[str, Any]
    ) -> tuple[int, dict[str, Any]]:
        if path == "/recurringruns" and method == "GET":
            mine = [s for s in self.schedules.values() if s["experiment_id"] == query["experiment_id"]]
            return 200, _page("recurringRuns", mine, query)
        if path == "/recurringruns":
            schedule_id = f"s{sum(template.endswith('/recurringruns') for template, _ in self.bodies)}"
            self.schedules[schedule_id] = {**value, "recurring_run_id": schedule_id}
            return 200, self.schedules[schedule_id]
        schedule_id = names["recurring_run_id"]
        if method == "DELETE":
            del self.schedules[schedule_id]
        else:
            self.schedules[schedule_id]["mode"] = path.rpartition(":")[2].upper()
        return 200, {}


def _match(method: str, path: str) -> tuple[str, dict[str, str]]:
    for template, operations in API["paths"].items():
        names = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/:]+)", template), path)
        if names and method.lower() in operations:
            return template, {name: unquote(value) for name, value in names.groupdict().items()}
    raise AssertionError(f"the API has no {method} {path}")


def _page(key: str, items: list[dict[str, Any]], query: dict[str, str]) -> dict[str, Any]:
    start = int(query.get("page_token") or 0)
    more = {"next_page_token": str(start + PAGE)} if start + PAGE < len(items) else {}
    return {key: items[start : start + PAGE], **more}


@contextmanager
def serve(server: Server) -> Iterator[str]:
    """Yields the address at which `server` answers; what goes wrong in it is raised at the end."""
    faults: list[BaseException] = []

    class Handler(BaseHTTPRequestHandler):
        def _answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0))
            url = urlsplit(self.path)
            query = {name: values[0] for name, values in parse_qs(url.query).items()}
            try:
                if server.token:
                    assert self.headers["authorization"] == f"Bearer {server.token}"
                status, value = server.answer(self.command, url.path, query, body)
            except (AssertionError, KeyError, ValueError, jsonschema.ValidationError) as fault:
                faults.append(fault)
                status, value = 400, {"error": repr(fault)}
            content = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_DELETE = _answer

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    listener = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=listener.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.server_port}"
    finally:
        listener.shutdown()
        thread.join()
        listener.server_close()
    if faults:
        raise faults[0]
