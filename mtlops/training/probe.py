"""The head's start: a linear probe of the frozen trunk, so that training departs from the frozen baseline.

Source: Kumar et al. 2022, "Fine-Tuning can Distort Pretrained Features and Underperform Out-of-Distribution",
section 4 (linear probing, then fine-tuning), arXiv:2202.10054.
"""

from collections.abc import Callable

import torch
from torch import Tensor

_L2 = 0.5
"""Penalty on the sum of squared weights against the sum of losses: scikit-learn's C = 1."""


def fit_probe(
    features: Tensor, labels: Tensor, *, loss: Callable[[Tensor, Tensor], Tensor], num_outputs: int
) -> tuple[Tensor, Tensor, float]:
    """Returns weight (H, C), bias (C,) and mean loss of the L2-regularised linear model that fits best.

    Full-batch L-BFGS in double precision; the same inputs give the same bits.

    Shapes: features (N, H); labels as `loss` takes them.
    """
    features = features.double()
    labels = labels.double() if labels.is_floating_point() else labels
    weight = torch.zeros(features.shape[1], num_outputs, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(num_outputs, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=200, tolerance_grad=1e-5, line_search_fn="strong_wolfe")

    def objective() -> Tensor:
        optimizer.zero_grad()
        value = loss(features @ weight + bias, labels).mean() + _L2 * weight.square().sum() / len(features)
        value.backward()
        return value

    optimizer.step(objective)
    with torch.no_grad():
        mean = float(loss(features @ weight + bias, labels).mean())
    return weight.detach().float(), bias.detach().float(), mean
