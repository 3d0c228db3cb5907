"""The registry keeps bundles by content, changes its champion by compare-and-set, and damages are named."""

import json
import logging
import os
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from mtlops import registry as registry_module
from mtlops.bundle import Bundle
from mtlops.errors import ArtefactError, PlatformError
from mtlops.files import sha256_file
from mtlops.registry import ChampionChangedError, Registry, registry_url
from mtlops.storage import open_storage
from tests.clones import ROOT
from tests.small_bundles import TASK_BYTES, TRUNK_BYTES, make_bundle

WHO = {"by": "someone", "reason": "a test"}


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "registry") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/registry"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "registry"


def publish(registry: Registry, tmp_path: Path, *, age_seconds: float = 0.0, **content: object) -> str:
    """Makes a bundle, publishes it and, in a folder, makes it look as old as asked."""
    source = tmp_path / f"bundle-{uuid.uuid4().hex}"
    make_bundle(source, **content)
    bundle_id = registry.publish(source)
    for path in Path(registry.url).rglob("*") if age_seconds else ():
        os.utime(path, (time.time() - age_seconds,) * 2)
    return bundle_id


def three_champions(registry: Registry, tmp_path: Path, **options: float) -> list[str]:
    ids = [publish(registry, tmp_path, tasks={"topic": seed}, **options) for seed in (1, 2, 3)]
    for previous, bundle_id in zip([None, *ids], ids, strict=False):
        registry.promote(bundle_id, expect=previous, **WHO)
    return ids


def blob(folder: Path, bundle_id: str, name: str) -> Path:
    manifest = json.loads((folder / "bundles" / bundle_id / "manifest.json").read_bytes())
    return folder / "blobs" / manifest["files"][name]


def test_url_is_the_option_then_the_environment_then_beside_params(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MTLOPS_REGISTRY", raising=False)
    assert registry_url(None, beside=Path("a/params.yaml")) == "a/registry"
    monkeypatch.setenv("MTLOPS_REGISTRY", "s3://bucket/r")
    assert registry_url(None) == "s3://bucket/r"
    assert registry_url("b") == "b"


def test_reading_an_empty_registry_writes_nothing(folder: Path) -> None:
    registry = Registry(folder)
    assert registry.champion() is None
    assert (registry.history(), registry.bundles(), registry.ids()) == ([], [], [])
    assert not folder.exists()


def test_fetched_bundle_is_the_published_one(url: str, tmp_path: Path) -> None:
    source = tmp_path / "bundle"
    bundle_id = make_bundle(source)
    registry = Registry(url)
    assert registry.publish(source) == bundle_id
    fetched = Bundle.open(registry.fetch(bundle_id, tmp_path / "cache"))
    assert fetched.folder == tmp_path / "cache" / bundle_id
    assert fetched.id == bundle_id
    for name in [*fetched.manifest["files"], "manifest.json"]:
        assert (fetched.folder / name).read_bytes() == (source / name).read_bytes()
    assert registry.fetch(bundle_id, tmp_path / "cache") == fetched.folder


def test_published_folder_is_a_bundle_and_shares_its_bytes(folder: Path, tmp_path: Path) -> None:
    bundle_id = publish(Registry(folder), tmp_path)
    bundle = Bundle.open(folder / "bundles" / bundle_id)
    for name, digest in bundle.manifest["files"].items():
        assert (bundle.folder / name).samefile(folder / "blobs" / digest)


def test_publishing_again_adds_nothing(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    publish(registry, tmp_path)
    before = registry.bundles()
    publish(registry, tmp_path)
    assert [(b.id, b.bytes, b.added_bytes) for b in registry.bundles()] == [
        (b.id, b.bytes, b.added_bytes) for b in before
    ]


def test_a_damaged_bundle_is_not_published(url: str, tmp_path: Path) -> None:
    make_bundle(tmp_path / "bundle")
    (tmp_path / "bundle/model.onnx").write_bytes(b"other")
    with pytest.raises(ArtefactError, match="model.onnx: its sha256 is not the one"):
        Registry(url).publish(tmp_path / "bundle")
    assert Registry(url).bundles() == []


def test_one_changed_task_adds_its_files_and_the_graph_only(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    first = publish(registry, tmp_path)
    second = publish(registry, tmp_path, tasks={"topic": 1})
    bundles = {bundle.id: bundle for bundle in registry.bundles()}
    own = {name: file.bytes for name, file in bundles[second].files.items() if file.bundles == 1}
    expected = {"tasks/topic/adapter.safetensors", "tasks/topic/head.safetensors"}
    assert set(own) == expected | {"model.onnx", "golden.json", "card.md"}
    assert own["tasks/topic/adapter.safetensors"] == TASK_BYTES
    if not url.startswith("memory"):
        sizes = {p: p.stat().st_size for p in Path(url, "blobs").iterdir()}
        manifests = [Path(url, "bundles", i, "manifest.json").stat().st_size for i in (first, second)]
        assert bundles[second].added_bytes == sum(own.values()) + manifests[1]
        assert sum(b.added_bytes for b in bundles.values()) == sum(sizes.values()) + sum(manifests)
    assert bundles[second].added_bytes < bundles[second].bytes - TRUNK_BYTES


def test_promotion_is_written_down(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    one, two = publish(registry, tmp_path), publish(registry, tmp_path, trunk=1)
    registry.promote(one, expect=None, by="ann", reason="first", verdict="PROMOTE", report={"a": [1, None]})
    registry.promote(two, expect=one, by="bob", reason="better")
    first, second = Registry(url).history()
    assert (first.version, first.bundle_id, first.previous, first.action) == (1, one, None, "promote")
    assert (first.by, first.reason, first.verdict, first.report) == ("ann", "first", "PROMOTE", {"a": [1, None]})
    assert (second.version, second.bundle_id, second.previous, second.by) == (2, two, one, "bob")
    assert Registry(url).champion() == second
    assert first.time.endswith("Z") and first.time <= second.time
    pointer = open_storage(url).read("champion.json")
    assert pointer == open_storage(url).read("history/00000002.json")


def test_only_the_expected_champion_is_replaced(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    one, two, three = (publish(registry, tmp_path, trunk=seed) for seed in (1, 2, 3))
    with pytest.raises(ChampionChangedError, match=f"expected {one}, it is nobody"):
        registry.promote(two, expect=one, **WHO)
    registry.promote(one, expect=None, **WHO)
    registry.promote(two, expect=one, **WHO)
    with pytest.raises(ChampionChangedError, match=rf"expected {one}, it is {two} \(version 2, by someone\)"):
        registry.promote(three, expect=one, **WHO)
    assert [entry.bundle_id for entry in registry.history()] == [one, two]


def test_promoting_the_champion_again_changes_nothing(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    bundle_id = publish(registry, tmp_path)
    entry = registry.promote(bundle_id, expect=None, **WHO)
    assert registry.promote(bundle_id, expect=None, **WHO) == entry
    assert len(registry.history()) == 1


def test_unpublished_bundle_is_not_promoted(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    publish(registry, tmp_path)
    with pytest.raises(ArtefactError, match="holds no bundle '0123456789abcdef'"):
        registry.promote("0123456789abcdef", expect=None, **WHO)
    assert registry.champion() is None


@pytest.mark.parametrize("content", [None, b"", b'{"version": 1', b'{"version": 1}\n'])
def test_champion_is_the_newest_entry_whatever_its_copy_says(url: str, tmp_path: Path, content: bytes | None) -> None:
    registry = Registry(url)
    ids = three_champions(registry, tmp_path)
    storage = open_storage(url)
    good = storage.read("champion.json")
    storage.remove("champion.json")
    if content is not None:
        storage.write("champion.json", content)
    champion = Registry(url).champion()
    assert champion is not None and champion.bundle_id == ids[2]
    assert storage.read("champion.json") == good


@pytest.mark.parametrize("content", [b"", b'{"schema_version": 1, "version": 3}', b"[]", b'{"schema_version": 9}'])
def test_damaged_history_is_named(url: str, tmp_path: Path, content: bytes) -> None:
    registry = Registry(url)
    three_champions(registry, tmp_path)
    open_storage(url).write("history/00000003.json", content)
    with pytest.raises(ArtefactError, match="history/00000003.json: "):
        registry.champion()


def test_gap_in_the_history_is_named(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    three_champions(registry, tmp_path)
    open_storage(url).remove("history/00000002.json")
    with pytest.raises(ArtefactError, match="history/00000002.json: missing"):
        registry.history()


def test_rollbacks_go_back_promotion_by_promotion(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    one, two, three = three_champions(registry, tmp_path)
    assert registry.rollback(**WHO).bundle_id == two
    entry = registry.rollback(**WHO)
    assert (entry.bundle_id, entry.version, entry.action, entry.previous) == (one, 5, "rollback", two)
    with pytest.raises(ArtefactError, match=f"{one} is the first champion"):
        registry.rollback(**WHO)
    registry.promote(three, expect=one, **WHO)
    assert registry.rollback(**WHO).bundle_id == one
    assert [e.bundle_id for e in registry.history()] == [one, two, three, two, one, three, one]


def test_rollback_to_a_named_champion(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    one, _, three = three_champions(registry, tmp_path)
    never = publish(registry, tmp_path, trunk=9)
    with pytest.raises(ArtefactError, match=f"{never} never was champion"):
        registry.rollback(never, **WHO)
    with pytest.raises(ArtefactError, match=f"{three} is the champion"):
        registry.rollback(three, **WHO)
    assert registry.rollback(one, **WHO).bundle_id == one


def test_rollback_needs_a_champion_and_its_files(folder: Path, tmp_path: Path) -> None:
    registry = Registry(folder)
    with pytest.raises(ArtefactError, match="no champion yet"):
        registry.rollback(**WHO)
    _, two, _ = three_champions(registry, tmp_path)
    missing = blob(folder, two, "tasks/topic/head.safetensors")
    missing.unlink()
    with pytest.raises(ArtefactError, match=rf"blobs/{missing.name}: missing \(tasks/topic/head.safetensors of {two}"):
        registry.rollback(**WHO)
    assert len(registry.history()) == 3


def test_flipped_bit_is_refused_by_name_and_healed_by_publishing(folder: Path, tmp_path: Path) -> None:
    registry = Registry(folder)
    source = tmp_path / "bundle"
    bundle_id = make_bundle(source)
    registry.publish(source)
    path = blob(folder, bundle_id, "model.onnx")
    raw = bytearray(path.read_bytes())
    raw[100] ^= 1
    path.chmod(0o644)
    path.write_bytes(raw)
    with pytest.raises(ArtefactError, match=rf"blobs/{path.name}: is damaged.*\(it is model.onnx\)"):
        registry.fetch(bundle_id, tmp_path / "cache")
    assert not (tmp_path / "cache" / bundle_id).exists()
    registry.publish(source)
    Bundle.open(registry.fetch(bundle_id, tmp_path / "cache"))
    Bundle.open(folder / "bundles" / bundle_id)


def test_object_of_another_content_is_refused_by_name(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    registry = Registry(url)
    source = tmp_path / "bundle"
    bundle_id = make_bundle(source)
    registry.publish(source)
    name = f"blobs/{sha256_file(source / 'model.onnx')}"
    open_storage(url).write(name, b"cut off")
    with pytest.raises(ArtefactError, match=f"{name}: is damaged"):
        registry.fetch(bundle_id, tmp_path / "cache")
    registry.publish(source)
    Bundle.open(registry.fetch(bundle_id, tmp_path / "cache"))


def test_missing_file_and_changed_manifest_are_named(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    bundle_id = publish(registry, tmp_path)
    storage = open_storage(url)
    digest = registry.manifest(bundle_id)["files"]["card.md"]
    storage.remove(f"blobs/{digest}")
    with pytest.raises(ArtefactError, match=rf"blobs/{digest}: missing \(it is card.md\)"):
        registry.fetch(bundle_id, tmp_path / "cache")
    storage.write(f"bundles/{bundle_id}/manifest.json", b"{}")
    with pytest.raises(ArtefactError, match=f"{bundle_id}/manifest.json: is damaged"):
        registry.fetch(bundle_id, tmp_path / "cache")


@pytest.mark.parametrize("name", ["../outside", "/outside", "trunk/../../outside"])
def test_manifest_that_leaves_the_bundle_is_refused(url: str, tmp_path: Path, name: str) -> None:
    import hashlib

    raw = json.dumps({"schema_version": 1, "files": {name: "0" * 64}}).encode()
    bundle_id = hashlib.sha256(raw).hexdigest()[:16]
    open_storage(url).write(f"bundles/{bundle_id}/manifest.json", raw)
    with pytest.raises(ArtefactError, match="outside the bundle"):
        Registry(url).fetch(bundle_id, tmp_path / "cache")


def test_damaged_cache_is_fetched_again(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    bundle_id = publish(registry, tmp_path)
    cached = registry.fetch(bundle_id, tmp_path / "cache")
    (cached / "card.md").unlink()
    (cached / "card.md").write_text("other")
    assert Bundle.open(registry.fetch(bundle_id, tmp_path / "cache")).id == bundle_id


def test_unchanged_files_come_from_the_cache_and_are_checked(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4().hex}"
    registry = Registry(url)
    one, two, three = (publish(registry, tmp_path, tasks={"topic": seed}) for seed in (1, 2, 3))
    trunk = f"blobs/{registry.manifest(one)['files']['trunk/model.safetensors']}"
    cached = registry.fetch(one, tmp_path / "cache")
    content = open_storage(url).read(trunk)
    assert content is not None
    open_storage(url).remove(trunk)
    Bundle.open(registry.fetch(two, tmp_path / "cache"))
    for bundle in (cached, tmp_path / "cache" / two):
        (bundle / "trunk/model.safetensors").unlink()
        (bundle / "trunk/model.safetensors").write_bytes(b"damaged")
    open_storage(url).write(trunk, content)
    Bundle.open(registry.fetch(three, tmp_path / "cache"))


def test_fetching_an_unknown_bundle_is_an_error(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    with pytest.raises(ArtefactError, match="holds no bundle 'ffff'. It is empty"):
        registry.fetch("ffff", tmp_path / "cache")


def test_id_may_be_shortened_while_it_is_one(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    ids = [publish(registry, tmp_path, trunk=seed) for seed in range(3)]
    assert registry.find_id(ids[0][:12]) == ids[0]
    with pytest.raises(ArtefactError, match="'' is the start of 3 bundles"):
        registry.find_id("")


def test_gc_keeps_the_newest_champions_and_what_they_hold(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    one, two, three = three_champions(registry, tmp_path)
    never = publish(registry, tmp_path, trunk=9)
    would = registry.gc(keep=2, grace_seconds=0, dry_run=True)
    assert set(would.bundles) == {one, never}
    assert set(registry.ids()) == {one, two, three, never}
    assert registry.gc(keep=2, grace_seconds=0) == would
    assert set(registry.ids()) == {two, three}
    sizes = open_storage(url).sizes("blobs")
    held = {d for i in (two, three) for d in registry.manifest(i)["files"].values()}
    assert set(sizes) == {f"blobs/{digest}" for digest in held}
    assert would.bytes > TRUNK_BYTES
    for bundle_id in (two, three):
        Bundle.open(registry.fetch(bundle_id, tmp_path / "cache"))
    assert len(registry.history()) == 3
    assert registry.gc(keep=2, grace_seconds=0).bundles == ()


def test_gc_counts_different_bundles_and_always_keeps_the_champion(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    one, two, _ = three_champions(registry, tmp_path)
    registry.rollback(two, **WHO)
    registry.rollback(one, **WHO)
    registry.promote(two, expect=one, **WHO)
    registry.gc(keep=2, grace_seconds=0)
    assert set(registry.ids()) == {one, two}
    registry.gc(keep=0, grace_seconds=0)
    assert registry.ids() == [two]


def test_gc_leaves_what_is_young(folder: Path, tmp_path: Path) -> None:
    registry = Registry(folder)
    old = publish(registry, tmp_path, trunk=1, age_seconds=7200)
    young = publish(registry, tmp_path, trunk=2)
    (folder / "blobs" / ("0" * 64)).write_bytes(b"left by a killed upload")
    assert registry.gc(grace_seconds=3600).bundles == (old,)
    assert registry.ids() == [young]
    assert (folder / "blobs" / ("0" * 64)).exists()
    registry.gc(grace_seconds=0)
    assert list((folder / "blobs").iterdir()) == []


def test_gc_is_not_free_to_remove_what_is_being_published(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    bundle_id = publish(registry, tmp_path)
    with registry.keeping(bundle_id):
        assert registry.gc(grace_seconds=0).bundles == ()
    assert registry.gc(grace_seconds=0).bundles == (bundle_id,)


def test_rollback_to_a_collected_bundle_is_an_error(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    one, _, _ = three_champions(registry, tmp_path)
    registry.gc(keep=2, grace_seconds=0)
    with pytest.raises(ArtefactError, match=f"holds no bundle '{one}'"):
        registry.rollback(one, **WHO)


def test_registry_works_without_hard_links(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    registry = Registry(folder)
    ids = three_champions(registry, tmp_path)
    with pytest.raises(ChampionChangedError):
        registry.promote(ids[0], expect=ids[1], **WHO)
    registry.rollback(**WHO)
    Bundle.open(registry.fetch(ids[1], tmp_path / "cache"))


def test_long_transfers_say_how_far_they_are(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(registry_module, "_PROGRESS_SECONDS", -1.0)
    registry = Registry(url)
    with caplog.at_level(logging.INFO, "mtlops.registry"):
        bundle_id = publish(registry, tmp_path)
        registry.fetch(bundle_id, tmp_path / "cache")
    lines = [record.getMessage() for record in caplog.records]
    [bundle] = registry.bundles()
    total = bundle.bytes - len(json.dumps(bundle.manifest, indent=2, ensure_ascii=False)) - 1
    for what in ("publishing", "fetching"):
        last = [line for line in lines if line.startswith(f"{what} {bundle_id}")][-1]
        assert last.endswith(f"bytes={total}/{total}")


MEMORY = """
import resource, sys
from pathlib import Path
from mtlops.registry import Registry
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
registry = Registry(sys.argv[1])
bundle_id = registry.publish(Path(sys.argv[2]))
registry.fetch(bundle_id, Path(sys.argv[3]))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_large_files_are_streamed(folder: Path, tmp_path: Path) -> None:
    from mtlops.bundle import write_manifest

    source = tmp_path / "bundle"
    source.mkdir()
    with (source / "model.onnx").open("wb") as file:
        file.truncate(200 << 20)
    write_manifest(source, {"tasks": {}, "parent": None})
    command = [sys.executable, "-c", MEMORY, str(folder), str(source), str(tmp_path / "cache")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 30 << 10  # kB


WRITER = """
import ctypes, resource, sys
from pathlib import Path
from mtlops.registry import Registry
from mtlops.errors import PlatformError
mode, url, source, current, other = sys.argv[1:]
if mode == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
registry = Registry(url)
assert registry.champion().bundle_id == current
for act in (
    lambda: registry.publish(Path(source)),
    lambda: registry.promote(other, expect=current, by="x", reason="y", report={"padding": "x" * 30_000}),
    lambda: mode == "read-only" and registry.rollback(by="x", reason="y") or registry.publish(Path(source)),
    lambda: mode == "read-only" and registry.gc(grace_seconds=0) or registry.publish(Path(source)),
):
    try:
        act()
        print("it went through")
    except PlatformError as error:
        print(error)
"""


def _without_override() -> None:
    """Takes from root the right to write where the mode forbids it; nothing to take from others."""
    import ctypes

    for capability in (1, 2):  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


@pytest.mark.parametrize("mode", ["read-only", "full"])
def test_registry_that_cannot_be_written_stays_valid_and_readable(folder: Path, tmp_path: Path, mode: str) -> None:
    registry = Registry(folder)
    *_, other, current = three_champions(registry, tmp_path)
    make_bundle(tmp_path / "new", trunk=7)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    places = [folder, *(p for p in folder.rglob("*") if p.is_dir())]
    if mode == "read-only":
        (folder / "champion.json").unlink()  # a reader may not put it right, and goes on
        for place in places:
            place.chmod(0o555)
    try:
        done = subprocess.run(
            [sys.executable, "-c", WRITER, mode, str(folder), str(tmp_path / "new"), current, other],
            cwd=ROOT, capture_output=True, text=True, check=False,
            preexec_fn=_without_override if mode == "read-only" else None,
        )  # fmt: skip
    finally:
        for place in places:
            place.chmod(0o755)
    assert done.returncode == 0, done.stderr
    reason = "Permission denied" if mode == "read-only" else "File too large"
    lines = done.stdout.splitlines()
    assert len(lines) == 4 and all(reason in line and str(folder) in line for line in lines), lines
    champion = registry.champion()
    assert champion is not None and champion.bundle_id == current
    after = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert {p: after.get(p) for p in before} == before
    assert registry.publish(tmp_path / "new") in registry.ids()


READER = """
import sys
from mtlops.registry import Registry
from mtlops.errors import PlatformError
try:
    print(Registry(sys.argv[1]).champion())
except PlatformError as error:
    print(error)
"""


@pytest.mark.parametrize("part", [".", "history"])
def test_unreadable_registry_is_not_taken_for_an_empty_one(folder: Path, tmp_path: Path, part: str) -> None:
    three_champions(Registry(folder), tmp_path)
    (folder / part).chmod(0)
    try:
        done = subprocess.run(
            [sys.executable, "-c", READER, str(folder)],
            cwd=ROOT, capture_output=True, text=True, check=True, preexec_fn=_without_override,
        )  # fmt: skip
    finally:
        (folder / part).chmod(0o755)
    assert done.stdout == f"{folder}/history: cannot be read: Permission denied.\n"


def test_registry_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(PlatformError, match="file/history: cannot be read: Not a directory"):
        Registry(tmp_path / "file").champion()


def test_some_files_of_a_bundle_are_fetched_and_checked(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    one = publish(registry, tmp_path)
    names = ["golden.json", "tasks/topic/head.safetensors"]
    for _ in range(2):
        found = registry.fetch_files(one, names, tmp_path / "cache")
        files = {path.relative_to(found.folder).as_posix() for path in found.folder.rglob("*") if path.is_file()}
        assert files == {"manifest.json", *names} and found.id == one
        assert sha256_file(found.folder / names[1]) == found.manifest["files"][names[1]]
        (found.folder / names[1]).write_bytes(b"damaged")
    with pytest.raises(ArtefactError, match="missing or damaged"):
        registry.fetch_files(one, ["no-such-file"], tmp_path / "cache")


def test_the_pointer_is_what_champion_json_says(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    assert registry.pointer() is None
    one = publish(registry, tmp_path)
    registry.promote(one, expect=None, by="test", reason="test")
    assert json.loads(registry.pointer() or b"")["bundle_id"] == one
