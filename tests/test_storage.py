"""A storage keeps files by name, and tells two writers of one name apart."""

import os
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from mtlops.errors import ArtefactError, PlatformError, UsageError
from mtlops.files import sha256_file
from mtlops.registry import ChampionChangedError, Registry
from mtlops.storage import Folder, Storage, open_storage
from tests.small_bundles import make_bundle

WRITERS = 16


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    """A bucket of an S3 server on this machine."""
    pytest.importorskip("s3fs", reason="s3fs is not installed: `pip install s3fs 'moto[server]'` to run the S3 tests")
    server_module = pytest.importorskip("moto.server", reason="moto is not installed: see above")
    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    before = dict(os.environ)
    keys = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1"}
    os.environ.update(keys | {"AWS_ENDPOINT_URL": f"http://{host}:{port}"})
    fsspec.filesystem("s3").mkdir("bucket")
    yield "s3://bucket"
    server.stop()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(params=["folder", "file-url", "memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    places = {
        "folder": str(tmp_path / "r"),
        "file-url": f"file://{tmp_path}/r",
        "memory": f"memory://{uuid.uuid4().hex}",
    }
    if request.param in places:
        return places[request.param]
    return f"{request.getfixturevalue('bucket')}/{uuid.uuid4().hex}"


def test_small_files_come_and_go(url: str) -> None:
    storage = open_storage(url)
    assert storage.read("a/b.json") is None
    assert storage.sizes("a") == {}
    storage.write("a/b.json", b"one")
    storage.write("a/b.json", b"three")
    storage.write("a/c/d", b"")
    assert storage.read("a/b.json") == b"three"
    assert storage.sizes("a") == {"a/b.json": 5, "a/c/d": 0}
    assert storage.sizes("") == {"a/b.json": 5, "a/c/d": 0}
    assert 0 <= storage.age_seconds("a/b.json") < 60
    storage.remove("a/b.json")
    storage.remove("a/b.json")
    storage.remove("a/c")
    assert storage.sizes("a") == {}


def test_one_of_many_creators_wins(url: str) -> None:
    for number in range(5):
        start, won = threading.Barrier(WRITERS), []

        def create(writer: int, number: int = number, start: threading.Barrier = start, won: list[int] = won) -> None:
            storage = open_storage(url)
            start.wait()
            if storage.create(f"history/{number}", f"{writer}".encode()):
                won.append(writer)

        threads = [threading.Thread(target=create, args=(writer,)) for writer in range(WRITERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1
        assert open_storage(url).read(f"history/{number}") == f"{won[0]}".encode()
    assert len(open_storage(url).sizes("history")) == 5


def test_large_files_travel_in_pieces(url: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(5 << 20))
    storage, told = open_storage(url), []
    storage.put("blobs/x", source, digest=sha256_file(source), tell=told.append)
    assert sum(told) == 5 << 20
    told.clear()
    assert storage.get("blobs/x", target, tell=told.append)
    assert sum(told) == 5 << 20
    assert target.read_bytes() == source.read_bytes()
    assert not storage.get("blobs/y", tmp_path / "other", tell=told.append)
    assert storage.sizes("blobs") == {"blobs/x": 5 << 20}


def test_registry_works_there(url: str, tmp_path: Path) -> None:
    registry = Registry(url)
    ids = []
    for seed in range(3):
        make_bundle(tmp_path / f"b{seed}", tasks={"topic": seed})
        ids.append(registry.publish(tmp_path / f"b{seed}"))
    registry.promote(ids[0], expect=None, by="a", reason="b")
    registry.promote(ids[1], expect=ids[0], by="a", reason="b")
    with pytest.raises(ChampionChangedError):
        registry.promote(ids[2], expect=ids[0], by="a", reason="b")
    assert Registry(url).rollback(by="a", reason="b").bundle_id == ids[0]
    assert (registry.fetch(ids[1], tmp_path / "cache") / "model.onnx").read_bytes() == (
        tmp_path / "b1/model.onnx"
    ).read_bytes()
    assert registry.gc(keep=1, grace_seconds=0).bundles != ()
    assert Registry(url).ids() == [ids[0]]
    registry.fetch(ids[0], tmp_path / "cache2")


def test_file_that_changes_while_it_is_copied_is_refused(tmp_path: Path) -> None:
    (tmp_path / "source").write_text("a")
    with pytest.raises(ArtefactError, match="it changed while it was copied"):
        Folder(tmp_path / "r").put("blobs/x", tmp_path / "source", digest="0" * 64, tell=lambda _: None)
    assert not (tmp_path / "r/blobs/x").exists()


def test_what_is_half_written_is_not_there_and_goes_in_time(tmp_path: Path) -> None:
    storage = Folder(tmp_path)
    storage.write("blobs/a", b"a")
    (tmp_path / "blobs/.b.elsewhere-1-0.part").write_bytes(b"half")
    (tmp_path / "bundles/.c.elsewhere-1-0.part").mkdir(parents=True)
    assert set(storage.sizes("blobs")) == {"blobs/a"}
    storage.remove_leftovers(older_than_seconds=3600)
    assert len(list(tmp_path.glob("*/.*"))) == 2
    for path in tmp_path.glob("*/.*"):
        os.utime(path, (time.time() - 7200,) * 2)
    storage.remove_leftovers(older_than_seconds=3600)
    assert list(tmp_path.glob("*/.*")) == []


class Overwriting(MemoryFileSystem):
    """A file system that does not know `x`, as some do not."""

    protocol = "overwriting"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]

    def _open(self, path: str, mode: str = "rb", **options: Any) -> Any:
        return super()._open(path, mode.replace("x", "w"), **options)


class Exclusive(MemoryFileSystem):
    """One that knows it, but of which mtlops knows nothing."""

    protocol = "exclusive"
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]


@pytest.fixture
def known() -> Storage:
    for system in (Overwriting, Exclusive):
        fsspec.register_implementation(system.protocol, system, clobber=True)
    return open_storage("exclusive://r")


def test_storage_that_cannot_tell_writers_apart_is_refused(known: Storage) -> None:
    assert known.create("history/1", b"a")
    assert not known.create("history/1", b"b")
    assert known.read("history/1") == b"a"
    with pytest.raises(PlatformError, match="overwriting://r: this storage cannot create a file only if there is none"):
        open_storage("overwriting://r").create("history/1", b"a")


@pytest.mark.parametrize(
    ("url", "message"),
    [("", "is empty"), ("nothing://a", "nothing://a: Protocol not known: nothing"), ("hdfs://a:1/b", "hdfs://a:1/b")],
)
def test_impossible_url_is_an_error(url: str, message: str) -> None:
    with pytest.raises((UsageError, PlatformError), match=message):
        open_storage(url).read("a")


def test_server_that_is_away_is_a_platform_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    with pytest.raises((PlatformError, UsageError), match="http://127.0.0.1:9"):
        Registry("http://127.0.0.1:9/r").champion()
