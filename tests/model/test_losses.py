"""Losses: one value a row, lowest at the right answer, in the order of the ranks where there is one."""

import pytest
import torch

from mtlops import catalog
from mtlops.tasks import Task

TASKS = {
    "binary": (Task("t", "binary", ("n", "p")), ["n", "p"]),
    "multiclass": (Task("t", "multiclass", ("a", "b", "c")), ["a", "c"]),
    "multilabel": (Task("t", "multilabel", ("a", "b", "c")), [["a"], []]),
    "ordinal": (Task("t", "ordinal", ("l", "m", "h")), ["l", "h"]),
    "regression": (Task("t", "regression"), [1.5, -2.0]),
}


def test_every_kind_is_covered() -> None:
    assert set(TASKS) == set(catalog.KINDS)


@pytest.mark.parametrize("kind", TASKS)
def test_one_value_a_row_and_descent_reaches_the_label(kind: str) -> None:
    task, labels = TASKS[kind]
    encoded = torch.from_numpy(task.encode(labels))
    logits = torch.zeros(len(labels), task.num_outputs, requires_grad=True)
    loss = catalog.load(catalog.KINDS[kind].loss)
    optimizer = torch.optim.Adam([logits], lr=0.2)
    first = loss(logits, encoded)
    assert first.shape == (len(labels),)
    for _ in range(300):
        optimizer.zero_grad()
        loss(logits, encoded).sum().backward()
        optimizer.step()
    assert (loss(logits, encoded) < first).all()
    if kind == "regression":
        assert torch.allclose(logits[:, 0], encoded, atol=1e-2)
    elif kind == "multilabel":
        assert ((logits > 0) == (encoded > 0)).all()
    else:
        assert (logits.argmax(dim=1) == encoded).all()


def test_ordinal_loss_grows_with_the_distance_in_ranks() -> None:
    loss = catalog.load(catalog.KINDS["ordinal"].loss)
    labels = torch.zeros(3, dtype=torch.int64)
    confident = torch.eye(3) * 8.0
    near, far = loss(confident, labels)[1:]
    assert loss(confident, labels)[0] < near < far
