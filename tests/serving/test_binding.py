"""Adapters and heads bound on a device: the device is the CPU here, the path is that of a GPU."""

from pathlib import Path

import numpy as np
import pytest

from mtlops.bundle import Bundle
from mtlops.errors import UsageError
from mtlops.serving import runtime as runtimes
from mtlops.serving.binding import BoundBank
from mtlops.serving.runtime import Runtime
from tests.serving.variants import retrained
from tests.tiny_suite import Workspace

TEXTS = ["a film", "the law & the court"]


@pytest.fixture
def bound(finished: Workspace, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """A runtime that takes the CPU for a device with memory of its own."""
    monkeypatch.setattr(runtimes, "DEVICES", {"CPUExecutionProvider": "cpu"})
    found = Runtime(Bundle.open(finished.bundle), provider="cpu", threads=1)
    assert isinstance(found._bound, BoundBank)
    return found


def test_bound_answers_are_the_same_to_the_bit_also_after_a_swap(
    finished: Workspace, bound: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    new = bound.with_bundle(retrained(bound.bundle, tmp_path / "new", task="topic"))
    new.check_golden()
    new.check_unchanged(bound)
    monkeypatch.undo()
    plain = Runtime(Bundle.open(finished.bundle), threads=1)
    assert plain._bound is None
    for one, other in ((bound, plain), (new, plain.with_bundle(new.bundle))):
        ids, rows, tasks = one.tokenizer.ids(TEXTS), [0, 1, 1], [4, 0, 2]
        ours, theirs = (found.compute(ids, rows, tasks, embed_row=[1]) for found in (one, other))
        assert all(np.array_equal(a, b) for a, b in zip(ours, theirs, strict=True))
    assert not np.array_equal(new.compute(ids, [0], [4])[0], bound.compute(ids, [0], [4])[0])


def test_an_unknown_provider_is_told(finished: Workspace) -> None:
    with pytest.raises(UsageError, match="'NoSuchProvider' is not installed"):
        Runtime(Bundle.open(finished.bundle), provider="NoSuchProvider")
