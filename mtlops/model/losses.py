"""Losses of the task kinds, one value a row: (logits (N, C), encoded labels) -> (N,)."""

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the softmax cross-entropy. Shapes: logits (N, C), labels (N,) int64 positions."""
    return functional.cross_entropy(logits, labels, reduction="none")


def binary_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean over classes of the sigmoid cross-entropy. Shapes: logits and labels (N, C) float32."""
    return functional.binary_cross_entropy_with_logits(logits, labels, reduction="none").mean(dim=1)


def ordinal_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the cross-entropy against labels softened by distance in ranks.

    Shapes: logits (N, C), labels (N,) int64 ranks.

    Source: SORD, Díaz and Marathe 2019, "Soft Labels for Ordinal Regression", equation 1, with the squared
    rank distance as metric.
    """
    ranks = torch.arange(logits.shape[1], device=logits.device)
    distance = (ranks[None, :] - labels[:, None]).to(logits.dtype).square()
    target = torch.softmax(-distance, dim=1)
    return -(target * functional.log_softmax(logits, dim=1)).sum(dim=1)


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the squared error. Shapes: logits (N, 1), labels (N,) float32, both standardised."""
    return (logits[:, 0] - labels).square()
