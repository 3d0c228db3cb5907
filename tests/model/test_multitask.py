"""The multi-task model: every adapter and pooling through the same matrix of promises."""

import pytest
import torch

from mtlops import catalog
from mtlops.errors import UsageError
from mtlops.model import multitask
from mtlops.model.encoders import Trunk, load_trunk
from mtlops.model.multitask import PairModel
from mtlops.params import Model
from mtlops.tasks import Task
from tests.tiny_encoder import write_encoder

TASKS = [Task("a", "multiclass", ("x", "y", "z")), Task("b", "binary", ("n", "p")), Task("c", "regression")]
EVERY = [(adapter, pooling, drop) for adapter in catalog.ADAPTERS for pooling in catalog.POOLINGS for drop in (0, 1, 2)]


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return load_trunk(write_encoder(tmp_path_factory.mktemp("encoder")))


def _random_tensors(model: PairModel, seed: int = 0) -> list[multitask.Tensors]:
    generator = torch.Generator().manual_seed(seed)
    tensors = [model.init(task, generator) for task in TASKS]
    return [{n: torch.randn(t.shape, generator=generator) * 0.3 for n, t in of_task.items()} for of_task in tensors]


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(4, 30, (3, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[2, 2:] = 0
    return ids * mask, mask


def _alone(model: PairModel, sums: torch.Tensor, mask: torch.Tensor, tensors: multitask.Tensors) -> torch.Tensor:
    bank = multitask.stack([tensors])
    return multitask.logits(model(sums, mask, bank), bank)


@pytest.mark.parametrize(("adapter", "pooling", "drop"), EVERY)
def test_mixed_pairs_equal_each_task_alone(trunk: Trunk, adapter: str, pooling: str, drop: int) -> None:
    model = PairModel(trunk, Model(adapter=adapter, pooling=pooling, adapter_drop=drop, bottleneck=4))
    tensors, (ids, mask) = _random_tensors(model), _inputs()
    sums = trunk(ids, mask, depth=drop)
    rows, tasks = torch.tensor([2, 0, 1, 1, 0]), torch.tensor([0, 2, 1, 0, 0])
    bank = multitask.pick(multitask.stack(tensors), tasks)
    mixed = multitask.logits(model(sums[rows], mask[rows], bank), bank)
    for pair, (row, task) in enumerate(zip(rows.tolist(), tasks.tolist(), strict=True)):
        alone = _alone(model, sums, mask, tensors[task])[row]
        width = TASKS[task].num_outputs
        assert torch.allclose(mixed[pair, :width], alone[:width], atol=1e-5)
        assert (mixed[pair, width:] == 0).all()


@pytest.mark.parametrize(("adapter", "pooling", "drop"), EVERY)
def test_gradient_reaches_only_the_tasks_in_the_batch(trunk: Trunk, adapter: str, pooling: str, drop: int) -> None:
    model = PairModel(trunk, Model(adapter=adapter, pooling=pooling, adapter_drop=drop, bottleneck=4))
    tensors, (ids, mask) = _random_tensors(model), _inputs()
    for of_task in tensors:
        for tensor in of_task.values():
            tensor.requires_grad_()
    bank = multitask.pick(multitask.stack(tensors), torch.tensor([0, 0, 2]))
    multitask.logits(model(trunk(ids, mask, depth=drop), mask, bank), bank).sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for name, tensor in tensors[0].items() if "down_bias" not in name)
    assert all(tensor.grad.abs().sum() == 0 for tensor in tensors[1].values())
    assert not any(parameter.grad is not None for parameter in trunk.parameters())


@pytest.mark.parametrize(("adapter", "pooling", "drop"), EVERY)
def test_fresh_adapter_leaves_the_trunk_function(trunk: Trunk, adapter: str, pooling: str, drop: int) -> None:
    model = PairModel(trunk, Model(adapter=adapter, pooling=pooling, adapter_drop=drop, bottleneck=4))
    ids, mask = _inputs()
    sums = trunk(ids, mask, depth=drop)
    fresh = multitask.stack([model.init(TASKS[0], torch.Generator().manual_seed(0))])
    expected = catalog.load(catalog.POOLINGS[pooling].code).pool(model.frozen(sums, mask), mask)
    assert torch.allclose(model(sums, mask, fresh), expected, atol=1e-5)


@pytest.mark.parametrize("pooling", catalog.POOLINGS)
def test_padding_does_not_matter(trunk: Trunk, pooling: str) -> None:
    model = PairModel(trunk, Model(pooling=pooling, adapter_drop=1, bottleneck=4))
    tensors, (ids, mask) = _random_tensors(model)[0], _inputs()
    padded = _alone(model, trunk(ids, mask, depth=1), mask, tensors)[2]
    alone = _alone(model, trunk(ids[2:, :2], mask[2:, :2], depth=1), mask[2:, :2], tensors)[0]
    assert torch.allclose(padded, alone, atol=1e-5)


def test_pfeiffer_is_the_published_formula(trunk: Trunk) -> None:
    """z = LN(f + x); out = LN(f + U relu(D z) + x): Pfeiffer et al. 2021 as AdapterHub implements it."""
    adapter = catalog.load(catalog.ADAPTERS["pfeiffer"].code)
    generator = torch.Generator().manual_seed(0)
    sums, norm = torch.randn(1, 2, 16, generator=generator), trunk.layers[0].norm
    down, up = torch.randn(16, 4, generator=generator), torch.randn(4, 16, generator=generator)
    bank = {"down": down[None], "down_bias": torch.zeros(1, 4), "up": up[None], "up_bias": torch.ones(1, 16)}
    expected = norm(torch.relu(norm(sums) @ down) @ up + 1.0 + sums)
    assert torch.allclose(adapter.apply(sums, norm, bank), expected, atol=1e-6)


def test_gradients_agree_with_finite_differences(trunk: Trunk) -> None:
    trunk = trunk.double()
    try:
        model = PairModel(trunk, Model(adapter_drop=1, bottleneck=2))
        tensors = {n: t.double().requires_grad_() for n, t in _random_tensors(model)[0].items()}
        ids, mask = _inputs()
        sums = trunk(ids, mask, depth=1)
        names = list(tensors)

        def loss(*values: torch.Tensor) -> torch.Tensor:
            return _alone(model, sums, mask, dict(zip(names, values, strict=True))).square().sum()

        assert torch.autograd.gradcheck(loss, tuple(tensors.values()), atol=1e-6)
    finally:
        trunk.float()


def test_a_drop_that_leaves_no_layer_is_refused(trunk: Trunk) -> None:
    with pytest.raises(UsageError, match="Choose at most 2"):
        PairModel(trunk, Model(adapter_drop=3))
