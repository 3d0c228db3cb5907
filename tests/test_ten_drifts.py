"""Ten drifts one after another, on different tasks: each is repaired, nothing piles up, nothing is forgotten."""

import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mtlops.ancestry import ancestry
from mtlops.bundle import Bundle
from mtlops.cli import main
from mtlops.registry import Registry
from tests.tiny_suite import Workspace

FIRST = (("road", "car", "engine"), ("disk", "chip", "code"), ("god", "church", "plot"))
SECOND = (("phone", "battery", "screen"), ("moon", "planet", "game"), ("film", "movie", "actor"))
LABELS: dict[str, tuple[Any, ...]] = {
    "topic": ("sport", "space", "law"), "mood": ("good", "bad"), "grade": ("low", "middle", "high"),
    "about": ("device", "story"), "stars": (1.2, 3.0, 4.8),
}  # fmt: skip
DRIFTS = [(task, words) for words in (FIRST, SECOND) for task in LABELS]
ENDINGS = ("this", "that", "it", "i", "you", "we", "loved", "hated", "very", "vote")
KEPT = 3
SETTINGS = (
    "retrain.epochs=40", "train.patience=40", "train.learning_rate=0.03", "gates.max_drop=null", "retrain.blend=1",
    f"gates.seed_noise={json.dumps(dict.fromkeys(LABELS, 0.0))}",
)  # fmt: skip


def rows(task: str, words: tuple[tuple[str, ...], ...], number: int) -> Iterator[dict[str, Any]]:
    """Labelled rows of a drift: 54 of each label, told by words that had nothing to do with it so far."""
    endings = ENDINGS[number], ENDINGS[(number + len(LABELS)) % len(ENDINGS)]
    for label, of_label in zip(LABELS[task], words, strict=False):
        for x, y, z, ending in itertools.product(of_label, of_label, of_label, endings):
            text = f"the {x} and {y} of {z} {ending}"
            yield {"body": text, "topic": label, "thread": text} if task == "topic" else {"text": text, task: label}


def size(folder: Path) -> int:
    """Bytes on disk below a folder; a file with several names counts once."""
    found = {path.stat().st_ino: path.stat().st_size for path in folder.rglob("*") if path.is_file()}
    return sum(found.values())


@pytest.mark.slow
@pytest.mark.e2e
def test_ten_drifts_in_a_row_are_repaired_without_leaving_anything(
    finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "project"
    shutil.copytree(finished.root, root)
    monkeypatch.chdir(root)
    registry = Registry(str(root / "registry"))
    registry.promote(registry.publish(root / "models/candidate"), expect=None, by="test", reason="the first")
    first = Bundle.open(root / "models/candidate")
    sets = [word for setting in SETTINGS for word in ("--set", setting)]
    disk = []
    for number, (task, words) in enumerate(DRIFTS):
        window = root / f"drift{number}.jsonl"
        window.write_text("".join(json.dumps(row) + "\n" for row in rows(task, words, number)))
        update = ["train", "--tasks", task, "--from", "registry", "--window", str(window)]
        for command in (update, ["evaluate"], ["export"], ["promote", "--reason", f"drift {number} of {task}"]):
            options = [] if command[0] == "promote" else sets
            said = (number, task, command[0], Path("reports/decision.json").read_text()[:600])
            assert main([*command, "--quiet", *options]) == 0, said
        assert main(["registry", "gc", "--keep", str(KEPT), "--grace-hours", "0", "--quiet"]) == 0
        disk.append(size(root / "registry"))
    history = registry.history()
    assert [entry.reason for entry in history[1:]] == [f"drift {i} of {task}" for i, (task, _) in enumerate(DRIFTS)]
    assert [entry.previous for entry in history[1:]] == [entry.bundle_id for entry in history[:-1]]
    assert len(registry.bundles()) == KEPT
    assert len(ancestry(registry, root / "models/candidate")) >= KEPT
    last = Bundle.open(root / "models/candidate")
    for name, task in last.manifest["tasks"].items():
        metric = task["primary"]
        before, after = (b.manifest["tasks"][name]["metrics"][metric]["value"] for b in (first, last))
        assert after >= before, (name, metric, before, after)
    assert disk[-1] < 1.25 * disk[KEPT], disk
