"""A teacher's answers: asked for once, kept by bundle and rows, refused where they do not fit."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mtlops.errors import UsageError
from mtlops.tasks import Task
from mtlops.training.distillation import check_teacher, distance, teacher_logits

TONE = Task("tone", "binary", ("bad", "good"))
STARS = Task("stars", "regression")


class Counting:
    """A teacher that counts how often it is asked: it answers with the length of the text."""

    def __init__(self, *tasks: Task, bundle_id: str = "0123456789abcdef") -> None:
        self.tasks, self.bundle_id, self.asked = tasks, bundle_id, 0

    def logits(self, texts: Sequence[str], task: str) -> np.ndarray:
        self.asked += len(texts)
        return np.array([[len(text), len(task)] for text in texts], dtype=np.float32)


def test_a_teacher_of_the_same_tasks_is_accepted() -> None:
    check_teacher(Counting(TONE, STARS), [TONE])


@pytest.mark.parametrize(
    ("task", "message"),
    [
        (Task("tones", "binary", ("bad", "good")), "has no task 'tones'. Did you mean 'tone'?"),
        (Task("tone", "binary", ("good", "bad")), "its task 'tone' is binary of bad, good, here it is binary of good"),
        (Task("tone", "multiclass", ("bad", "good")), "here it is multiclass of bad, good"),
        (Task("stars", "binary", ("bad", "good")), "its task 'stars' is regression, here it is binary"),
    ],
)
def test_another_task_is_refused_by_name(task: Task, message: str) -> None:
    with pytest.raises(UsageError) as error:
        check_teacher(Counting(TONE, STARS), [STARS, task] if task.name != "stars" else [task])
    assert message in str(error.value) and "0123456789abcdef" in str(error.value)
    assert "train.distil_tasks" in str(error.value)


def test_it_is_asked_once_for_the_same_rows(tmp_path: Path) -> None:
    teacher, rows = Counting(TONE), [f"r{i}" for i in range(600)]
    texts = ["x" * (i % 7) for i in range(600)]
    first = teacher_logits(teacher, "tone", rows, texts, cache=tmp_path)
    again = teacher_logits(teacher, "tone", rows, texts, cache=tmp_path)
    assert teacher.asked == 600 and np.array_equal(first, again)
    assert first[:, 0].tolist() == [i % 7 for i in range(600)] and first.dtype == np.float32
    teacher_logits(teacher, "tone", rows[:10], texts[:10], cache=tmp_path)
    teacher_logits(teacher, "tone", rows, [*texts[:-1], "another text"], cache=tmp_path)
    assert teacher.asked == 600 + 10 + 600
    other = Counting(TONE, bundle_id="fedcba9876543210")
    teacher_logits(other, "tone", rows, texts, cache=tmp_path)
    assert other.asked == 600


def test_a_damaged_file_is_made_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher = Counting(TONE)
    first = teacher_logits(teacher, "tone", ["a"], ["text"], cache=tmp_path)
    [file] = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:20])
    assert np.array_equal(teacher_logits(teacher, "tone", ["a"], ["text"], cache=tmp_path), first)
    assert teacher.asked == 2 and "damaged" in caplog.text


def test_the_distance_in_a_closed_form() -> None:
    labels = np.array([0, 0, 1, 1])
    teacher = np.array([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0], [0.0, 2.0]], dtype=np.float32)
    student = teacher.copy()
    student[3] = [2.0, 0.0]
    found = distance(TONE, labels, student=student, teacher=teacher)
    assert found["teacher"] == 1.0 and found["agreement"] == 0.75
    assert found["student"] == pytest.approx((0.8 + 2 / 3) / 2) and found["change"] == found["student"] - 1.0
    p = 1 / (1 + np.exp(-2.0))
    assert found["divergence"] == pytest.approx((p * 2.0 - (1 - p) * 2.0) / 4)


def test_the_distance_of_a_regression_is_in_label_units() -> None:
    labels = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    found = distance(STARS, labels, student=labels[:, None] + 2.0, teacher=labels[:, None])
    assert found["divergence"] == 4.0 and found["teacher"] == 1.0 and "agreement" not in found
