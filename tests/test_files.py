"""Atomic writes: a reader sees the old or the new, never a mixture."""

import hashlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mtlops.errors import ArtefactError, PlatformError
from mtlops.files import atomic_folder, atomic_path, read_json, sha256_file, sha256_tree, to_json, write_json


def test_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic_path(target) as part:
        part.write_text("half")
        raise ZeroDivisionError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_failed_folder_leaves_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "models" / "trained"
    with atomic_folder(target) as part:
        (part / "x").write_text("1")
    with pytest.raises(ZeroDivisionError), atomic_folder(target) as part:
        (part / "y").write_text("2")
        raise ZeroDivisionError
    assert os.listdir(target.parent) == ["trained"] and os.listdir(target) == ["x"]


def test_folder_is_replaced_as_a_whole(tmp_path: Path) -> None:
    for name in ("x", "y"):
        with atomic_folder(tmp_path / "f") as part:
            (part / name).write_text(name)
    assert os.listdir(tmp_path / "f") == ["y"] and os.listdir(tmp_path) == ["f"]


def test_a_digest_follows_every_change_of_a_file(tmp_path: Path) -> None:
    path, long_ago = tmp_path / "a", time.time() - 100

    def write(content: str, *, at: float | None = None) -> str:
        path.write_text(content)
        if at is not None:
            os.utime(path, (at, at))
        return hashlib.sha256(content.encode()).hexdigest()

    for content in ("one", "two", "six"):  # of one size, faster than a coarse clock
        expected = write(content)
        assert sha256_file(path) == expected
    for content, at in (("ten", long_ago), ("old", long_ago + 1), ("older", long_ago + 1)):
        expected = write(content, at=at)
        assert sha256_file(path) == sha256_file(path) == expected
    replaced = tmp_path / "b"
    replaced.write_text("newer")
    os.utime(replaced, (long_ago + 1, long_ago + 1))
    replaced.replace(path)
    assert sha256_file(path) == hashlib.sha256(b"newer").hexdigest()


def test_unwritable_place_is_a_platform_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(PlatformError, match="cannot be written: File exists"):
        write_json(tmp_path / "file" / "report.json", {})


def test_not_a_number_is_refused() -> None:
    with pytest.raises(ValueError):
        to_json({"x": float("nan")})


@pytest.mark.parametrize(("content", "message"), [(None, "not found. Run `mtlops train`"), (b"{", "not valid JSON")])
def test_reading_json_says_which_command_makes_it(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtefactError, match=message):
        read_json(path, made_by="mtlops train")


def test_tree_hash_sees_names_and_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("1")
    first = sha256_tree(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert sha256_tree(tmp_path) != first


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from mtlops.files import atomic_folder, atomic_path\n"
        "with atomic_folder(Path('f')) as part, atomic_path(part / 'x') as x:\n"
        "    x.write_text('half'); os.kill(os.getpid(), 9)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=False)
    assert len(os.listdir(tmp_path)) == 1
    with atomic_folder(tmp_path / "f") as part:
        (part / "y").write_text("")
    assert os.listdir(tmp_path) == ["f"]
