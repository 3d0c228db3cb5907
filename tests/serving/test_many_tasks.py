"""A hundred tasks on one trunk in one process: one of them is asked, one of them is swapped."""

import time
from pathlib import Path

import pytest

from mtlops.bundle import Bundle
from mtlops.registry import Registry
from tests.serving.processes import serving
from tests.serving.variants import retrained, with_many_tasks
from tests.tiny_suite import Workspace

TEXTS = ["a film", "the law & the court"]


@pytest.mark.e2e
def test_a_hundred_tasks_are_served_and_one_is_swapped(finished: Workspace, tmp_path: Path) -> None:
    before = with_many_tasks(Bundle.open(finished.bundle), tmp_path / "before", number=100)
    after = retrained(before, tmp_path / "after", task="mood_95")
    registry = Registry(tmp_path / "registry")
    old, new = (registry.publish(bundle.folder) for bundle in (before, after))
    registry.promote(old, expect=None, by="test", reason="test")
    with serving(tmp_path / "server", "--registry", registry.url, "--poll-seconds", "0.05") as server:
        one = server.predict(*TEXTS, tasks=["mood_95"])["predictions"]
        assert [set(row["tasks"]) for row in one] == [{"mood_95"}] * 2
        first = server.predict(*TEXTS)["predictions"]
        assert len(first[0]["tasks"]) == 100
        registry.promote(new, expect=old, by="test", reason="test")
        deadline = time.monotonic() + 30
        while server.get("/status", "admin")[1]["bundle"] != new:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        second = server.predict(*TEXTS)["predictions"]
        while server.metric('mtlops_swap_total{outcome="swapped"}') != 1:  # counted once all golden rows held
            assert time.monotonic() < deadline
            time.sleep(0.05)
    for row, other in zip(first, second, strict=True):
        changed = {name for name in row["tasks"] if row["tasks"][name] != other["tasks"][name]}
        assert changed == {"mood_95"}
