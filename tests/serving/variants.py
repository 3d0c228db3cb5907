"""Other bundles of the same trunk: what a retrained task gives, without the training."""

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper
from safetensors.numpy import load_file, save_file

from mtlops.bundle import Bundle, write_manifest
from mtlops.catalog import REFERENCE_VARIANT
from mtlops.data.tokenisation import Tokenizer
from mtlops.export.graph import structure
from mtlops.files import read_json, write_json
from mtlops.registry import Registry
from mtlops.serving import bank
from mtlops.serving.passes import expected_logits, golden_logits, open_session


def retrained(bundle: Bundle, folder: Path, *, task: str, seed: int = 0) -> Bundle:
    """Writes a bundle whose adapter and head of one task are others: files, graph, golden outputs and hashes agree."""
    shutil.copytree(bundle.folder, folder)
    random = np.random.default_rng(seed)
    for name in bank.TASK_FILES:
        path = folder / "tasks" / task / name
        tensors = {
            n: (t + 0.1 * random.standard_normal(t.shape)).astype(np.float32) for n, t in load_file(path).items()
        }
        path.unlink()
        save_file(tensors, path)
    return _finish(Bundle(folder, bundle.manifest))


def make_champion(registry: Registry, bundle_id: str) -> None:
    """Makes a published bundle champion, whoever is."""
    champion = registry.champion()
    expect = champion.bundle_id if champion else None
    registry.promote(bundle_id, expect=expect, by="test", reason="test", verdict="PROMOTE")


def with_many_tasks(bundle: Bundle, folder: Path, *, number: int) -> Bundle:
    """Writes a bundle of so many tasks, each of them like one of the bundle's: `mood_0`, `mood_5`, ..."""
    shutil.copytree(bundle.folder, folder)
    random, tasks = np.random.default_rng(0), {}
    for position in range(number):
        like = bundle.tasks[position % len(bundle.tasks)].name
        name = f"{like}_{position}"
        tasks[name] = {**bundle.manifest["tasks"][like], "position": position}
        shutil.copytree(bundle.folder / "tasks" / like, folder / "tasks" / name)
        head = load_file(bundle.folder / "tasks" / like / "head.safetensors")
        noisy = {n: (t + 0.01 * random.standard_normal(t.shape)).astype(np.float32) for n, t in head.items()}
        (folder / "tasks" / name / "head.safetensors").unlink()
        save_file(noisy, folder / "tasks" / name / "head.safetensors")
    for task in bundle.tasks:
        shutil.rmtree(folder / "tasks" / task.name)
    return _finish(Bundle(folder, {**bundle.manifest, "tasks": tasks}))


def with_wrong_golden(
    bundle: Bundle, folder: Path, *, row: int, variant: str = REFERENCE_VARIANT, by: float = 0.01
) -> Bundle:
    """Writes a copy that does not reproduce one of its golden rows: the shortest is row 0, the longest -1."""
    shutil.copytree(bundle.folder, folder)
    golden = read_json(folder / "golden.json", made_by="test")
    golden["rows"].sort(key=lambda found: len(found["text"]))
    expected_logits(golden["rows"][row], variant)[bundle.tasks[0].name][0] += by
    (folder / "golden.json").unlink()
    write_json(folder / "golden.json", golden)
    write_manifest(folder, {k: v for k, v in bundle.manifest.items() if k not in ("schema_version", "files")})
    return Bundle.open(folder)


def _finish(bundle: Bundle) -> Bundle:
    """Writes what follows from the task files: the graphs' banks, golden outputs, the manifest."""
    found = bank.stack([bank.task_tensors(bundle, task.name) for task in bundle.tasks])
    for name in bundle.variants:
        _write_bank(bundle.folder / bundle.variant(name)["file"], found)
    _write_golden(bundle, bundle.folder)
    facts = {k: v for k, v in bundle.manifest.items() if k not in ("schema_version", "files")}
    write_manifest(bundle.folder, {**facts, "graph": {"structure": structure(bundle.folder / "model.onnx")}})
    return Bundle.open(bundle.folder)


def _write_bank(path: Path, found: bank.Bank) -> None:
    proto = onnx.load(path, load_external_data=False)
    for tensor in proto.graph.initializer:
        if tensor.name in found:
            tensor.CopyFrom(numpy_helper.from_array(found[tensor.name], tensor.name))
    path.unlink()
    onnx.save(proto, path)


def _write_golden(bundle: Bundle, folder: Path) -> None:
    tokenizer = Tokenizer(folder / "trunk/tokenizer.json", max_tokens=bundle.manifest["max_tokens"])
    texts, found = [row["text"] for row in bundle.golden()], {}
    for name in bundle.variants:
        session = open_session(folder / bundle.variant(name)["file"], "CPUExecutionProvider", threads=1)
        found[name] = golden_logits(session, tokenizer, bundle.tasks, texts)
    (folder / "golden.json").unlink()
    rows = [
        {
            "text": text,
            "logits": found[REFERENCE_VARIANT][i],
            "variants": {name: found[name][i] for name in bundle.variants if name != REFERENCE_VARIANT},
        }
        for i, text in enumerate(texts)
    ]
    write_json(folder / "golden.json", {"schema_version": 1, "rows": rows})
