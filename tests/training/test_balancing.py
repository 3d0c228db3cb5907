"""Balancers against closed forms, and against TorchJD for those that combine gradients."""

import numpy as np
import pytest
import torch
from torchjd.aggregation import CAGrad as TheirCAGrad
from torchjd.aggregation import PCGrad as TheirPCGrad

from mtlops import catalog
from mtlops.errors import UsageError
from mtlops.params import Train
from mtlops.tasks import Task
from mtlops.training.balancing import Balancer, GradNorm, Uncertainty, cagrad, pcgrad
from mtlops.training.batches import task_seed

TASKS = [Task("a", "binary", ("n", "p")), Task("b", "regression"), Task("c", "binary", ("n", "p"))]
COMMON = ["layers.0.w", "layers.1.w"]


def _make(name: str, **settings: object) -> Balancer:
    params = Train(balancing=name, **settings)
    return catalog.load(catalog.BALANCERS[name].code)(TASKS, common=COMMON, params=params)


def _shared(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(3, 2, generator=generator).requires_grad_() for name in COMMON}


def _losses(shared: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Three losses with conflicting gradients."""
    low, high = shared.values()
    return {
        "a": (low * high).sum().square(),
        "b": (low - 1).square().sum() + high.sum(),
        "c": (low + 2).square().sum() * 0.1 - 3 * high.sum(),
    }


def _gradients(shared: dict[str, torch.Tensor]) -> torch.Tensor:
    rows = []
    for loss in _losses(shared).values():
        found = torch.autograd.grad(loss, list(shared.values()))
        rows.append(torch.cat([part.flatten() for part in found]))
    return torch.stack(rows)


def _round(balancer: Balancer, shared: dict[str, torch.Tensor], tasks: str = "abc") -> torch.Tensor:
    """One round; returns the flat gradient that the optimiser would step on."""
    for tensor in shared.values():
        tensor.grad = None
    for task in tasks:
        balancer.backward(task, _losses(shared)[task], shared)
    balancer.finish_round(shared)
    return torch.cat([tensor.grad.flatten() for tensor in shared.values()])


def test_equal_is_the_gradient_of_the_sum() -> None:
    shared = _shared()
    assert torch.allclose(_round(_make("equal"), shared), _gradients(shared).sum(0), rtol=1e-5)


def _random_gradients(seed: int, tasks: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(tasks, 7, generator=generator, dtype=torch.float64)
    return gradients * torch.logspace(-1, 1, tasks, dtype=torch.float64).unsqueeze(1)


@pytest.mark.parametrize("tasks", [1, 2, 3, 5])
@pytest.mark.parametrize("seed", range(6))
def test_pcgrad_agrees_with_torchjd(seed: int, tasks: int) -> None:
    gradients = _random_gradients(seed, tasks)
    torch.manual_seed(seed)
    orders = [torch.randperm(tasks).numpy() for _ in range(tasks)]
    torch.manual_seed(seed)
    expected = TheirPCGrad()(gradients)
    ours = torch.from_numpy(pcgrad((gradients @ gradients.T).numpy(), orders)) @ gradients
    assert torch.allclose(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("tasks", [2, 3, 5])
@pytest.mark.parametrize("c", [0.0, 0.4, 0.9])
@pytest.mark.parametrize("seed", range(6))
def test_cagrad_agrees_with_torchjd(seed: int, c: float, tasks: int) -> None:
    gradients = _random_gradients(seed, tasks)
    expected = TheirCAGrad(c=c, norm_eps=1e-8)(gradients)
    ours = torch.from_numpy(cagrad((gradients @ gradients.T).numpy(), c=c)) @ gradients
    assert torch.allclose(ours, expected, rtol=1e-3, atol=1e-3 * float(expected.norm()))


def test_pcgrad_by_hand() -> None:
    """Two gradients at 135 degrees: each loses its part against the other."""
    gradients = np.array([[1.0, 0.0], [-1.0, 1.0]])
    weights = pcgrad(gradients @ gradients.T, [[1], [0]])
    assert np.allclose(weights @ gradients, [0.5, 1.5])
    agreeing = np.array([[1.0, 0.0], [1.0, 1.0]])
    assert np.allclose(pcgrad(agreeing @ agreeing.T, [[1], [0]]), [1, 1])


def test_cagrad_stands_still_where_no_step_helps_every_task() -> None:
    opposed = np.array([[1.0, 0.0], [-1.0, 0.0]])
    assert np.allclose(cagrad(opposed @ opposed.T, c=0.5), 0)
    assert np.isfinite(cagrad(np.zeros((3, 3)), c=0.5)).all()


def test_cagrad_helps_the_worst_off_task_more_than_the_mean_does() -> None:
    gradients = _random_gradients(3, 3).numpy()
    mean = np.full(3, 1 / 3)
    bent = cagrad(gradients @ gradients.T, c=0.8)
    assert (gradients @ (bent @ gradients)).min() > (gradients @ (mean @ gradients)).min()


@pytest.mark.parametrize("name", ["pcgrad", "cagrad"])
def test_combined_gradients_reach_every_tensor_in_its_shape(name: str) -> None:
    balancer, shared = _make(name), _shared()
    flat, gradients = _round(balancer, shared), _gradients(shared).double().numpy()
    random = np.random.default_rng(task_seed(0, "pcgrad", 1))
    orders = [random.permutation(3) for _ in range(3)]
    gramian = gradients @ gradients.T
    weights = pcgrad(gramian, orders) if name == "pcgrad" else cagrad(gramian, c=0.5)
    assert np.allclose(weights @ gradients, flat.numpy(), atol=1e-3 * float(flat.norm()))


def test_a_task_that_does_not_reach_a_tensor_has_a_gradient_of_zero_there() -> None:
    balancer, shared = _make("pcgrad"), _shared()
    balancer.backward("a", shared["layers.0.w"].sum(), shared)
    balancer.backward("b", shared["layers.1.w"].sum(), shared)
    balancer.finish_round(shared)
    assert all(torch.equal(tensor.grad, torch.ones(3, 2)) for tensor in shared.values())


def test_uncertainty_is_the_gradient_of_kendall_s_loss() -> None:
    balancer, shared = _make("uncertainty"), _shared()
    assert isinstance(balancer, Uncertainty)
    with torch.no_grad():
        balancer.values.copy_(torch.tensor([0.3, -0.5, 1.0]))
    s, factor = balancer.values.detach().clone().requires_grad_(), torch.tensor([1.0, 0.5, 1.0])
    losses = torch.stack(list(_losses(shared).values()))
    by_hand = (factor * losses * torch.exp(-s) + 0.5 * s).sum()
    expected = torch.autograd.grad(by_hand, [*shared.values(), s])
    for task, loss in _losses(shared).items():
        balancer.backward(task, loss, shared)
    assert all(torch.allclose(t.grad, e, rtol=1e-5) for t, e in zip(shared.values(), expected, strict=False))
    assert torch.allclose(balancer.values.grad, expected[-1], rtol=1e-5)


def test_uncertainty_learns_the_variance_of_a_constant_loss() -> None:
    """d/ds (e^-s L + s/2) = 0 at sigma^2 = 2 L; for half a squared error at sigma^2 = L."""
    balancer = _make("uncertainty", balancing_learning_rate=0.05)
    for _ in range(600):
        for task, value in (("a", 2.0), ("b", 3.0), ("c", 0.1)):
            balancer.backward(task, torch.tensor(value), {})
        balancer.finish_round({})
    assert [balancer.weight(task) for task in "abc"] == pytest.approx([1 / 4, 0.5 / 3, 1 / 0.2], rel=1e-2)


def test_dynamic_weight_average_by_hand() -> None:
    balancer = _make("dwa", dwa_temperature=2.0)
    balancer.finish_epoch({"a": 1.0, "b": 4.0, "c": 2.0})
    assert [balancer.weight(task) for task in "abc"] == [1, 1, 1]
    balancer.finish_epoch({"a": 0.5, "b": 4.0, "c": 3.0})
    shares = np.exp(np.array([0.5, 1.0, 1.5]) / 2)
    assert [balancer.weight(task) for task in "abc"] == pytest.approx(list(3 * shares / shares.sum()))
    shared = _shared()
    weights = torch.tensor([balancer.weight(task) for task in "abc"])
    assert torch.allclose(_round(balancer, shared), weights @ _gradients(shared), rtol=1e-4)


def test_gradnorm_by_hand() -> None:
    """One step of algorithm 1, by Adam, whose first step has the size of the rate in the direction of the gradient."""
    balancer, shared = _make("gradnorm", balancing_learning_rate=0.1, gradnorm_alpha=1.0), _shared()
    assert isinstance(balancer, GradNorm) and balancer.probe == ["layers.1.w"]
    flat = _round(balancer, shared)
    gradients = _gradients(shared)
    assert torch.allclose(flat, gradients.sum(0), rtol=1e-4)
    norms = gradients[:, 6:].norm(dim=1)
    stepped = 1.0 - 0.1 * torch.sign(norms - norms.mean())
    assert torch.allclose(balancer.values.detach(), stepped * 3 / stepped.sum(), atol=1e-4)


def test_gradnorm_brings_the_gradients_to_one_size() -> None:
    balancer, shared = _make("gradnorm", balancing_learning_rate=0.02, gradnorm_alpha=0.0), _shared()
    for _ in range(300):
        _round(balancer, shared)
    norms = torch.tensor([balancer.weight(task) for task in "abc"]) * _gradients(shared)[:, 6:].norm(dim=1)
    assert float(norms.max() / norms.min()) < 1.2
    assert sum(balancer.weight(task) for task in "abc") == pytest.approx(3)


def test_gradnorm_without_a_common_layer_is_refused() -> None:
    with pytest.raises(UsageError, match="ends below the trained layers"):
        GradNorm(TASKS, common=["word_embeddings.weight"], params=Train())


@pytest.mark.parametrize("name", catalog.BALANCERS)
def test_a_task_may_be_absent_from_a_round_and_a_resume_goes_on_alike(name: str) -> None:
    whole, cut = _make(name), _make(name)
    for balancer in (whole, cut):
        _round(balancer, _shared(1), "ac")
        balancer.finish_epoch({"a": 1.0, "b": 2.0, "c": 3.0})
        balancer.finish_epoch({"a": 0.9, "b": 1.0, "c": 3.0})
    tensors, values = cut.state()
    again = _make(name)
    again.restore({key: tensor.clone() for key, tensor in tensors.items()}, values)
    for tasks in ("b", "abc", "bc"):
        assert torch.equal(_round(whole, _shared(2), tasks), _round(again, _shared(2), tasks))
        assert [whole.weight(task) for task in "abc"] == [again.weight(task) for task in "abc"]
