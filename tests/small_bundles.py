"""Bundles of a few kB whose manifest, files and hashes are real; nothing in them can answer."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mtlops.bundle import Bundle, write_manifest
from mtlops.files import write_json

TASKS = ("mood", "topic")
TRUNK_BYTES = 40_000
GRAPH_BYTES = 30_000
TASK_BYTES = 2_000


def make_bundle(
    folder: Path,
    *,
    tasks: Mapping[str, int] | None = None,
    trunk: int = 0,
    parent: str | None = None,
    verdict: str = "PROMOTE",
) -> str:
    """Writes a bundle and returns its id; the numbers say which content a task and the trunk have."""
    seeds = dict.fromkeys(TASKS, 0) | dict(tasks or {})
    _write(folder / "trunk/model.safetensors", [trunk], TRUNK_BYTES)
    for number, (name, seed) in enumerate(seeds.items()):
        _write(folder / f"tasks/{name}/adapter.safetensors", [100 + number, seed], TASK_BYTES)
        _write(folder / f"tasks/{name}/head.safetensors", [200 + number, seed], TASK_BYTES // 2)
    content = [trunk, *seeds.values()]
    _write(folder / "model.onnx", [300, *content], GRAPH_BYTES)
    logits = {name: [seed / 10, 1.0] for name, seed in seeds.items()}
    write_json(folder / "golden.json", {"schema_version": 1, "rows": [{"text": "a", "logits": logits}]})
    (folder / "card.md").write_text(f"card of {content}\n", encoding="utf-8")
    write_manifest(folder, _facts(seeds, parent=parent, verdict=verdict))
    return Bundle.open(folder).id


def _facts(seeds: Mapping[str, int], *, parent: str | None, verdict: str) -> dict[str, object]:
    return {
        "suite": "small",
        "created": "2026-01-01T00:00:00Z",
        "code": {"version": "0", "digest": "0" * 64},
        "data": {"manifest_sha256": "0" * 64, "fingerprint": "0"},
        "parent": parent,
        "verdict": verdict,
        "tasks": {
            name: {
                "kind": "binary",
                "classes": ["no", "yes"],
                "verdict": "PROMOTE",
                "primary": "macro_f1",
                "metrics": {"macro_f1": {"value": seed / 100, "low": 0.0, "high": 1.0}},
            }
            for name, seed in seeds.items()
        },
    }


def write_reports(folder: Path, bundle: Path, *, champion: str | None, verdict: str = "PROMOTE") -> dict[str, Path]:
    """Writes decision.json and export.json about a bundle; returns their paths by name."""
    folder.mkdir(parents=True, exist_ok=True)
    opened = Bundle.open(bundle)
    tasks = {
        name: {"verdict": task["verdict"], "reasons": ["it is good"], "kind": "compared" if champion else "new"}
        for name, task in opened.manifest["tasks"].items()
    }
    decision = {"verdict": verdict, "mode": "enforced", "champion": champion, "reasons": ["all good"], "tasks": tasks}
    write_json(folder / "decision.json", decision)
    export = {"bundle": {"path": str(bundle), "id": opened.id}, "limits": {"passed": True, "reasons": []}}
    write_json(folder / "export.json", export)
    return {"decision": folder / "decision.json", "export": folder / "export.json"}


def _write(path: Path, seed: list[int], size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(np.random.default_rng(seed).bytes(size))
