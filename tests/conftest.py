"""What all tests share."""

import os

import pytest

from tests.clones import Clone, commit, make_clone
from tests.tiny_suite import Workspace, make_workspace, run_all

# Two threads in every process at once only slow each other down, and another order of adding gives other bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The one clone in which DVC has run every stage and whose results are committed."""
    clone = make_clone(tmp_path_factory.mktemp("clone") / "mtlops")
    clone.run(".venv/bin/dvc", "repro")
    commit(clone, "results")
    return clone


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """A small project in which every step has run, in this process. Read only: copy what you change."""
    work = make_workspace(tmp_path_factory.mktemp("project"))
    run_all(work)
    return work
