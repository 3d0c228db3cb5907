"""A step in parts, with recomputed layers or in bfloat16: the same gradients, less memory."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from mtlops.model.predictor import Backbone
from mtlops.params import Model, Train
from mtlops.tasks import Task
from mtlops.training import loop
from mtlops.training.batches import Step
from mtlops.training.learner import Learner, Rows
from mtlops.training.loop import add_gradients, parts
from tests.tiny_encoder import WORDS, write_prepared_encoder

TASKS = (Task("length", "regression"), Task("tone", "binary", ("bad", "good")), Task("words", "multilabel", ("a", "b")))
LABELS = {"regression": [2.0, 5.0, 3.5, 1.0], "binary": ["bad", "good"], "multilabel": [["a"], [], ["b"], ["a", "b"]]}
ROWS = 24
STEP = Step({"length": np.arange(11), "tone": np.arange(3, 16), "words": np.array([20])})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("b")
    write_prepared_encoder(folder / "encoder", hidden=32)
    return folder


def _backbone(folder: Path, adapter: str) -> Backbone:
    model = Model(adapter=adapter, adapter_drop=0, bottleneck=8, prefix_length=3, mask_rate=0.4)
    made = Backbone(folder / "encoder", cache=folder / "cache", model=model, max_tokens=16)
    texts = [" ".join(WORDS[(5 * i + j) % len(WORDS)] for j in range(2 + i % 11)) for i in range(ROWS)]
    made.fill([f"r{i}" for i in range(ROWS)], texts)
    return made


def _learners(backbone: Backbone, train: Train) -> dict[str, Learner]:
    learners = {}
    for task in TASKS:
        of_kind = LABELS[task.kind]
        rows = Rows([f"r{i}" for i in range(ROWS)], task.encode([of_kind[i % len(of_kind)] for i in range(ROWS)]))
        tensors = backbone.pairs.init(task, torch.Generator().manual_seed(1))
        tensors = {name: tensor + 0.05 * torch.sin(torch.arange(tensor.numel()).reshape(tensor.shape))
                   for name, tensor in tensors.items()}  # fmt: skip
        learners[task.name] = Learner(
            task, tensors, train=rows, valid=rows, params=train, learning_rate=0.01, device=torch.device("cpu")
        )
    return learners


def _gradients(folder: Path, adapter: str, **changes: object) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    train = Train(threads=1).model_copy(update=changes)
    backbone = _backbone(folder, adapter)
    learners = _learners(backbone, train)
    add_gradients(STEP, learners, backbone, train=train)
    found = {f"{t}/{n}": tensor.grad for t, learner in learners.items() for n, tensor in learner.tensors.items()}
    losses = {t: learner.progress.loss_sum / learner.progress.loss_rows for t, learner in learners.items()}
    return {name: grad for name, grad in found.items() if grad is not None}, losses


@pytest.mark.parametrize("adapter", ["pfeiffer", "masked", "prefix", "lora"])
@pytest.mark.parametrize(
    "changes",
    [{"rows_per_pass": 1}, {"rows_per_pass": 7}, {"recompute": True}, {"rows_per_pass": 6, "recompute": True}],
)
def test_gradients_are_those_of_the_whole_step(folder: Path, adapter: str, changes: dict[str, object]) -> None:
    expected, expected_losses = _gradients(folder, adapter)
    found, losses = _gradients(folder, adapter, **changes)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6), name
    assert losses == pytest.approx(expected_losses, rel=1e-5)


def test_bfloat16_rounds_and_no_more(folder: Path) -> None:
    expected, expected_losses = _gradients(folder, "pfeiffer")
    found, losses = _gradients(folder, "pfeiffer", precision="bfloat16")
    assert losses == pytest.approx(expected_losses, rel=0.02)
    assert losses != expected_losses, "it has computed in bfloat16"
    for name, gradient in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.nn.functional.cosine_similarity(found[name].flatten(), gradient.flatten(), dim=0) > 0.98, name


@pytest.mark.parametrize(
    ("precision", "has_it", "expected"),
    [(None, True, False), ("auto", True, True), ("auto", False, False), ("float32", True, False),
     ("bfloat16", False, True)],
)  # fmt: skip
def test_bfloat16_is_chosen_where_a_cpu_has_it_and_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, precision: str | None, has_it: bool, expected: bool
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_it})
    loop._cpu_has_bfloat16.cache_clear()
    chosen = loop.is_bfloat16(Train.model_validate({"precision": precision}), torch.device("cpu"))
    loop._cpu_has_bfloat16.cache_clear()
    assert chosen is expected


@contextmanager
def _kept_bytes() -> Iterator[list[int]]:
    """Counts the bytes that forward passes keep for their backward passes: the most at any time."""
    now, most = [0], [0]

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        now[0] += tensor.numel() * tensor.element_size()
        most[0] = max(most[0], now[0])
        return tensor

    def unpack(tensor: torch.Tensor) -> torch.Tensor:
        now[0] -= tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield most


def test_both_keep_less_for_the_backward_pass(folder: Path) -> None:
    kept = {}
    for name, changes in {"whole": {}, "parts": {"rows_per_pass": 5}, "recomputed": {"recompute": True}}.items():
        with _kept_bytes() as most:
            _gradients(folder, "pfeiffer", **changes)
        kept[name] = most[0]
    assert kept["parts"] < 0.5 * kept["whole"]
    assert kept["recomputed"] < 0.7 * kept["whole"]


@pytest.mark.parametrize("most", [0, 1, 4, 7, 100])
def test_parts_hold_every_row_once_and_no_more_than_fit(most: int) -> None:
    num_rows = {"a": 5, "b": 0, "c": 9, "d": 1}
    seen: dict[str, list[int]] = {task: [] for task in num_rows}
    for part in parts(num_rows, most=most):
        sizes = {task: len(range(num_rows[task])[of]) for task, of in part.items()}
        assert all(sizes.values()) and sum(sizes.values()) <= (most or 15)
        for task, of in part.items():
            seen[task] += range(num_rows[task])[of]
    assert seen == {task: list(range(num)) for task, num in num_rows.items()}
