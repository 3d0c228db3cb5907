"""A bundle is checked to the byte, and compared to the bit."""

import shutil
from pathlib import Path

import pytest

from mtlops.bundle import Bundle, diff
from mtlops.errors import ArtefactError
from mtlops.files import read_json, write_json
from tests.tiny_suite import Workspace


@pytest.fixture
def copy(finished: Workspace, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.bundle, tmp_path / "bundle"))


def test_manifest_holds_what_the_contract_names(finished: Workspace) -> None:
    bundle = Bundle.open(finished.bundle)
    assert {"schema_version", "suite", "created", "code", "data", "params", "parent", "trunk", "tasks", "files"} <= set(
        bundle.manifest
    )
    assert [task.name for task in bundle.tasks] == ["mood", "grade", "stars", "about", "topic"]
    topic = bundle.manifest["tasks"]["topic"]
    assert topic["classes"] == ["sport", "space", "law"] and topic["columns"] == [0, 3] and topic["metrics"]
    assert "trunk/model.safetensors" in bundle.manifest["files"] and len(bundle.id) == 16


@pytest.mark.parametrize(
    "name", ["model.onnx", "golden.json", "card.md", "trunk/model.safetensors", "tasks/topic/adapter.safetensors"]
)
def test_one_flipped_bit_is_named(copy: Path, name: str) -> None:
    raw = bytearray((copy / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (copy / name).write_bytes(raw)
    with pytest.raises(ArtefactError, match=f"{name}: its sha256 is not the one in manifest.json"):
        Bundle.open(copy)


def test_missing_and_extra_files_are_named(copy: Path) -> None:
    (copy / "extra").write_text("")
    with pytest.raises(ArtefactError, match="extra: is not in manifest.json"):
        Bundle.open(copy)
    (copy / "extra").unlink()
    (copy / "tasks/mood/head.safetensors").unlink()
    with pytest.raises(ArtefactError, match="tasks/mood/head.safetensors: missing"):
        Bundle.open(copy)


def test_another_version_and_another_folder_are_refused(copy: Path, tmp_path: Path) -> None:
    manifest = read_json(copy / "manifest.json", made_by="")
    write_json(copy / "manifest.json", manifest | {"schema_version": 99})
    with pytest.raises(ArtefactError, match="schema_version 99, this mtlops reads 1"):
        Bundle.open(copy)
    with pytest.raises(ArtefactError, match="not found. Run `mtlops export` first"):
        Bundle.open(tmp_path / "nothing")


def test_diff_names_the_changed_task_only(finished: Workspace, copy: Path) -> None:
    golden = read_json(copy / "golden.json", made_by="")
    golden["rows"][0]["logits"]["topic"][0] += 0.5
    manifest = read_json(copy / "manifest.json", made_by="")
    manifest["files"]["tasks/topic/adapter.safetensors"] = "0" * 64
    write_json(copy / "golden.json", golden)
    parts = diff(Bundle.open(finished.bundle), Bundle(copy, manifest))
    assert {name: (p.files, p.outputs) for name, p in parts.items()} == {
        "trunk": ("identical", None),
        "mood": ("identical", "identical"),
        "grade": ("identical", "identical"),
        "stars": ("identical", "identical"),
        "about": ("identical", "identical"),
        "topic": ("changed", "changed"),
    }
    assert parts["topic"].largest == pytest.approx(0.5)
