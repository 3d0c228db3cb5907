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
    "tagging": (Task("t", "tagging", ("O", "B-x", "I-x")), [["O", "B-x", "I-x"], ["B-x"]]),
}


def test_every_kind_is_covered() -> None:
    assert set(TASKS) == set(catalog.KINDS)


@pytest.mark.parametrize("kind", TASKS)
def test_one_value_a_row_and_descent_reaches_the_label(kind: str) -> None:
    task, labels = TASKS[kind]
    encoded = torch.from_numpy(task.encode(labels))
    words = encoded.shape[1:] if task.per_word else ()
    logits = torch.zeros(len(labels), *words, task.num_outputs, requires_grad=True)
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
        assert (logits.argmax(dim=-1) == encoded)[encoded >= 0].all()


def test_the_loss_of_a_row_is_the_mean_over_its_words() -> None:
    """So a row counts once, however long; words that are not judged have no part in it, nor a gradient."""
    loss = catalog.load(catalog.KINDS["tagging"].loss)
    logits = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0), requires_grad=True)
    labels = torch.tensor([[0, 2, 1, -1], [1, -1, -1, -1], [-1, -1, -1, -1]])
    found = loss(logits, labels)
    expected = [torch.nn.functional.cross_entropy(logits[row, :n], labels[row, :n]) for row, n in ((0, 3), (1, 1))]
    assert torch.allclose(found, torch.stack([*expected, torch.zeros(())]))
    found.sum().backward()
    assert (logits.grad[labels < 0] == 0).all() and (logits.grad[labels >= 0] != 0).any(-1).all()


def test_ordinal_loss_grows_with_the_distance_in_ranks() -> None:
    loss = catalog.load(catalog.KINDS["ordinal"].loss)
    labels = torch.zeros(3, dtype=torch.int64)
    confident = torch.eye(3) * 8.0
    near, far = loss(confident, labels)[1:]
    assert loss(confident, labels)[0] < near < far
