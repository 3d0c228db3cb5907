"""Losses of the task kinds, one value a row.

Against labels: (logits (N, C), encoded labels) -> (N,). Against a teacher: (logits (N, C), the teacher's logits
(N, C), temperature) -> (N,); they are 0 where both agree, and are multiplied by the squared temperature so that
the size of their gradient does not depend on it (Hinton et al. 2015, "Distilling the Knowledge in a Neural
Network", section 2, arXiv:1503.02531).
"""

import torch
from torch import Tensor
from torch.nn import functional


def cross_entropy(
    logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, class_weight: Tensor | None = None
) -> Tensor:
    """Returns the softmax cross-entropy. Shapes: logits (N, C), labels (N,) int64 positions.

    Args:
        logits: see above.
        labels: see above.
        smoothing: this share of the target is spread over all C classes (Szegedy et al. 2016, section 7).
        class_weight: (C,) factor of the loss of a row of each class.
    """
    per_row = functional.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    return per_row if class_weight is None else per_row * class_weight[labels]


def binary_cross_entropy(
    logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, class_weight: Tensor | None = None
) -> Tensor:
    """Returns the mean over classes of the sigmoid cross-entropy. Shapes: logits and labels (N, C) float32.

    Args:
        logits: see above.
        labels: see above.
        smoothing: targets are moved by half of it towards the other side.
        class_weight: (C,) factor of the loss where a class is set.
    """
    targets = labels * (1.0 - smoothing) + smoothing / 2.0
    return functional.binary_cross_entropy_with_logits(logits, targets, reduction="none", pos_weight=class_weight).mean(
        dim=1
    )


def ordinal_cross_entropy(logits: Tensor, labels: Tensor, *, class_weight: Tensor | None = None) -> Tensor:
    """Returns the cross-entropy against labels softened by distance in ranks.

    Shapes: logits (N, C), labels (N,) int64 ranks; class_weight (C,) factor of the loss of a row of each class.

    Source: SORD, Díaz and Marathe 2019, "Soft Labels for Ordinal Regression", equation 1, with the squared
    rank distance as metric.
    """
    ranks = torch.arange(logits.shape[1], device=logits.device)
    distance = (ranks[None, :] - labels[:, None]).to(logits.dtype).square()
    target = torch.softmax(-distance, dim=1)
    per_row = -(target * functional.log_softmax(logits, dim=1)).sum(dim=1)
    return per_row if class_weight is None else per_row * class_weight[labels]


def word_cross_entropy(
    logits: Tensor, labels: Tensor, *, smoothing: float = 0.0, class_weight: Tensor | None = None
) -> Tensor:
    """Returns the mean over a row's words of the softmax cross-entropy: long rows count no more than short ones.

    Shapes: logits (N, W, C), labels (N, W) int64 positions, -1 where there is no word to judge; (N,), 0 without any.

    Args:
        logits: see above.
        labels: see above.
        smoothing: see `cross_entropy`.
        class_weight: (C,) factor of the loss of a word of each class.
    """
    is_judged = labels >= 0
    per_word = cross_entropy(
        logits.flatten(0, 1), labels.clamp(min=0).flatten(), smoothing=smoothing, class_weight=class_weight
    )
    return _mean_over_words(per_word.view_as(labels), is_judged)


def squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the squared error. Shapes: logits (N, 1), labels (N,) float32, both standardised."""
    return (logits[:, 0] - labels).square()


def softmax_divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns T^2 KL(softmax(teacher / T) || softmax(logits / T))."""
    ours, theirs = (functional.log_softmax(x / temperature, dim=1) for x in (logits, teacher))
    return temperature**2 * (theirs.exp() * (theirs - ours)).sum(dim=1)


def word_divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns the mean over a row's words of `softmax_divergence`; the teacher's logits are not-a-number without word.

    Shapes: both (N, W, C); (N,), 0 without any word.
    """
    is_judged = ~teacher.isnan().any(dim=-1)
    known, ours = (torch.where(is_judged[..., None], x, 0.0).flatten(0, 1) for x in (teacher, logits))
    return _mean_over_words(softmax_divergence(ours, known, temperature).view_as(is_judged), is_judged)


def _mean_over_words(per_word: Tensor, is_judged: Tensor) -> Tensor:
    return torch.where(is_judged, per_word, 0.0).sum(dim=1) / is_judged.sum(dim=1).clamp(min=1)


def sigmoid_divergence(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns the mean over classes of T^2 KL between the two Bernoulli distributions at temperature T."""
    total = torch.zeros_like(logits)
    for sign in (1.0, -1.0):
        ours, theirs = (functional.logsigmoid(sign * x / temperature) for x in (logits, teacher))
        total = total + theirs.exp() * (theirs - ours)
    return temperature**2 * total.mean(dim=1)


def squared_difference(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns the squared difference of two regressions (N, 1); a number has no temperature."""
    return (logits[:, 0] - teacher[:, 0]).square()
