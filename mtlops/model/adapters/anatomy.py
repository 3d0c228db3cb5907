"""Where an adapter can change a transformer layer, and how much of its lowest layer all tasks still share.

    x --query, key, value--> attention --a--> [+ x, norm] --x--> expand, gelu, contract --f--> [+ x, norm] --> out
         `projected`,                `attended`                  `expanded`                     `output`
         `prefixed`

Every method leaves its place as the trunk has it. A kind of adapter overrides those that it changes; the same
lines serve training (a few tasks a batch) and the exported graph (any task a row).

Shape suffixes: P (row, task) pairs, S tokens, T tokens that ask (S, or 1), H hidden, R bottleneck, F feed-forward.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

import torch
from torch import Generator, Tensor, nn

from mtlops.model.linear import linear_of_groups, linear_of_pairs
from mtlops.params import Model

Tensors = dict[str, Tensor]
"""All tensors of one task: `layers.<i>.<part>` of its adapter, `head.weight` (H, C) and `head.bias` (C,)."""


class Cut(Enum):
    """How far the lowest adapted layer is the same for every task: what is computed once a row, and cached.

    The value is how many vectors a token has there.
    """

    INPUT = ("input", 1)
    """Nothing of that layer: its input x."""
    ATTENTION = ("attention", 2)
    """Up to the attention block's output: a and x."""
    FEED_FORWARD = ("feed-forward", 2)
    """Up to the feed-forward block's output: f + x and x."""
    SUM = ("sum", 1)
    """The same, where f + x is enough."""

    @property
    def vectors(self) -> int:
        """Vectors of the hidden size for each token."""
        return self.value[1]


@dataclass(frozen=True)
class Sizes:
    """Sizes of the trunk's layers."""

    hidden: int
    feed_forward: int


class LayerTensors:
    """What an adapter sees in one layer: its tensors by part, `at[part]`, with P pairs (or 1) in front.

    Args:
        tensors: by part, with P, 1 or as many in front as there are `counts`.
        mask_PS: see below.
        penalties: see below.
        layer: see below.
        counts: how many consecutive pairs share each of the tensors.

    Attributes:
        mask_PS: 1 for tokens, 0 for padding.
        penalties: (P,) losses that an adapter adds in training; the caller sums them.
        layer: position of the layer in the trunk.
    """

    def __init__(
        self,
        tensors: Tensors,
        mask_PS: Tensor,
        penalties: list[Tensor],
        *,
        layer: int = -1,
        counts: Sequence[int] = (),
    ) -> None:
        self._tensors, self._counts = tensors, counts
        self.mask_PS, self.penalties, self.layer = mask_PS, penalties, layer

    def __getitem__(self, part: str) -> Tensor:
        return of_each_pair(self._tensors[part], self._counts)

    def __contains__(self, part: str) -> bool:
        return part in self._tensors

    def product(self, x_PTI: Tensor, weight: str, bias: str | None = None) -> Tensor:
        """Returns x W, plus b if there is one, of each pair: (P, T, O); with `counts` it is one product a group."""
        of_bias = None if bias is None else self._tensors[bias]
        if len(self._counts) > 1:
            return linear_of_groups(x_PTI, self._tensors[weight], of_bias, counts=self._counts)
        return linear_of_pairs(x_PTI, self._tensors[weight], of_bias)


def of_each_pair(tensor: Tensor, counts: Sequence[int]) -> Tensor:
    """Returns a tensor of each group of so many pairs for each pair, (P, ...).

    One that is for all pairs (1, ...), or has one for each already, stays as it is.
    """
    if len(counts) <= 1 or tensor.shape[0] != len(counts):
        return tensor
    repeats = torch.tensor(counts, device=tensor.device)
    return torch.repeat_interleave(tensor, repeats, dim=0, output_size=sum(counts))


class Adapter:
    """The anatomy, and the adapter that changes nothing.

    Args:
        sizes: of the trunk's layers.
        layers: positions of the layers that have an adapter, the lowest first.
        model: section `model` of params.yaml.
    """

    cut: ClassVar[Cut] = Cut.SUM
    neutral: ClassVar[bool] = True
    """Fresh tensors leave the trunk's own function."""
    undecayed: ClassVar[tuple[str, ...]] = ()
    """Parts that weight decay leaves alone."""
    reduction: ClassVar[int | None] = None
    """The bottleneck is the hidden size divided by this, unless `model.bottleneck` says otherwise."""
    width: ClassVar[int] = 1
    """The bottleneck where there is no `reduction`."""
    scale: ClassVar[float] = 1.0
    """The factor of what the adapter adds, unless `model.scaling` says otherwise."""

    def __init__(self, sizes: Sizes, layers: Sequence[int], model: Model) -> None:
        self.sizes, self.layers, self.model = sizes, tuple(layers), model
        own = max(1, sizes.hidden // self.reduction) if self.reduction else self.width
        self.bottleneck = model.bottleneck or own
        self.scaling = self.scale if model.scaling is None else model.scaling

    @property
    def num_prefixed(self) -> int:
        """Keys and values that `prefixed` puts in front."""
        return 0

    @property
    def leaves_keys_and_values(self) -> bool:
        """Keys and values are the trunk's own."""
        own = type(self)
        return own.projected is Adapter.projected and own.prefixed is Adapter.prefixed

    def init(self, generator: Generator) -> Tensors:
        """Returns one layer's fresh tensors of one task."""
        return {}

    def init_task(self, generator: Generator) -> Tensors:
        """Returns the fresh tensors of one task, in the form that is trained."""
        return self._init_layers(generator)

    def bank(self, trained: Tensors, *, training: bool) -> Tensors:
        """Returns the tensors that the layers use, from those that are trained; differentiable.

        Without `training` it is the form that is kept and served: what only training needs is gone.
        """
        return trained

    def noise(self, num_rows: int, generator: Generator) -> Tensors:
        """Returns random tensors (num_rows, ...) that join the bank for one training step."""
        return {}

    def projected(self, name: str, x_PSH: Tensor, y_PSH: Tensor, at: LayerTensors) -> Tensor:
        """Changes `name` (query, key or value), the projection y of x."""
        return y_PSH

    def prefixed(self, key_PSH: Tensor, value_PSH: Tensor, at: LayerTensors) -> tuple[Tensor, Tensor]:
        """May put further keys and values in front; attention always sees them."""
        return key_PSH, value_PSH

    def attended(self, a_PTH: Tensor, at: LayerTensors) -> Tensor:
        """Changes the attention block's output a, before its residual and norm."""
        return a_PTH

    def expanded(self, h_PTF: Tensor, at: LayerTensors) -> Tensor:
        """Changes the expanded hidden units, before their activation."""
        return h_PTF

    def output(self, sum_PTH: Tensor, x_PTH: Tensor | None, norm: nn.Module, at: LayerTensors) -> Tensor:
        """Returns the layer's output from its pre-norm sum f + x; x is the block's input, None at `Cut.SUM`."""
        out: Tensor = norm(sum_PTH)
        return out

    def _init_layers(self, generator: Generator) -> Tensors:
        return {f"layers.{i}.{part}": tensor for i in self.layers for part, tensor in self.init(generator).items()}

    def _bottleneck(self, generator: Generator, prefix: str = "") -> Tensors:
        """A bottleneck's fresh tensors: down (H, R), down_bias (R,), up (R, H), up_bias (H,), the upper ones zero."""
        hidden, width = self.sizes.hidden, self.bottleneck
        return {
            f"{prefix}down": torch.randn(hidden, width, generator=generator) * hidden**-0.5,
            f"{prefix}down_bias": torch.zeros(width),
            f"{prefix}up": torch.zeros(width, hidden),
            f"{prefix}up_bias": torch.zeros(hidden),
        }


def down(x_PTH: Tensor, at: LayerTensors, prefix: str = "") -> Tensor:
    """Returns x D + bias: (P, T, R)."""
    return at.product(x_PTH, f"{prefix}down", f"{prefix}down_bias")


def up(z_PTR: Tensor, at: LayerTensors, prefix: str = "") -> Tensor:
    """Returns z U + bias: (P, T, H)."""
    return at.product(z_PTR, f"{prefix}up", f"{prefix}up_bias")
