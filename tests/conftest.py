"""What all tests share."""

import logging
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.clones import Clone
    from tests.tagged_suite import Tagged
    from tests.tiny_suite import Workspace

# Two threads in every process at once only slow each other down, and another order of adding gives other bits.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the container tests to those who ask for them: they need an image and an engine."""
    if "containers" not in config.option.markexpr:
        for item in items:
            if item.get_closest_marker("containers"):
                item.add_marker(pytest.mark.skip(reason="needs the image and a container engine: run .ci/containers"))


@pytest.fixture(autouse=True)
def _logging_as_before() -> Iterator[None]:
    """Takes back what a command that ran in this process did to the log: its stream is closed after the test."""
    logger = logging.getLogger("mtlops")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture(scope="session")
def clone(tmp_path_factory: pytest.TempPathFactory) -> "Clone":
    """The one clone in which DVC has run every stage and whose results are committed."""
    from tests.clones import make_clone

    clone = make_clone(tmp_path_factory.mktemp("clone") / "mtlops")
    clone.run(".venv/bin/dvc", "repro")
    clone.commit("results")
    return clone


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> "Workspace":
    """A small project in which every step has run, in this process. Read only: copy what you change."""
    from tests.tiny_suite import make_workspace, run_all

    work = make_workspace(tmp_path_factory.mktemp("project"))
    run_all(work)
    return work


@pytest.fixture(scope="session")
def tagged(tmp_path_factory: pytest.TempPathFactory) -> "Tagged":
    """The same with a further task that tags words. Read only: copy what you change."""
    from tests.tagged_suite import make_tagged_workspace
    from tests.tiny_suite import run_all

    work = make_tagged_workspace(tmp_path_factory.mktemp("tagged"))
    run_all(work)
    return work
