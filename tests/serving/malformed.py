"""Requests that no client should send, drawn at random, and a way to ask the REST application without a socket."""

import asyncio
import json
import random
from dataclasses import dataclass
from typing import Any

from mtlops.serving.asgi import Application

WORDS = [
    "text",
    "input_ids",
    "attention_mask",
    "BYTES",
    "INT64",
    "FP32",
    "topic",
    "mood",
    "tiny",
    "",
    "a",
    "\u0000",
    "é",
]
NUMBERS = [0, 1, -1, 2, 3, 255, 2**31, 2**63 - 1, -(2**63), 10**18, 0.5, -0.0, 1e300]


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    body: bytes
    headers: dict[bytes, bytes]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


async def ask(
    application: Application, method: str, path: str, body: bytes = b"", *, headers: dict[str, str] | None = None
) -> Reply:
    """Sends one request through the ASGI interface."""
    sent: list[Any] = []
    parts = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> Any:
        return next(parts)

    async def send(message: Any) -> None:
        sent.append(message)

    found = [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()]
    await application({"type": "http", "method": method, "path": path, "headers": found}, receive, send)
    return Reply(sent[0]["status"], sent[1]["body"], dict(sent[0]["headers"]))


def valid() -> dict[str, Any]:
    """A request that is answered."""
    return {
        "id": "x",
        "parameters": {"tasks": "topic,mood"},
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [2], "data": ["a film", "the law"], "parameters": {}}
        ],
        "outputs": [{"name": "topic.label", "parameters": {"binary_data": False}}],
    }


def malformed(seed: int) -> tuple[bytes, dict[str, str]]:
    """Returns body and headers: a valid request in which something was replaced, removed, repeated or cut."""
    rng = random.Random(seed)
    value: Any = valid()
    for _ in range(rng.randint(1, 3)):
        value = _spoil(value, rng)
    head = json.dumps(value, ensure_ascii=rng.random() < 0.5).encode("utf-8", "surrogatepass")
    headers = {}
    raw = b""
    if rng.random() < 0.4:
        raw = rng.randbytes(rng.randint(0, 40))
        headers["Inference-Header-Content-Length"] = rng.choice(
            [str(len(head)), str(len(head) + rng.randint(-9, 60)), "x", "-1", "9" * 30, ""]
        )
    body = head + raw
    if rng.random() < 0.2:
        body = body[: rng.randint(0, len(body))]
    if rng.random() < 0.1:
        body = rng.randbytes(rng.randint(0, 200))
    return body, headers


def _spoil(value: Any, rng: random.Random) -> Any:
    if isinstance(value, dict) and value and rng.random() < 0.8:
        key = rng.choice(list(value))
        action = rng.random()
        if action < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if action < 0.3:
            return {**value, "parameters": {"binary_data_size": rng.choice(NUMBERS)}}
        return {**value, key: _spoil(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.8:
        place = rng.randrange(len(value))
        if rng.random() < 0.2:
            return value + value
        return [*value[:place], _spoil(value[place], rng), *value[place + 1 :]]
    return _anything(rng, depth=2)


def _anything(rng: random.Random, *, depth: int) -> Any:
    kind = rng.randrange(7 if depth else 4)
    if kind == 0:
        return rng.choice(WORDS)
    if kind == 1:
        return rng.choice(NUMBERS)
    if kind == 2:
        return rng.choice([None, True, False])
    if kind == 3:
        return rng.choice(WORDS) * rng.randint(0, 300)
    if kind == 4:
        return {rng.choice(WORDS): _anything(rng, depth=depth - 1) for _ in range(rng.randint(0, 3))}
    return [_anything(rng, depth=depth - 1) for _ in range(rng.randint(0, 4))]


def run(application: Application, path: str, seeds: range) -> dict[int, int]:
    """Sends one malformed request for each seed; returns how often each status came. Raises AssertionError on others.

    A status is 200 (it was valid after all) or 4xx with a reason that tells nothing of the machine.
    """
    counted: dict[int, int] = {}

    async def all_of_them() -> None:
        for seed in seeds:
            body, headers = malformed(seed)
            reply = await ask(application, "POST", path, body, headers=headers)
            counted[reply.status] = counted.get(reply.status, 0) + 1
            assert reply.status == 200 or 400 <= reply.status < 500, (seed, reply)
            if reply.status != 200:
                reason = reply.json["error"]
                assert 10 < len(reason) < 1000 and "\n" not in reason, (seed, reason)
                assert not any(word in reason for word in ("Traceback", "site-packages", "object at", "numpy")), reason

    asyncio.run(all_of_them())
    return counted
