"""Two bottlenecks a layer: after the attention block and after the feed-forward block."""

from torch import Generator, Tensor, nn
from torch.nn.functional import silu

from mtlops.model.adapters.anatomy import Adapter, Cut, LayerTensors, Tensors, down, up


class Houlsby(Adapter):
    """a' = a + U swish(D a), out = LN(a' + x), after both blocks, with biases.

    Source: Houlsby et al. 2019, "Parameter-Efficient Transfer Learning for NLP", section 2.1 and figure 2,
    arXiv:1902.00751; the activation is AdapterHub's.
    """

    cut = Cut.ATTENTION
    reduction = 16

    def init(self, generator: Generator) -> Tensors:
        """Returns down (H, R), down_bias (R,), up (R, H), up_bias (H,), and the same as `attention_*`."""
        return {**self._bottleneck(generator, "attention_"), **self._bottleneck(generator)}

    def attended(self, a_PTH: Tensor, at: LayerTensors) -> Tensor:
        """Adds the first bottleneck."""
        return a_PTH + up(silu(down(a_PTH, at, "attention_")), at, "attention_")

    def output(self, sum_PTH: Tensor, x_PTH: Tensor | None, norm: nn.Module, at: LayerTensors) -> Tensor:
        """Adds the second bottleneck."""
        assert x_PTH is not None
        out: Tensor = norm(sum_PTH + up(silu(down(sum_PTH - x_PTH, at)), at))
        return out
