"""A trained model and a bundle of a few kilobytes with random adapters and heads, for tests that need no training."""

import json
import shutil
from pathlib import Path

import torch

from mtlops.bundle import Bundle, write_manifest
from mtlops.files import read_json
from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.encoders import load_trunk
from mtlops.model.multitask import PairModel
from mtlops.model.trained import save_model, save_task
from mtlops.params import Model
from mtlops.tasks import Task
from tests.tiny_encoder import write_prepared_encoder

MOOD = Task("mood", "multiclass", ("bad", "fair", "good"))
STARS = Task("stars", "regression", range=(1.0, 5.0))


def write_trained(root: Path, model: Model, *, tasks: tuple[Task, ...] = (MOOD, STARS), family: str = "bert") -> Path:
    """Writes the folders `encoder` and `trained` below `root`; returns the latter."""
    encoder, trained = root / "encoder", root / "trained"
    write_prepared_encoder(encoder, family=family)
    pairs = PairModel(load_trunk(encoder), model)
    for seed, task in enumerate(tasks):
        generator = torch.Generator().manual_seed(seed)
        fresh = pairs.init(task, generator)
        shaken = {name: t + torch.randn(t.shape, generator=generator) * 0.3 for name, t in fresh.items()}
        served: Tensors = pairs.adapter.bank(shaken, training=False)
        save_task(trained, task, served, facts={"best_epoch": 2, "label_offset": 0.0, "label_scale": 1.0})
    save_model(
        trained, encoder=read_json(encoder / "encoder.json", made_by="test"), model=model, max_tokens=24, tasks=tasks
    )
    return trained


def write_bundle(root: Path, model: Model) -> Bundle:
    """Returns a bundle of what `write_trained` wrote: without a graph, its files and the facts about them are real."""
    folder = root / "bundle"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        (folder / "trunk").mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / "encoder" / name, folder / "trunk" / name)
    shutil.copytree(root / "trained/tasks", folder / "tasks")
    tasks = {path.parent.name: json.loads(path.read_text()) for path in sorted(folder.glob("tasks/*/task.json"))}
    trunk = read_json(root / "encoder/encoder.json", made_by="test")
    write_manifest(folder, {"trunk": trunk, "tasks": tasks, "params": {"model": model.model_dump()}})
    return Bundle.open(folder)
