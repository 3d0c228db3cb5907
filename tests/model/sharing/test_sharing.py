"""Every way of sharing and pooling through the same matrix of promises."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from mtlops import catalog
from mtlops.errors import UsageError
from mtlops.model import multitask
from mtlops.model.adapters.anatomy import Cut, Tensors
from mtlops.model.encoders import Trunk, load_trunk, save_trunk
from mtlops.model.sharing.anatomy import Sharing, make
from mtlops.model.trained import load_model, save_model, save_task
from mtlops.params import Model
from mtlops.tasks import Task
from tests.tiny_encoder import write_encoder

TASKS = [Task("a", "multiclass", ("x", "y", "z")), Task("b", "binary", ("n", "p")), Task("c", "regression")]
NAMES = [task.name for task in TASKS]
LAYERS = 3
SCHEMES: dict[str, dict[str, object]] = {
    "hard": {"sharing": "hard"},
    "hard, one layer": {"sharing": "hard", "tuned_layers": 1},
    "hard, heads alone": {"sharing": "hard", "tuned_layers": 0},
    "hard, embeddings": {"sharing": "hard", "tuned_layers": "all", "tune_embeddings": True},
    "hierarchical": {"sharing": "hierarchical", "tuned_layers": "all", "depths": {"a": 1, "b": 2}},
    "hierarchical below what is tuned": {"sharing": "hierarchical", "tuned_layers": 1, "depths": {"a": 1}},
    "soft l2": {"sharing": "soft", "soft": "l2"},
    "soft cross-stitch": {"sharing": "soft", "soft": "cross-stitch"},
}
EVERY = [(scheme, pooling) for scheme in SCHEMES for pooling in catalog.POOLINGS]


@pytest.fixture(scope="module")
def trunk(tmp_path_factory: pytest.TempPathFactory) -> Trunk:
    return load_trunk(write_encoder(tmp_path_factory.mktemp("encoder"), layers=LAYERS))


def _make(trunk: Trunk, scheme: str, pooling: str = "cls", **more: object) -> Sharing:
    return make(trunk, Model(pooling=pooling, **{**SCHEMES[scheme], **more}), NAMES)


def _inputs() -> tuple[torch.Tensor, torch.Tensor]:
    ids = torch.randint(4, 30, (3, 8), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    mask[2, 2:] = 0
    return ids * mask, mask


def _trained(sharing: Sharing, seed: int = 0) -> Tensors:
    """What is shared as it is in the middle of training: no two columns are the same."""
    generator = torch.Generator().manual_seed(seed)
    return {n: t + torch.randn(t.shape, generator=generator) * 0.1 for n, t in sharing.start().items()}


def _state(sharing: Sharing, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return ids if sharing.reads_ids else sharing.state(sharing.trunk, ids, mask)


def _vector(sharing: Sharing, ids: torch.Tensor, mask: torch.Tensor, shared: Tensors, task: str) -> torch.Tensor:
    return sharing.vector(sharing.embed(_state(sharing, ids, mask), mask, shared), mask, shared, task)


@pytest.mark.parametrize(("scheme", "pooling"), EVERY)
def test_the_start_is_the_trunk_s_own_function(trunk: Trunk, scheme: str, pooling: str) -> None:
    sharing, (ids, mask) = _make(trunk, scheme, pooling), _inputs()
    for task in NAMES:
        x = trunk(ids, mask, depth=0, cut=Cut.INPUT)
        outputs = [x := layer(x, mask) for layer in trunk.blocks[: sharing.ends[task]]]
        read = torch.stack([outputs[0], outputs[-1]]).mean(0) if pooling == "first-last" else outputs[-1]
        expected = sharing.pooling.pool(read, mask)
        assert torch.allclose(_vector(sharing, ids, mask, sharing.start(), task), expected, atol=1e-5)


@pytest.mark.parametrize(("scheme", "pooling"), EVERY)
def test_all_exits_in_one_pass_are_each_task_alone(trunk: Trunk, scheme: str, pooling: str) -> None:
    """What the exported graph computes, with the weights folded into layers; one task absent, one asked for alone."""
    sharing, (ids, mask) = _make(trunk, scheme, pooling), _inputs()
    shared = _trained(sharing)
    folded, rest = sharing.folded(shared)
    x = folded.state(folded.trunk, ids, mask)
    for wanted in ([0], [1], [2], [0, 2], [2, 1, 1], [0, 1, 2]):
        exit_P = torch.tensor(folded.exits)[wanted]
        vectors = folded.vectors(x, mask, rest, exit_P)
        for position, number in zip(exit_P.tolist(), wanted, strict=True):
            assert torch.allclose(vectors[position], _vector(sharing, ids, mask, shared, NAMES[number]), atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(trunk.parameters(), sharing.trunk.parameters(), strict=True))


def _reached(sharing: Sharing, task: str) -> set[str]:
    """Names of the shared tensors that a task's loss must reach."""
    last, names = LAYERS - 1, sharing.start().keys()
    if sharing.params.sharing == "soft" and sharing.params.soft == "l2":
        return {name for name in names if name.startswith(f"columns.{task}.")}
    layer = {name: int(name.split(".")[1]) for name in names if name.startswith("layers.")}
    assert sharing.params.sharing == "soft" or last in layer.values() or not layer
    return {name for name in names if layer.get(name, 0) < sharing.ends[task]}


@pytest.mark.parametrize(("scheme", "pooling"), EVERY)
@pytest.mark.parametrize("task", NAMES)
def test_gradient_reaches_what_the_task_goes_through_and_nothing_else(
    trunk: Trunk, scheme: str, pooling: str, task: str
) -> None:
    sharing, (ids, mask) = _make(trunk, scheme, pooling), _inputs()
    shared = {name: tensor.requires_grad_() for name, tensor in _trained(sharing).items()}
    heads = {t.name: sharing.init(t, torch.Generator().manual_seed(0)) for t in TASKS}
    for head in heads.values():
        for tensor in head.values():
            tensor.requires_grad_()
    logits = multitask.logits(_vector(sharing, ids, mask, shared, task), multitask.stack([heads[task]]))
    logits.square().sum().backward()
    reached = {name for name, tensor in shared.items() if tensor.grad is not None and tensor.grad.abs().sum() > 1e-9}
    # Softmax does not see a bias that all keys share; unused types of tokens get nothing.
    may_be_zero = {name for name in shared if name.endswith("key.bias")}
    assert _reached(sharing, task) - may_be_zero <= reached <= _reached(sharing, task)
    for name, head in heads.items():
        assert all((tensor.grad is not None) == (name == task) for tensor in head.values())
    assert not any(parameter.grad is not None for parameter in trunk.parameters())
    if f"stitch.{LAYERS - 1}" in shared:
        rows = shared[f"stitch.{LAYERS - 1}"].grad.abs().sum(1) > 0
        assert rows.tolist() == [name == task for name in NAMES]


@contextmanager
def _layers_run(trunk: Trunk) -> Iterator[list[int]]:
    seen: list[int] = []
    hooks = [layer.register_forward_hook(lambda *_, i=i: seen.append(i)) for i, layer in enumerate(trunk.blocks)]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("scheme", ["hierarchical", "hierarchical below what is tuned"])
def test_a_task_that_ends_low_computes_no_layer_above(trunk: Trunk, scheme: str) -> None:
    sharing, (ids, mask) = _make(trunk, scheme), _inputs()
    shared, state = _trained(sharing), _state(sharing, ids, mask)
    for task in NAMES:
        with _layers_run(trunk) as seen:
            sharing.vector(state, mask, shared, task)
        assert seen == list(range(sharing.depth, sharing.ends[task]))
    folded, rest = sharing.folded(shared)
    for number, exit_ in enumerate(folded.exits):
        with _layers_run(folded.trunk) as seen:
            folded.vectors(state, mask, rest, torch.tensor([exit_]))
        assert seen == list(range(sharing.depth, sharing.ends[NAMES[number]]))


def test_a_column_that_nobody_asks_for_does_not_run(trunk: Trunk) -> None:
    sharing, (ids, mask) = _make(trunk, "soft l2"), _inputs()
    folded, rest = sharing.folded(_trained(sharing))
    runs: list[str] = []
    for task, layers in folded.columns.items():
        layers[0].register_forward_hook(lambda *_, task=task: runs.append(task))
    folded.vectors(_state(sharing, ids, mask), mask, rest, torch.tensor([2, 0]))
    assert runs == ["a", "c"]


@pytest.mark.parametrize("pooling", catalog.POOLINGS)
@pytest.mark.parametrize("scheme", SCHEMES)
def test_padding_does_not_matter(trunk: Trunk, scheme: str, pooling: str) -> None:
    sharing, (ids, mask) = _make(trunk, scheme, pooling), _inputs()
    shared = _trained(sharing)
    for task in NAMES:
        padded = _vector(sharing, ids, mask, shared, task)[2]
        assert torch.allclose(padded, _vector(sharing, ids[2:, :2], mask[2:, :2], shared, task)[0], atol=1e-5)


@pytest.mark.parametrize("scheme", ["hard, embeddings", "hierarchical", "soft l2", "soft cross-stitch"])
def test_gradients_agree_with_finite_differences(trunk: Trunk, scheme: str) -> None:
    """Penalties included."""
    trunk = trunk.double()
    try:
        sharing, (ids, mask) = _make(trunk, scheme, soft_weight=0.3), _inputs()
        if scheme == "hierarchical":
            sharing = _make(trunk, scheme, successive_weight=0.3)
        whole = {name: tensor.double() for name, tensor in _trained(sharing).items()}
        before = {name: tensor * 0.9 for name, tensor in whole.items()}
        names = [name for name in whole if ".value." in name or "stitch" in name or "position_embeddings" in name]
        state = _state(sharing, ids, mask)
        parts = tuple(whole[name][..., :2].clone().requires_grad_() for name in names)

        def loss(*values: torch.Tensor) -> torch.Tensor:
            joined = {n: torch.cat([v, whole[n][..., 2:]], dim=-1) for n, v in zip(names, values, strict=True)}
            shared = {**whole, **joined}
            x = sharing.embed(state, mask, shared)
            total = sum(sharing.vector(x, mask, shared, task).square().sum() for task in NAMES)
            penalty = sharing.penalty(shared, before)
            return total + (0 if penalty is None else penalty)

        assert torch.autograd.gradcheck(loss, parts, atol=1e-6, fast_mode=True)
    finally:
        trunk.float()


def test_columns_are_pulled_together_and_not_to_zero(trunk: Trunk) -> None:
    """lambda sum_{t<u} ||W_t - W_u||^2: by hand for three columns, with its gradient to both sides of each pair."""
    sharing = _make(trunk, "soft l2", soft_weight=0.5)
    shared = {name: tensor.requires_grad_() for name, tensor in _trained(sharing).items()}
    penalty = sharing.penalty(shared, {})
    penalty.backward()
    parts = {n.partition(".layers.")[2] for n in shared}
    by_hand = 0.0
    for part in parts:
        a, b, c = (shared[f"columns.{task}.layers.{part}"].detach() for task in NAMES)
        by_hand += 0.5 * float((a - b).square().sum() + (a - c).square().sum() + (b - c).square().sum())
        assert torch.allclose(shared[f"columns.b.layers.{part}"].grad, 2 * b - a - c, atol=1e-4)
    assert float(penalty.detach()) == pytest.approx(by_hand, rel=1e-4)
    same = {name: shared[f"columns.a.{name.split('.', 2)[2]}"].detach() for name in shared}
    assert float(sharing.penalty(same, {})) == 0.0


def test_successive_regularisation_is_the_squared_change(trunk: Trunk) -> None:
    sharing = _make(trunk, "hierarchical", successive_weight=0.25)
    shared, before = _trained(sharing), sharing.start()
    by_hand = 0.25 * sum(float((shared[name] - before[name]).square().sum()) for name in shared)
    assert float(sharing.penalty(shared, before)) == pytest.approx(by_hand, rel=1e-4)
    assert _make(trunk, "hierarchical").penalty(shared, before) is None


def test_cross_stitch_mixes_the_columns(trunk: Trunk) -> None:
    """One tuned layer, by hand: column a goes on with 0.9 of its own output and 0.05 of each other one."""
    sharing, (ids, mask) = _make(trunk, "soft cross-stitch", tuned_layers=1), _inputs()
    shared = _trained(sharing)
    assert torch.allclose(sharing.start()["stitch.2"], 0.85 * torch.eye(3) + 0.05)
    shared["stitch.2"] = torch.tensor([[0.9, 0.05, 0.05], [0.0, 1.0, 0.0], [0.2, 0.3, 0.5]])
    state, outputs = _state(sharing, ids, mask), []
    for task in NAMES:
        layer = {
            n.removeprefix(f"columns.{task}.layers.2."): t
            for n, t in shared.items()
            if n.startswith(f"columns.{task}.")
        }
        outputs.append(torch.func.functional_call(trunk.blocks[2], layer, (state, mask))[:, 0])
    for row, task in zip(shared["stitch.2"], NAMES, strict=True):
        expected = sum(share * output for share, output in zip(row, outputs, strict=True))
        assert torch.allclose(_vector(sharing, ids, mask, shared, task), expected, atol=1e-5)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_common_to_all_tasks(trunk: Trunk, scheme: str) -> None:
    sharing = _make(trunk, scheme)
    shared = sharing.start()
    of_all = set.intersection(*(_reached(sharing, task) for task in NAMES))
    expected = of_all - {f"stitch.{LAYERS - 1}"}
    assert set(sharing.common(shared)) == expected


@pytest.mark.parametrize("scheme", SCHEMES)
def test_saved_and_loaded_is_the_same(trunk: Trunk, tmp_path: Path, scheme: str) -> None:
    sharing = _make(trunk, scheme)
    shared = _trained(sharing)
    for task in TASKS:
        save_task(tmp_path, task, sharing.init(task, torch.Generator().manual_seed(0)), facts={})
    save_model(tmp_path, encoder={}, model=sharing.params, max_tokens=8, tasks=tuple(TASKS), shared=shared)
    loaded = load_model(tmp_path)
    assert loaded.model == sharing.params and [task.name for task in loaded.tasks] == NAMES
    assert loaded.shared.keys() == shared.keys()
    assert all(torch.equal(loaded.shared[name], tensor) for name, tensor in shared.items())


def test_a_tuned_trunk_is_an_encoder_again(trunk: Trunk, tmp_path: Path) -> None:
    """What the bundle holds after hard sharing: weights that load as any encoder's do, and compute what was trained."""
    sharing, (ids, mask) = _make(trunk, "hard, embeddings"), _inputs()
    shared = _trained(sharing)
    write_encoder(tmp_path, layers=LAYERS)
    folded, _ = sharing.folded(shared)
    save_trunk(folded.trunk, tmp_path / "model.safetensors")
    again = load_trunk(tmp_path)
    x = again(ids, mask, depth=LAYERS - 1, cut=Cut.INPUT)
    assert torch.allclose(again.blocks[-1](x, mask)[:, 0], _vector(sharing, ids, mask, shared, "a"), atol=1e-5)


def test_settings_that_do_not_fit_the_encoder_are_refused(trunk: Trunk) -> None:
    with pytest.raises(UsageError, match="tuned_layers: 4; this encoder has 3 layers"):
        _make(trunk, "hard", tuned_layers=4)
    with pytest.raises(UsageError, match=r"depths.a: 4; this encoder has 3 layers. Choose 1 to 3"):
        _make(trunk, "hierarchical", depths={"a": 4})
    with pytest.raises(UsageError, match="leaves soft sharing no layer to tie"):
        _make(trunk, "soft l2", tuned_layers=0)
