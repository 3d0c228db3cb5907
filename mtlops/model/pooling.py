"""How a text's token vectors become one vector.

A pooling says by `first_token_only` whether the last layer may skip all tokens but the first.
"""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Pooling:
    """A pooling: `pool(x (P, S, H), mask (P, S)) -> (P, H)`."""

    pool: Callable[[Tensor, Tensor], Tensor]
    first_token_only: bool = False


def _first(x_PSH: Tensor, mask_PS: Tensor) -> Tensor:
    return x_PSH[:, 0]


def _mean(x_PSH: Tensor, mask_PS: Tensor) -> Tensor:
    weight = mask_PS.to(x_PSH.dtype).unsqueeze(-1)
    return (x_PSH * weight).sum(1) / weight.sum(1)


cls = Pooling(_first, first_token_only=True)
mean = Pooling(_mean)
