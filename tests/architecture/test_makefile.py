"""`make` explains itself, and sees an environment that cannot be used."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.clones import ROOT


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("Makefile", "pyproject.toml", "constraints.txt"):
        shutil.copyfile(ROOT / name, tmp_path / name)
    return tmp_path


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS")
    }
    command = ["make", "--no-print-directory", "EXTRA=cpu", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


def test_plain_make_lists_every_target(folder: Path) -> None:
    done = make(folder)
    assert done.returncode == 0
    targets = [line.split()[1] for line in done.stdout.splitlines()]
    assert targets == ["help", "run", "test", "demo", "bench", "image", "lint", "audit", "clean"]
    assert not (folder / ".venv").exists()


def test_no_suitable_python_is_said(folder: Path) -> None:
    done = make(folder, "setup", "PYTHON=")
    assert done.returncode != 0
    assert "found no Python 3.11, 3.12 or 3.13" in done.stderr


def test_half_made_environment_is_made_again(folder: Path) -> None:
    (folder / ".venv/lib").mkdir(parents=True)
    done = make(folder, "setup", "PYTHON=false")
    assert "was not completed" in done.stderr
    assert not (folder / ".venv").exists()
    assert done.returncode != 0


def test_moved_environment_is_made_again(folder: Path) -> None:
    _ready(folder, made_in="elsewhere")
    assert "was moved" in make(folder, "setup", "PYTHON=false").stderr


def test_nothing_happens_when_nothing_changed(folder: Path) -> None:
    _ready(folder, made_in=str(folder))
    done = make(folder, "setup", "PYTHON=false")
    assert (done.returncode, done.stderr) == (0, "")


def test_changed_constraints_install_again(folder: Path) -> None:
    _ready(folder, made_in=str(folder))
    os.utime(folder / "constraints.txt", (2**32, 2**32))
    done = make(folder, "--dry-run", "setup")
    assert "--constraint constraints.txt" in done.stdout


def _ready(folder: Path, *, made_in: str) -> None:
    (folder / ".venv/bin").mkdir(parents=True)
    (folder / ".venv/bin/python").symlink_to(sys.executable)
    (folder / ".venv/ready-cpu").write_text(f"{made_in}\n", encoding="utf-8")
