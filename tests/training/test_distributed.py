"""Several processes train what one trains, and a run goes on with another number of them."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mtlops.files import read_json
from mtlops.training.distributed import World
from tests.tiny_suite import Workspace

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
TRAIN = ("-m", "mtlops", "train", "--set", "train.seed=7", "--set", "train.checkpoint_seconds=0.0001")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@pytest.fixture
def work(finished: Workspace, tmp_path: Path) -> Workspace:
    work = Workspace(Path(shutil.copytree(finished.root, tmp_path / "project")))
    shutil.rmtree(work.root / "data/cache")
    return work


def _run(command: Sequence[str], work: Workspace) -> str:
    done = subprocess.run(command, cwd=work.root, env=ENVIRONMENT, check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


def _stop(command: Sequence[str], work: Workspace, *, sign: str, by: signal.Signals) -> tuple[int, str]:
    """Starts a run and sends a signal when its log shows `sign`; returns its exit code and log."""
    with subprocess.Popen(command, cwd=work.root, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        log = []
        for line in process.stderr:
            log.append(line)
            if sign in line:
                process.send_signal(by)
        return process.wait(), "".join(log)


def _assert_same(a: Path, b: Path) -> None:
    curves = [read_json(root / "reports/curves.json", made_by="") for root in (a, b)]
    for ours, theirs in zip(*curves, strict=True):
        assert ours["train_loss"] == pytest.approx(theirs["train_loss"], abs=1e-5)
    files = sorted(path.relative_to(a) for path in (a / "models/trained").rglob("*.safetensors"))
    assert files
    for name in files:
        mine, other = load_file(a / name), load_file(b / name)
        for key, tensor in mine.items():
            np.testing.assert_allclose(tensor, other[key], atol=1e-4, err_msg=f"{name} {key}")


@pytest.mark.e2e
def test_two_processes_follow_the_path_of_one_even_after_a_change_of_their_number(
    work: Workspace, tmp_path: Path
) -> None:
    alone, changed = (Workspace(Path(shutil.copytree(work.root, tmp_path / name))) for name in ("alone", "changed"))
    _run((sys.executable, *TRAIN), alone)
    assert "processes=2" in _run((*TORCHRUN, *TRAIN), work)
    _assert_same(alone.root, work.root)
    code, log = _stop((sys.executable, *TRAIN), changed, sign="epoch=1 task=mood", by=signal.SIGKILL)
    assert code == -signal.SIGKILL, log
    assert "resumed epoch=" in _run((*TORCHRUN, *TRAIN), changed)
    _assert_same(alone.root, changed.root)


@pytest.mark.e2e
def test_sigterm_saves_and_exits_with_143(work: Workspace, tmp_path: Path) -> None:
    whole = Workspace(Path(shutil.copytree(work.root, tmp_path / "whole")))
    command = (sys.executable, *TRAIN[:-2])  # the usual checkpoints are far apart
    _run(command, whole)
    code, log = _stop(command, work, sign="epoch=1 task=mood", by=signal.SIGTERM)
    assert code == 143, log
    assert "SIGTERM: training stopped and saved in epoch" in log.splitlines()[-1]
    assert "resumed epoch=" in _run(command, work)
    for path in (whole.root / "models/trained").rglob("*.safetensors"):
        assert path.read_bytes() == (work.root / path.relative_to(whole.root)).read_bytes()


@pytest.mark.e2e
def test_what_tasks_share_is_refused_in_several_processes(work: Workspace) -> None:
    command = (*TORCHRUN, *TRAIN, "--set", "model.sharing=hard")
    done = subprocess.run(command, cwd=work.root, env=ENVIRONMENT, check=False, stderr=subprocess.PIPE, text=True)
    assert done.returncode != 0
    assert "params.yaml: model.sharing: 'hard' trains in one process; 2 were started." in done.stderr


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_shares_are_the_whole_without_repetition(size: int) -> None:
    rows = np.arange(11)
    shares = [World(rank, size).share(rows) for rank in range(size)]
    assert sorted(np.concatenate(shares).tolist()) == rows.tolist()
