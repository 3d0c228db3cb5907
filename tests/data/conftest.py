"""What the tests of data share."""

import pytest
from hypothesis import settings

# No example has a time limit: the machine may be busy with something else.
settings.register_profile("data", deadline=None)
settings.load_profile("data")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "network: fetches a file from the package index that pip is configured for")
