"""What the tests of the monitor share."""

import pytest

from mtlops.bundle import Bundle
from tests.watch.logs import write_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle with references of three kinds of tasks. Read only."""
    return write_bundle(tmp_path_factory.mktemp("watched") / "bundle")
