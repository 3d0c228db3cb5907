"""Real clones of this repository, with a tiny suite that runs in seconds."""

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.tiny_encoder import write_encoder

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Clone:
    """A clone of this repository with a tiny suite of its own files, on a tiny encoder.

    Attributes:
        folder: where it lies; `.venv` there is the environment that runs the tests.
        library: folder from which mtlops is imported; `folder` itself when None.
    """

    folder: Path
    library: Path | None = None

    def run(self, *command: str, code: int | None = 0) -> str:
        """Runs a command in the clone and returns what it printed; `code` is the exit code that it must have."""
        path = f"{sys.prefix}/bin:{os.environ['PATH']}"
        environment = os.environ | {"PYTHONPATH": str(self.library or self.folder), "PATH": path}
        done = subprocess.run(
            command, cwd=self.folder, env=environment, check=False, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if code is not None:
            assert done.returncode == code, f"{' '.join(command)}: exit {done.returncode}\n{done.stdout[-4000:]}"
        return done.stdout

    def commit(self, message: str) -> None:
        """Commits everything."""
        self.run("git", "add", "--all")
        author = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        self.run("git", *author, "commit", "--quiet", "--message", message)


def repository_files() -> list[str]:
    """Paths of all files that are in git or would be with the next commit."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [name for name in listed.split("\0") if name and (ROOT / name).is_file()]


def make_clone(folder: Path) -> Clone:
    """Makes a clone at `folder` whose params.yaml is the tiny suite of tests/data_files."""
    for name in repository_files():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, folder / name)
        shutil.copymode(ROOT / name, folder / name)
    tiny = ROOT / "tests/data_files"
    shutil.copyfile(tiny / "params.yaml", folder / "params.yaml")
    for source in ("reviews.csv", "posts.jsonl", "checks.yaml"):
        shutil.copyfile(tiny / source, folder / "data/sources" / source)
    write_encoder(folder / "data/sources/encoder")
    (folder / "dvc.lock").unlink(missing_ok=True)
    (folder / ".venv").symlink_to(sys.prefix)
    clone = Clone(folder)
    clone.run("git", "init", "--quiet", "--initial-branch=main")
    clone.commit("start")
    return clone


def set_value(path: Path, old: str, new: str) -> None:
    """Replaces a text that occurs once in a file."""
    text = path.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{path}: {old!r} occurs {text.count(old)} times"
    path.write_text(text.replace(old, new), encoding="utf-8")


def same_files(folders: Sequence[Path]) -> dict[str, bytes]:
    """Returns the files below each of `folders`, which must be the same everywhere, to the byte."""
    contents = [{p.relative_to(f).as_posix(): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in folders]
    for folder, content in zip(folders[1:], contents[1:], strict=True):
        assert content.keys() == contents[0].keys(), f"{folder} and {folders[0]} hold different files"
        different = [name for name in content if content[name] != contents[0][name]]
        assert not different, f"{folder} and {folders[0]} differ in {different}"
    return contents[0]
