"""One bottleneck after each feed-forward block."""

import torch
from torch import Generator, Tensor, nn

from mtlops.params import Model


class Pfeiffer:
    """out = LN(f + U relu(D LN(f + x)) + x), with biases.

    Source: Pfeiffer et al. 2021, "AdapterFusion", section 3.1 and figure 2, arXiv:2005.00247, in the form that
    AdapterHub implements: the layer's own norm serves before the bottleneck and after the sum. U starts at
    zero here, so that training starts from the trunk's own function.
    """

    @staticmethod
    def init(hidden: int, model: Model, generator: Generator) -> dict[str, Tensor]:
        """Returns one layer's tensors: down (H, R), down_bias (R,), up (R, H), up_bias (H,)."""
        width = model.bottleneck
        down = torch.randn(hidden, width, generator=generator) * hidden**-0.5
        return {
            "down": down,
            "down_bias": torch.zeros(width),
            "up": torch.zeros(width, hidden),
            "up_bias": torch.zeros(hidden),
        }

    @staticmethod
    def apply(sum_PSH: Tensor, norm: nn.Module, bank: dict[str, Tensor]) -> Tensor:
        """Returns the adapted output of a layer.

        Shapes: sum and result (P, S, H); bank tensors as in `init` with P in front.
        """
        z_PSR = torch.relu(norm(sum_PSH) @ bank["down"] + bank["down_bias"].unsqueeze(1))
        out: Tensor = norm(sum_PSH + z_PSR @ bank["up"] + bank["up_bias"].unsqueeze(1))
        return out
