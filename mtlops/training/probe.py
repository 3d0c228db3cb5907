"""The head's start: a linear probe of the frozen trunk, so that training departs from the frozen baseline.

Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution",
section 4 (linear probing, then fine-tuning), arXiv:2202.10054.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

PENALTIES = (5.0, 50.0, 500.0)
"""Penalties to choose from, on half the sum of squared weights of unit-variance features against the sum of losses."""


@dataclass(frozen=True)
class Probe:
    """A linear model on pooled vectors: features @ weight + bias.

    Attributes:
        weight: (H, C) float32.
        bias: (C,) float32.
        loss: mean loss on the training rows.
    """

    weight: Tensor
    bias: Tensor
    loss: float


def fit_probe(
    features: Tensor,
    labels: Tensor,
    *,
    loss: Callable[[Tensor, Tensor], Tensor],
    num_outputs: int,
    penalty: float,
) -> Probe:
    """Returns the L2-regularised linear model that fits best, each feature scaled to unit variance for the penalty.

    Full-batch L-BFGS in double precision; the same inputs give the same bits.

    Shapes: features (N, H); labels as `loss` takes them.
    """
    rows = features.double()
    centre, spread = rows.mean(dim=0), rows.std(dim=0, correction=0).clamp(min=1e-8)
    rows = (rows - centre) / spread
    labels = labels.double() if labels.is_floating_point() else labels
    weight = torch.zeros(rows.shape[1], num_outputs, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = loss(rows @ weight + bias, labels).mean() + penalty / 2 * weight.square().sum() / len(rows)
        value.backward()
        return value

    optimizer.step(objective)
    with torch.no_grad():
        mean = float(loss(rows @ weight + bias, labels).mean())
        scaled = weight / spread[:, None]
        return Probe(scaled.float(), (bias - centre @ scaled).float(), mean)
