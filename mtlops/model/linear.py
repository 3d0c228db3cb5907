"""Linear layers whose float32 products on x86 are made by oneDNN.

PyTorch hands them to MKL, which leaves half of the vector width of AMD's processors unused: oneDNN takes less than
half of the time there (docs/benchmarks.md, Training); Intel's were not measured. Both come with PyTorch, which uses
oneDNN itself for other number formats and in compiled models.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

_HAS_BOTH = torch.backends.mkldnn.is_available() and torch.backends.mkl.is_available()


class Linear(nn.Linear):
    """`nn.Linear`, faster on some processors; the same up to the order in which numbers are added.

    Nothing is drawn for it: its weights are whatever memory holds until they are loaded.
    """

    def reset_parameters(self) -> None:
        """Leaves the weights as they are."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns x (..., in_features) times the weight, with the bias added: (..., out_features)."""
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Returns what `functional.linear` does: x (..., I) and weight (O, I) to (..., O)."""
    if not _by_onednn(x, weight):
        return functional.linear(x, weight, bias)
    return _differentiable(x, weight, bias)


def linear_of_pairs(x_PTI: Tensor, weight_PIO: Tensor, bias_PO: Tensor | None = None) -> Tensor:
    """Returns x W + b of each pair, (P, T, O); with one weight for all of them it is one product."""
    if weight_PIO.shape[0] > 1 or torch.compiler.is_compiling():
        product = x_PTI @ weight_PIO
    elif bias_PO is None or torch.is_autocast_enabled(x_PTI.device.type):  # which would round the sum, too
        product = linear(x_PTI, weight_PIO[0].t())
    else:
        return linear(x_PTI, weight_PIO[0].t(), bias_PO[0])
    return product if bias_PO is None else product + bias_PO.unsqueeze(1)


def linear_of_groups(x_PTI: Tensor, weight_GIO: Tensor, bias_GO: Tensor | None, *, counts: Sequence[int]) -> Tensor:
    """Returns the same where groups of so many consecutive pairs have a weight and a bias each: a product a group."""
    weights, biases = weight_GIO.split(1), [None] * len(counts) if bias_GO is None else bias_GO.split(1)
    return torch.cat([linear_of_pairs(*of) for of in zip(x_PTI.split(list(counts)), weights, biases, strict=True)])


def _by_onednn(x: Tensor, weight: Tensor) -> bool:
    # Not while a graph is made of it: ONNX has an operator for the plain function.
    return (
        _HAS_BOTH
        and x.device.type == "cpu"
        and x.dtype is weight.dtype is torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
    )


class _Product(torch.autograd.Function):
    """x W^T + b, and its gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x if weight.requires_grad else None, weight)
        return _product(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        (grad,), (x, weight) = gradients, ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        rows = grad.flatten(0, -2)
        return (
            _differentiable(grad, weight.t(), None) if of_x else None,
            _differentiable(rows.t(), x.flatten(0, -2).t(), None) if of_weight else None,
            rows.sum(0) if of_bias else None,
        )


def _differentiable(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    made: Tensor = _Product.apply(x, weight, bias)  # type: ignore[no-untyped-call]
    return made


def _product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not weight.is_contiguous() and not weight.t().is_contiguous():
        weight = weight.contiguous()  # With gaps in it, oneDNN falls back to a loop that is a thousand times slower.
    # The operator that compiled models call; torch is pinned, and tests/model/test_linear.py knows what it is to give.
    made: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")  # noqa: SLF001
    return made
