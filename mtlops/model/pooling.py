"""How a text's token vectors become one vector.

A pooling says by `first_token_only` whether the last layer may skip all tokens but the first, and by `reads_first`
whether it also looks at the first layer's output. What that layer gives is a mean over tokens, (P, H): where the layer
lies below the cut it is the same for all tasks, is computed once a row, and stands as one more line in front of the
tokens' lines of a state (`opened`).

Shape suffixes: P (row, task) pairs or rows, S tokens, H hidden, V values of a token at the cut.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True)
class Pooling:
    """A pooling: `pool(x (P, S, H), mask (P, S)) -> (P, H)`."""

    pool: Callable[[Tensor, Tensor], Tensor]
    first_token_only: bool = False
    reads_first: bool = False

    def over(self, last_PSH: Tensor, mask_PS: Tensor, first_PH: Tensor | None) -> Tensor:
        """Returns the text vectors (P, H) from the last layer's output.

        `first_PH`: the mean over tokens of the first layer's output; None unless it `reads_first`.
        """
        pooled_PH = self.pool(last_PSH, mask_PS)
        return pooled_PH if first_PH is None else (first_PH + pooled_PH) / 2


def _first(x_PSH: Tensor, mask_PS: Tensor) -> Tensor:
    return x_PSH[:, 0]


def _mean(x_PSH: Tensor, mask_PS: Tensor) -> Tensor:
    weight = mask_PS.to(x_PSH.dtype).unsqueeze(-1)
    return (x_PSH * weight).sum(1) / weight.sum(1)


cls = Pooling(_first, first_token_only=True)
mean = Pooling(_mean)
first_last = Pooling(_mean, reads_first=True)
"""The mean over tokens of the mean of the first and the last layer's output; the means change places.

Source: Li et al. 2020, "On the Sentence Embeddings from Pre-trained Language Models", section 4 (arXiv:2011.05864);
Su et al. 2021, "Whitening Sentence Representations", section 4 ("first-last-avg", arXiv:2103.15316). The first layer is
the first transformer layer, not the embeddings. A task that ends at layer k has layer k as its last one.
"""


def with_first(state_PSV: Tensor, first_PH: Tensor) -> Tensor:
    """Returns (P, 1 + S, V): a state with the mean of the first layer's output in front, filled up with zeros."""
    line_P1V = functional.pad(first_PH, (0, state_PSV.shape[-1] - first_PH.shape[-1])).unsqueeze(1)
    return torch.cat([line_P1V, state_PSV], dim=1)


def opened(state_PSV: Tensor, *, hidden: int, has_first: bool) -> tuple[Tensor | None, Tensor]:
    """Returns the two parts of what `with_first` made: (P, H) and (P, S, V); None and the state without `has_first`."""
    return (state_PSV[:, 0, :hidden], state_PSV[:, 1:]) if has_first else (None, state_PSV)
