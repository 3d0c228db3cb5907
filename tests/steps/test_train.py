"""The train step as a process: killed, out of disk, on other params; always the same bytes or the old ones."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mtlops.errors import UsageError
from mtlops.files import sha256_tree
from mtlops.steps.train import train
from tests.tiny_suite import Workspace

pytestmark = pytest.mark.e2e

TRAIN = [sys.executable, "-m", "mtlops", "train", "--set", "train.seed=7", "--set", "train.checkpoint_seconds=0.0001"]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}


@pytest.fixture
def work(finished: Workspace, tmp_path: Path) -> Workspace:
    return Workspace(Path(shutil.copytree(finished.root, tmp_path / "project")))


def _kill_at(folder: Path, sign: str) -> None:
    """Starts `mtlops train` and kills it with -9 when its log shows `sign`."""
    with subprocess.Popen(TRAIN, cwd=folder, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        assert any(sign in line for line in process.stderr), f"no {sign!r} in the log"
        process.kill()


def test_killed_runs_end_with_the_bytes_of_an_uninterrupted_one(work: Workspace, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(work.root, tmp_path / "whole"))
    before = sha256_tree(work.root / "models/trained")
    subprocess.run(TRAIN, cwd=whole, env=ENVIRONMENT, check=True)
    shutil.rmtree(work.root / "data/cache")
    for sign in ("device=cpu", "epoch=1 task=mood", "epoch=2 task=mood"):
        _kill_at(work.root, sign)
        assert sha256_tree(work.root / "models/trained") == before
    done = subprocess.run(TRAIN, cwd=work.root, env=ENVIRONMENT, check=True, stderr=subprocess.PIPE, text=True)
    assert "resumed epoch=2" in done.stderr
    assert sha256_tree(work.root / "models/trained") == sha256_tree(whole / "models/trained") != before
    assert not list((work.root / "data/cache").glob("checkpoint*"))


def test_a_killed_run_is_not_resumed_by_other_code(work: Workspace, tmp_path: Path) -> None:
    _kill_at(work.root, "epoch=1 task=mood")
    package = Path(shutil.copytree(Path(ENVIRONMENT["PYTHONPATH"]) / "mtlops", tmp_path / "other/mtlops"))
    with (package / "training/loop.py").open("a", encoding="utf-8") as file:
        file.write("# another loop\n")
    done = subprocess.run(
        TRAIN, cwd=work.root, env=ENVIRONMENT | {"PYTHONPATH": str(package.parent)},
        check=True, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert "resumed" not in done.stderr


@pytest.mark.parametrize(("step", "limit", "output"), [("train", 4_000, "trained"), ("export", 50_000, "candidate")])
def test_full_disk_is_a_platform_error_and_keeps_the_old_output(
    work: Workspace, step: str, limit: int, output: str
) -> None:
    before = sha256_tree(work.root / "models" / output)
    done = subprocess.run(
        [sys.executable, "-m", "mtlops", step, "--set", "train.seed=7", "--set", "train.checkpoint_seconds=0.0001"],
        cwd=work.root, env=ENVIRONMENT, check=False, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 5
    assert "cannot be written: File too large. Free space" in done.stderr.splitlines()[-1]
    assert sha256_tree(work.root / "models" / output) == before
    assert not list((work.root / "models").glob(".*.part"))


def test_params_that_do_not_fit_the_encoder_are_usage_errors(work: Workspace) -> None:
    paths = work.paths("prepared", "encoder", "cache")
    with pytest.raises(UsageError, match="max_tokens: 500; this encoder has 64 positions"):
        train(work.params("encoder.max_tokens=500"), **paths)
    with pytest.raises(UsageError, match="adapter_drop: 3 leaves no layer for an adapter"):
        train(work.params("model.adapter_drop=3"), **paths)
