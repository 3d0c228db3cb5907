"""The multi-task model: every adapter and pooling through the same matrix of promises."""

import pytest
import torch

from mtlops import catalog
from mtlops.errors import UsageError
from mtlops.model import multitask
from mtlops.model.adapters.anatomy import Cut, Tensors
from mtlops.model.adapters.fusion import Fusion
from mtlops.model.encoders import Trunk, load_trunk
from mtlops.model.multitask import PairModel
from mtlops.params import Model
from mtlops.tasks import Task
from tests.tiny_encoder import write_encoder

TASKS = [Task("a", "multiclass", ("x", "y", "z")), Task("b", "binary", ("n", "p")), Task("c", "regression")]
LAYERS = 3
EVERY = [
    (adapter, pooling, drop)
    for adapter in catalog.ADAPTERS
    for pooling in catalog.POOLINGS
    for drop in (0, LAYERS // 2, LAYERS - 1)
]


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return load_trunk(write_encoder(tmp_path_factory.mktemp("encoder"), layers=LAYERS))


def make(trunk: Trunk, adapter: str = "pfeiffer", pooling: str = "cls", drop: int = 1) -> PairModel:
    model = Model(adapter=adapter, pooling=pooling, adapter_drop=drop, bottleneck=4, prefix_length=3, mask_rate=0.5)
    made = PairModel(trunk, model)
    if isinstance(made.adapter, Fusion):
        sources = PairModel(trunk, model.model_copy(update={"adapter": "pfeiffer"}))
        made.adapter.listen_to(_trained(sources, seed=7), names=[task.name for task in TASKS])
    return made


def state_of(trunk: Trunk, model: PairModel, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return model.state(trunk, ids, mask)


def _trunk_vectors(trunk: Trunk, ids: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
    """What a pooling makes of the bare trunk, written out."""
    outputs = [trunk(ids, mask, depth=0, cut=Cut.INPUT)]
    for layer in trunk.blocks:
        outputs.append(layer(outputs[-1], mask))
    first, last = outputs[1], outputs[-1]
    both = (first + last) / 2 if pooling == "first-last" else last
    if pooling == "cls":
        return last[:, 0]
    return torch.stack([of_row[: int(num)].mean(0) for of_row, num in zip(both, mask.sum(1), strict=True)])


def _trained(model: PairModel, seed: int = 0) -> list[Tensors]:
    """Tensors of each task as they are in the middle of training: nothing is zero."""
    generator = torch.Generator().manual_seed(seed)
    fresh = [model.init(task, generator) for task in TASKS]
    return [{n: t + torch.randn(t.shape, generator=generator) * 0.3 for n, t in of_task.items()} for of_task in fresh]


def _served(model: PairModel, trained: list[Tensors]) -> list[Tensors]:
    return [model.adapter.bank(tensors, training=False) for tensors in trained]


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(4, 30, (3, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[2, 2:] = 0
    return ids * mask, mask


def _alone(
    model: PairModel, state: torch.Tensor, mask: torch.Tensor, tensors: Tensors, **options: object
) -> torch.Tensor:
    bank = multitask.stack([tensors])
    return multitask.logits(model(state, mask, bank, **options), bank)


@pytest.mark.parametrize(("adapter", "pooling", "drop"), EVERY)
def test_mixed_pairs_equal_each_task_alone(trunk: Trunk, adapter: str, pooling: str, drop: int) -> None:
    """One row asked for several tasks, one task absent from a row, classes of different number, a regression."""
    model = make(trunk, adapter, pooling, drop)
    tensors, (ids, mask) = _served(model, _trained(model)), _inputs()
    state = state_of(trunk, model, ids, mask)
    rows, tasks = torch.tensor([2, 0, 1, 1, 0]), torch.tensor([0, 2, 1, 0, 0])
    bank = multitask.pick(multitask.stack(tensors), tasks)
    mixed = multitask.logits(model(state[rows], mask[rows], bank), bank)
    for pair, (row, task) in enumerate(zip(rows.tolist(), tasks.tolist(), strict=True)):
        alone = _alone(model, state, mask, tensors[task])[row]
        width = TASKS[task].num_outputs
        assert torch.allclose(mixed[pair, :width], alone[:width], atol=1e-5)
        assert (mixed[pair, width:] == 0).all()


@pytest.mark.parametrize("counts", [(1, 3, 1), (2, 1, 2)])
@pytest.mark.parametrize(("adapter", "pooling", "drop"), EVERY)
def test_pairs_in_groups_of_a_task_learn_what_each_pair_by_itself_does(
    trunk: Trunk, adapter: str, pooling: str, drop: int, counts: tuple[int, ...]
) -> None:
    model = make(trunk, adapter, pooling, drop)
    tensors, (ids, mask) = _trained(model), _inputs()
    rows, wanted = torch.tensor([2, 0, 1, 1, 0]), []
    for of_task in tensors:
        wanted += [tensor.requires_grad_() for tensor in of_task.values()]
    noise = model.adapter.noise(len(rows), torch.Generator().manual_seed(0))
    bank = multitask.stack([model.adapter.bank(of_task, training=True) for of_task in tensors])
    picked = multitask.pick(bank, torch.arange(3).repeat_interleave(torch.tensor(counts)))
    state = state_of(trunk, model, ids, mask)[rows]
    found = []
    for given, of_each in ((picked, ()), (bank, counts)):
        penalties: list[torch.Tensor] = []
        pooled = model(state, mask[rows], given | noise, counts=of_each, penalties=penalties)
        loss = torch.cat([part.flatten() for part in [pooled.sin(), *penalties]]).sum()
        found.append([pooled, *torch.autograd.grad(loss, wanted, retain_graph=True, allow_unused=True)])
    for by_group, by_pair in zip(found[1], found[0], strict=True):
        assert (by_group is None) == (by_pair is None)  # heads
        assert by_group is None or torch.allclose(by_group, by_pair, atol=1e-4)


@pytest.mark.parametrize(("adapter", "pooling", "drop"), EVERY)
def test_gradient_reaches_all_of_the_tasks_in_the_batch_and_nothing_else(
    trunk: Trunk, adapter: str, pooling: str, drop: int
) -> None:
    model = make(trunk, adapter, pooling, drop)
    tensors, (ids, mask) = _trained(model), _inputs()
    for of_task in tensors:
        for tensor in of_task.values():
            tensor.requires_grad_()
    noise = model.adapter.noise(3, torch.Generator().manual_seed(0))
    bank = multitask.stack([model.adapter.bank(of_task, training=True) for of_task in tensors])
    bank = multitask.pick(bank, torch.tensor([0, 0, 2])) | noise
    penalties: list[torch.Tensor] = []
    pooled = model(state_of(trunk, model, ids, mask), mask, bank, penalties=penalties)
    losses = [multitask.logits(pooled, bank).square(), *penalties]
    torch.cat([loss.flatten() for loss in losses]).sum().backward()
    assert all(tensor.grad.abs().sum() > 0 for tensor in tensors[0].values())
    assert all(tensor.grad.abs().sum() == 0 for tensor in tensors[1].values())
    assert not any(parameter.grad is not None for parameter in trunk.parameters())


@pytest.mark.parametrize(("adapter", "pooling", "drop"), EVERY)
def test_fresh_adapter_leaves_the_trunk_function(trunk: Trunk, adapter: str, pooling: str, drop: int) -> None:
    model = make(trunk, adapter, pooling, drop)
    ids, mask = _inputs()
    state = state_of(trunk, model, ids, mask)
    fresh = model.adapter.bank(model.init(TASKS[0], torch.Generator().manual_seed(0)), training=False)
    expected = _trunk_vectors(trunk, ids, mask, pooling)
    is_same = torch.allclose(model(state, mask, multitask.stack([fresh])), expected, atol=1e-5)
    assert is_same == model.adapter.neutral


@pytest.mark.parametrize(("adapter", "pooling", "drop"), EVERY)
def test_skipped_layers_are_the_trunk_s_own(trunk: Trunk, adapter: str, pooling: str, drop: int) -> None:
    """Leaving out the lowest adapters of a pass is what a model without them computes: AdapterDrop at inference."""
    whole, (ids, mask) = make(trunk, adapter, pooling, 0), _inputs()
    tensors = _served(whole, _trained(whole))[0]
    dropped = make(trunk, adapter, pooling, drop)
    rest = {n: t for n, t in tensors.items() if n.startswith("head.") or int(n.split(".")[1]) >= drop}
    skipped = _alone(whole, state_of(trunk, whole, ids, mask), mask, tensors, skipped=range(drop))
    assert torch.allclose(skipped, _alone(dropped, state_of(trunk, dropped, ids, mask), mask, rest), atol=1e-5)


@pytest.mark.parametrize("pooling", catalog.POOLINGS)
@pytest.mark.parametrize("adapter", catalog.ADAPTERS)
def test_padding_does_not_matter(trunk: Trunk, adapter: str, pooling: str) -> None:
    model = make(trunk, adapter, pooling)
    tensors, (ids, mask) = _served(model, _trained(model))[0], _inputs()
    padded = _alone(model, state_of(trunk, model, ids, mask), mask, tensors)[2]
    short_ids, short = ids[2:, :2], mask[2:, :2]
    alone = _alone(model, state_of(trunk, model, short_ids, short), short, tensors)[0]
    assert torch.allclose(padded, alone, atol=1e-5)


@pytest.mark.parametrize("adapter", catalog.ADAPTERS)
def test_gradients_agree_with_finite_differences(trunk: Trunk, adapter: str) -> None:
    trunk = trunk.double()
    try:
        model, (ids, mask) = make(trunk, adapter, drop=1), _inputs()
        tensors = {n: t.double()[..., :2].requires_grad_() for n, t in _trained(model)[0].items()}
        whole = {n: t.double() for n, t in _trained(model)[0].items()}
        state, names = state_of(trunk, model, ids, mask), list(tensors)

        def loss(*values: torch.Tensor) -> torch.Tensor:
            joined = {n: torch.cat([value, whole[n][..., 2:]], dim=-1) for n, value in zip(names, values, strict=True)}
            return _alone(model, state, mask, model.adapter.bank(joined, training=False)).square().sum()

        assert torch.autograd.gradcheck(loss, tuple(tensors.values()), atol=1e-6, fast_mode=True)
    finally:
        trunk.float()


@pytest.mark.parametrize("adapter", catalog.ADAPTERS)
def test_fresh_tensors_are_the_same_for_the_same_seed(trunk: Trunk, adapter: str) -> None:
    model = make(trunk, adapter)
    first, again, other = (model.init(TASKS[0], torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_a_drop_that_leaves_no_layer_is_refused(trunk: Trunk) -> None:
    with pytest.raises(UsageError, match="Choose at most 2"):
        PairModel(trunk, Model(adapter_drop=3))
