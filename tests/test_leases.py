"""Publications and collections keep off each other, in either order, and are not held up by the dead."""

import json
import socket
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

import pytest

from mtlops.errors import ArtefactError, PlatformError
from mtlops.leases import GC_LIMIT_SECONDS, UPLOAD_LIMIT_SECONDS, Leases, whoami
from mtlops.storage import Storage, open_storage


@pytest.fixture(params=["folder", "memory"])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path) if request.param == "folder" else f"memory://{uuid.uuid4().hex}")


def sign(*, age_seconds: float = 0.0, host: str = "elsewhere", process: int = 1, **facts: object) -> bytes:
    return json.dumps(
        {"by": "ann", "host": host, "process": process, "time": time.time() - age_seconds, **facts}
    ).encode()


def dead_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_note_is_there_while_something_is_held(storage: Storage) -> None:
    leases = Leases(storage)
    with leases.holding("b1", ["f2", "f1", "f1"]), leases.collecting() as alive:
        [note] = leases.uploads(alive)
        assert (note["bundle"], note["files"], note["by"]) == ("b1", ["f1", "f2"], whoami())
    assert storage.sizes("") == {}


def test_note_goes_when_what_was_held_fails(storage: Storage) -> None:
    with pytest.raises(ArtefactError), Leases(storage).holding("b1", ()):
        raise ArtefactError("damaged")
    assert storage.sizes("uploads") == {}


def test_publication_waits_for_a_collection_that_began_before(storage: Storage) -> None:
    ended = threading.Event()
    order = []

    def publish() -> None:
        with Leases(storage).holding("b1", ()):
            order.append(ended.is_set())

    with Leases(storage).collecting():
        thread = threading.Thread(target=publish)
        thread.start()
        while not storage.sizes("uploads"):
            time.sleep(0.01)
        time.sleep(0.3)
        assert order == []
        ended.set()
    thread.join(timeout=10)
    assert order == [True]


@pytest.mark.parametrize("living", [True, False])
def test_second_collection_is_refused_while_the_first_lives(storage: Storage, living: bool) -> None:
    storage.write("gc.json", sign(age_seconds=0 if living else GC_LIMIT_SECONDS + 1))
    if living:
        with pytest.raises(PlatformError, match="another collection is under way"), Leases(storage).collecting():
            pass
        assert storage.read("gc.json") is not None
    else:
        with Leases(storage).collecting():
            assert json.loads(storage.read("gc.json") or b"")["by"] == whoami()
        assert storage.read("gc.json") is None


def test_killed_processes_of_this_machine_hold_nothing_up(storage: Storage) -> None:
    mark = sign(host=socket.gethostname(), process=dead_process(), bundle="b1", files=[])
    storage.write("gc.json", mark)
    storage.write("uploads/b1-x.json", mark)
    leases = Leases(storage)
    with leases.holding("b2", ()), leases.collecting() as alive:
        assert [note["bundle"] for note in leases.uploads(alive)] == ["b2"]
    assert storage.sizes("") == {}


def test_old_notes_of_other_machines_expire(storage: Storage) -> None:
    storage.write("uploads/old.json", sign(age_seconds=UPLOAD_LIMIT_SECONDS + 1, bundle="old", files=[]))
    storage.write("uploads/new.json", sign(age_seconds=UPLOAD_LIMIT_SECONDS - 60, bundle="new", files=[]))
    leases = Leases(storage)
    with leases.collecting() as alive:
        assert [note["bundle"] for note in leases.uploads(alive)] == ["new"]
    assert set(storage.sizes("uploads")) == {"uploads/new.json"}


def test_collection_renews_its_sign_and_stops_after_a_standstill(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now)
    with Leases(storage).collecting() as alive:
        signed = []
        for _ in alive.each(range(5)):
            signed.append(json.loads(storage.read("gc.json") or b"")["time"])
            now += GC_LIMIT_SECONDS / 4
        assert signed[-1] > signed[0] + GC_LIMIT_SECONDS / 2
        now += GC_LIMIT_SECONDS
        with pytest.raises(PlatformError, match="stood still for"):
            list(alive.each([1]))


def test_collection_leaves_the_mark_of_another_alone(storage: Storage) -> None:
    with Leases(storage).collecting():
        storage.write("gc.json", sign(token="another"))
    assert storage.read("gc.json") is not None


@pytest.mark.parametrize("content", [b"", b"[]", b"{}"])
def test_damaged_note_is_named(storage: Storage, content: bytes) -> None:
    storage.write("gc.json", content)
    with pytest.raises(ArtefactError, match="gc.json: is damaged"), Leases(storage).collecting():
        pass


def test_a_task_is_retrained_by_one_at_a_time(storage: Storage) -> None:
    with Leases(storage).retraining(["topic", "mood"]):
        refused = pytest.raises(PlatformError, match=rf"task topic is being retrained already, by {whoami()}")
        with refused, Leases(storage).retraining(["grade", "topic"]):
            pass
        with Leases(storage).retraining(["grade"]):  # what the refused one had taken is free again
            pass
    with Leases(storage).retraining(["topic"]):
        pass
    assert storage.sizes("retraining") == {}


@pytest.mark.parametrize("age_seconds, is_refused", [(0.0, True), (UPLOAD_LIMIT_SECONDS + 1.0, False)])
def test_the_dead_do_not_hold_a_task(storage: Storage, age_seconds: float, is_refused: bool) -> None:
    storage.write("retraining/topic.json", sign(age_seconds=age_seconds))
    if is_refused:
        with pytest.raises(PlatformError, match="by ann"), Leases(storage).retraining(["topic"]):
            pass
    else:
        with Leases(storage).retraining(["topic"]):
            pass
    storage.write("retraining/mood.json", sign(host=socket.gethostname(), process=dead_process()))
    with Leases(storage).retraining(["mood"]):
        pass
