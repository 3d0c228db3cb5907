"""Tests of mtlops.model.answers: read again as they were, and never for other tensors, rows or a damaged file."""

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from mtlops.model.answers import KEPT, Answers

TENSORS = {"head.weight": torch.arange(6.0).reshape(2, 3), "head.bias": torch.zeros(3)}
LOGITS = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.fixture
def answers(tmp_path: Path) -> Answers:
    return Answers(tmp_path / "answers", identity="trunk")


def test_what_was_written_is_read_by_another_process_to_the_bit(answers: Answers) -> None:
    path = answers.path(TENSORS, ["a", "b"])
    assert answers.read(path, (2, 3)) is None
    answers.write(path, LOGITS)
    other = Answers(answers.folder, identity="trunk")
    found = other.read(other.path(dict(TENSORS), ("a", "b")), (2, 3))
    assert found is not None
    assert found.tobytes() == LOGITS.tobytes()


def test_every_input_of_the_bits_is_in_the_name(answers: Answers) -> None:
    changed = {**TENSORS, "head.bias": torch.tensor([0.0, 0.0, 1e-7])}
    renamed = {"head.weight": TENSORS["head.weight"], "head.bios": TENSORS["head.bias"]}
    paths = {
        answers.path(TENSORS, ["a", "b"]),
        answers.path(TENSORS, ["b", "a"]),
        answers.path(TENSORS, ["a"]),
        answers.path(changed, ["a", "b"]),
        answers.path(renamed, ["a", "b"]),
        Answers(answers.folder, identity="other").path(TENSORS, ["a", "b"]),
    }
    assert len(paths) == 6


def test_the_number_of_threads_is_in_the_name(answers: Answers) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        other = Answers(answers.folder, identity="trunk")
    finally:
        torch.set_num_threads(before)
    assert other.path(TENSORS, ["a"]) != answers.path(TENSORS, ["a"])


@pytest.mark.parametrize("damage", [lambda b: b[:-1], lambda b: b"\1" + b[1:], lambda b: b"", lambda b: b + b"\0"])
def test_a_damaged_file_is_not_read(answers: Answers, damage: object, caplog: pytest.LogCaptureFixture) -> None:
    path = answers.path(TENSORS, ["a", "b"])
    answers.write(path, LOGITS + 1)
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    with caplog.at_level(logging.WARNING):
        assert answers.read(path, (2, 3)) is None
    assert "damaged" in caplog.text


def test_the_files_that_were_used_last_stay(answers: Answers) -> None:
    first = answers.path(TENSORS, ["0"])
    for number in range(KEPT):
        path = answers.path(TENSORS, [str(number)])
        answers.write(path, LOGITS)
        os.utime(path, ns=(number, number))
    assert answers.read(first, (2, 3)) is not None
    answers.write(answers.path(TENSORS, ["new"]), LOGITS)
    assert len(list(answers.folder.iterdir())) == KEPT
    assert first.exists()
    assert not answers.path(TENSORS, ["1"]).exists()
