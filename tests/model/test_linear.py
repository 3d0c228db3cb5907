"""The trunk's products are those of PyTorch, in every pass that training and serving make."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from mtlops.model import linear
from mtlops.model.linear import Linear, linear_of_groups, linear_of_pairs

ROWS = [(7,), (0,), (3, 5), (2, 0), (64, 33), ()]


def _layer(*, trained: bool, bias: bool = True) -> Linear:
    torch.manual_seed(3)
    layer = Linear(48, 20, bias=bias).requires_grad_(trained)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-0.15, 0.15)
    return layer


@pytest.mark.parametrize("rows", ROWS)
def test_a_product_is_that_of_exact_numbers(rows: tuple[int, ...]) -> None:
    layer, x = _layer(trained=False), torch.randn(*rows, 48)
    expected = functional.linear(x.double(), layer.weight.double(), layer.bias.double())
    assert layer(x).shape == expected.shape
    assert torch.allclose(layer(x).double(), expected, atol=1e-5)


@pytest.mark.parametrize("trained, bias", list(itertools.product([False, True], repeat=2)))
def test_gradients_and_their_gradients_are_those_of_pytorch(trained: bool, bias: bool) -> None:
    layer, x = _layer(trained=trained, bias=bias), torch.randn(4, 6, 48, requires_grad=True)
    wanted = [x, *(layer.parameters() if trained else [])]

    def found(y: Tensor) -> list[Tensor]:
        first = torch.autograd.grad(y.sin().sum(), wanted, create_graph=True)
        return [y, *first, *torch.autograd.grad(torch.stack([(part**2).sum() for part in first]).sum(), wanted)]

    for ours, theirs in zip(found(layer(x)), found(functional.linear(x, layer.weight, layer.bias)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("num_weights", [1, 3])
@pytest.mark.parametrize("bias", [False, True])
def test_pairs_have_their_own_weights_or_one(num_weights: int, bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(3, 6, 48, requires_grad=True), torch.randn(num_weights, 48, 20, requires_grad=True)
    added = torch.randn(num_weights, 20, requires_grad=True) if bias else None
    wanted = [x, weight, *([] if added is None else [added])]
    expected = x @ weight + (0.0 if added is None else added.unsqueeze(1))
    for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 0.2)):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
            found = linear_of_pairs(x, weight, added)
        assert found.dtype is (torch.float32 if bias else dtype)
        assert torch.allclose(found.float(), expected, atol=tolerance)
        ours, theirs = (torch.autograd.grad(y.float().sum(), wanted, retain_graph=True) for y in (found, expected))
        assert all(torch.allclose(a, b, rtol=1e-4, atol=tolerance * 5) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("bias", [False, True])
def test_groups_of_pairs_share_weights(bias: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(6, 5, 48, requires_grad=True), torch.randn(3, 48, 20, requires_grad=True)
    added = torch.randn(3, 20, requires_grad=True) if bias else None
    wanted, group = [x, weight, *([] if added is None else [added])], torch.tensor([0, 0, 0, 1, 2, 2])
    found = linear_of_groups(x, weight, added, counts=[3, 1, 2])
    expected = linear_of_pairs(x, weight[group], None if added is None else added[group])
    assert torch.allclose(found, expected, atol=1e-5)
    ours, theirs = (torch.autograd.grad(y.sin().sum(), wanted) for y in (found, expected))
    assert all(torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(ours, theirs, strict=True))


def test_no_matrix_with_gaps_reaches_onednn_as_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its fallback for such ones computes the same, three seconds for a product of a millisecond."""
    layer, given = _layer(trained=True), []
    both = torch.randn(4, 6, 96, requires_grad=True)

    def operator(x: Tensor, weight: Tensor, bias: Tensor | None, *_: object) -> Tensor:
        given.append(weight)
        return functional.linear(x, weight, bias)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", operator)
    monkeypatch.setattr(linear, "_HAS_BOTH", True)
    layer(both.chunk(2, dim=-1)[0]).sum().backward()
    assert len(given) == 3
    assert all(weight.is_contiguous() or weight.t().is_contiguous() for weight in given)
    assert layer.weight.grad is not None
    assert torch.allclose(layer.weight.grad[0], both[..., :48].sum((0, 1)), atol=1e-5)


def test_a_row_does_not_change_with_what_else_could_get_a_gradient() -> None:
    frozen, trained, x = _layer(trained=False), _layer(trained=True), torch.randn(9, 48)
    with torch.inference_mode():
        expected = frozen(x)
    assert torch.equal(frozen(x.clone().requires_grad_()), expected)
    assert torch.equal(trained(x), expected)


@pytest.mark.skipif(not linear._HAS_BOTH, reason="PyTorch has no oneDNN or no MKL here")
def test_other_number_formats_and_graphs_are_left_to_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, operator = [], torch.ops.mkldnn._linear_pointwise

    def counted(x: Tensor, *more: object) -> Tensor:
        calls.append(x.shape)
        made: Tensor = operator(x, *more)
        return made

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", counted)
    layer, x = _layer(trained=False), torch.randn(5, 48)
    layer(x)
    assert len(calls) == 1
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x).dtype is torch.bfloat16
    assert layer.double()(x.double()).dtype is torch.float64
    layer.float()
    program = torch.export.export(layer, (x,))
    assert [node.target for node in program.graph.nodes if node.op == "call_function"] == [
        torch.ops.aten.linear.default
    ]
    assert len(calls) == 1
