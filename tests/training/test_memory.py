"""Tests of mtlops.training.memory: passes that fit, and passes that turned out not to."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mtlops.errors import UsageError
from mtlops.model.predictor import Backbone
from mtlops.params import Model, Train
from mtlops.tasks import Task
from mtlops.training.batches import Step
from mtlops.training.learner import Learner, Rows
from mtlops.training.loop import add_gradients
from mtlops.training.memory import ENOUGH_ROWS, Room, is_out_of_memory, plan
from tests.tiny_encoder import WORDS, write_prepared_encoder

ROWS, TOKENS = 24, 16
TASK = Task("tone", "binary", ("bad", "good"))
STEP = Step({"tone": np.arange(20)})


class SmallMemory(TorchDispatchMode):
    """A machine on which no tensor may have more than so many numbers."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self.most, self.refused = most, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor) and made.numel() > self.most:
            self.refused += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate more than there is.")
        return made


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    folder = tmp_path_factory.mktemp("memory")
    write_prepared_encoder(folder / "encoder", hidden=32, layers=8)
    made = Backbone(folder / "encoder", cache=folder / "cache", model=Model(adapter_drop=0), max_tokens=TOKENS)
    texts = [" ".join(WORDS[(5 * i + j) % len(WORDS)] for j in range(2 + i % 11)) for i in range(ROWS)]
    made.fill([f"r{i}" for i in range(ROWS)], texts)
    return made


def make_learner(backbone: Backbone, train: Train) -> Learner:
    rows = Rows([f"r{i}" for i in range(ROWS)], TASK.encode([("bad", "good")[i % 2] for i in range(ROWS)]))
    tensors = backbone.pairs.init(TASK, torch.Generator().manual_seed(1))
    tensors = {name: tensor + 0.05 * torch.sin(torch.arange(tensor.numel()).reshape(tensor.shape))
               for name, tensor in tensors.items()}  # fmt: skip
    return Learner(TASK, tensors, train=rows, valid=rows, params=train, learning_rate=0.01, device=torch.device("cpu"))


def planned(backbone: Backbone, **changes: object) -> Room:
    train = Train().model_copy(update=changes)
    return plan({"tone": make_learner(backbone, train)}, backbone, train=train, max_tokens=TOKENS)


def gradients(learner: Learner) -> dict[str, torch.Tensor]:
    return {name: tensor.grad.clone() for name, tensor in learner.tensors.items() if tensor.grad is not None}


def test_where_there_is_room_a_pass_holds_what_was_asked_for(backbone: Backbone) -> None:
    assert (planned(backbone).rows, planned(backbone).recompute) == (128, False)
    assert planned(backbone, rows_per_pass=7).rows == 7
    assert planned(backbone, rows_per_pass=0, batch_size=9).rows == 9


def test_a_smaller_budget_gives_smaller_passes_that_keep_to_it(backbone: Backbone) -> None:
    whole = planned(backbone)
    half = planned(backbone, memory_gb=whole.predicted_bytes / 2e9)
    assert ENOUGH_ROWS <= half.rows < whole.rows
    assert half.predicted_bytes <= half.budget_bytes < whole.predicted_bytes
    assert not half.recompute


def test_layers_are_recomputed_only_where_few_rows_would_fit(backbone: Backbone) -> None:
    per_row = planned(backbone, rows_per_pass=2).predicted_bytes - planned(backbone, rows_per_pass=1).predicted_bytes
    fixed = planned(backbone, rows_per_pass=1).predicted_bytes - per_row
    small = (fixed + 10.5 * per_row) / 1e9
    assert planned(backbone, memory_gb=small, recompute=False).rows == 10
    found = planned(backbone, memory_gb=small)
    assert found.recompute
    enough = planned(backbone, memory_gb=small, rows_per_pass=8)
    assert (enough.rows, enough.recompute) == (8, False)


def test_too_small_a_budget_is_refused_with_its_size(backbone: Backbone) -> None:
    with pytest.raises(UsageError, match=r"train\.memory_gb: training takes .* GB with one row of 16 tokens"):
        planned(backbone, memory_gb=1e-6)


@pytest.mark.parametrize("rows_per_pass", [0, 128, 20])
def test_out_of_memory_the_step_is_taken_again_in_smaller_passes(
    backbone: Backbone, rows_per_pass: int, caplog: pytest.LogCaptureFixture
) -> None:
    train = Train(threads=1)
    whole, halved = (make_learner(backbone, train) for _ in range(2))
    add_gradients(STEP, {"tone": whole}, backbone, train=train)
    room = Room(rows_per_pass)
    with SmallMemory(7 * TOKENS * 128) as memory:
        add_gradients(STEP, {"tone": halved}, backbone, train=train, room=room)
    assert memory.refused >= 2
    assert room.rows == 5
    assert "rows_per_pass=5 from now on" in caplog.text
    expected, found = gradients(whole), gradients(halved)
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        assert torch.allclose(found[name], gradient, rtol=1e-5, atol=1e-6), name
    assert halved.progress.loss_rows == whole.progress.loss_rows == 20
    assert halved.progress.loss_sum == pytest.approx(whole.progress.loss_sum, rel=1e-5)


def test_a_task_takes_its_step_as_soon_as_its_rows_have_passed_and_only_once(backbone: Backbone) -> None:
    train, names = Train(threads=1, rows_per_pass=8), ("a", "b", "c")
    step = Step({"a": np.arange(5), "b": np.arange(2, 9), "c": np.arange(4, 16)})
    together, apart, short = ({name: make_learner(backbone, train) for name in names} for _ in range(3))
    with_gradients = []

    def take(learner: Learner) -> None:
        with_gradients.append(sum(any(t.grad is not None for t in of.tensors.values()) for of in together.values()))
        learner.step()

    add_gradients(step, together, backbone, train=train, when_whole=take)
    assert with_gradients == [2, 2, 1]
    add_gradients(step, apart, backbone, train=train)
    for learner in apart.values():
        learner.step()
    with SmallMemory(5 * TOKENS * 128) as memory:  # enough for the short rows of the first pass, not for the second
        add_gradients(step, short, backbone, train=train, room=Room(8), when_whole=Learner.step)
    assert memory.refused == 1
    for name in names:
        assert together[name].progress == apart[name].progress
        assert (short[name].progress.steps, short[name].progress.loss_rows) == (1, len(step.rows[name]))
        for key, tensor in apart[name].tensors.items():
            assert torch.equal(together[name].tensors[key], tensor), (name, key)
            assert torch.allclose(short[name].tensors[key], tensor, atol=1e-4), (name, key)


def test_when_not_even_one_row_fits_it_says_what_to_do(backbone: Backbone) -> None:
    learner = make_learner(backbone, Train(threads=1))
    with SmallMemory(10), pytest.raises(UsageError, match=r"not even one row fits\. Use train\.recompute"):
        add_gradients(STEP, {"tone": learner}, backbone, train=learner.params)


@pytest.mark.parametrize(
    "error, expected",
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (MemoryError(), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 9 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("can't allocate memory"), False),
    ],
)
def test_other_errors_are_not_taken_for_it(error: BaseException, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


def test_a_real_allocation_that_fails_is_recognised() -> None:
    ask: Callable[[], torch.Tensor] = lambda: torch.empty(1 << 60)  # noqa: E731 - an exbibyte and more
    with pytest.raises(RuntimeError) as caught:
        ask()
    assert is_out_of_memory(caught.value)


def test_an_error_of_another_kind_is_not_swallowed(backbone: Backbone) -> None:
    learner = make_learner(backbone, Train(threads=1))
    with torch.no_grad():
        learner.tensors["head.bias"].fill_(float("nan"))
    with pytest.raises(UsageError, match="not finite"):
        add_gradients(STEP, {"tone": learner}, backbone, train=learner.params)
