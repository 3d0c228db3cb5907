"""What attention adds for the distance of two tokens, in encoders that know relative positions (MPNet).

Shape suffixes: A attention heads, T tokens that ask, S tokens.
"""

import math

import torch
from torch import Tensor, nn

NUM_BUCKETS = 32
"""Ranges of distances, half of them for tokens that come later; transformers knows no other number for MPNet."""

_MOST = 128
"""From this distance on all tokens are equally far."""


class RelativeBias(nn.Module):
    """A learned number for each attention head and range of distances, the same in all layers.

    Source: Raffel et al. 2020, "T5", section 2.1, arXiv:1910.10683, as transformers' MPNet has it. The range of a
    distance is looked up, not computed: a logarithm rounds otherwise in another runtime, and then names the next range.
    """

    buckets: Tensor

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(NUM_BUCKETS, num_heads).normal_(std=0.02))
        self.register_buffer("buckets", _bucket(torch.arange(-_MOST, _MOST + 1)), persistent=False)

    def forward(self, num_asking: int, num_tokens: int) -> Tensor:
        """Returns (1, A, T, S): for each of the first T tokens what it adds to its scores of all S tokens."""
        device = self.weight.device
        asking, asked = torch.arange(num_asking, device=device), torch.arange(num_tokens, device=device)
        distance_TS = (asked[None, :] - asking[:, None]).clamp(-_MOST, _MOST) + _MOST
        return self.weight[self.buckets[distance_TS]].permute(2, 0, 1).unsqueeze(0)


def _bucket(distance: Tensor) -> Tensor:
    """The range of each distance: exact ones for near tokens, wider and wider ones up to `_MOST`."""
    half = NUM_BUCKETS // 2
    num_exact, far = half // 2, distance.abs()
    wide = torch.log(far.clamp(min=1).float() / num_exact) / math.log(_MOST / num_exact) * (half - num_exact)
    ranges = torch.where(far < num_exact, far, (num_exact + wide.to(torch.int64)).clamp(max=half - 1))
    return ranges + (distance > 0).to(torch.int64) * half
