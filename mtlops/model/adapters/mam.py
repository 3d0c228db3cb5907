"""Mix-and-match: a prefix for attention, a scaled parallel bottleneck for the feed-forward block."""

from torch import Generator, Tensor, nn

from mtlops.model.adapters.anatomy import LayerTensors, Tensors
from mtlops.model.adapters.parallel import Parallel, parallel
from mtlops.model.adapters.prefix import Prefix


class Mam(Prefix):
    """Both adapters in every layer, each as it is alone.

    Source: He et al. 2022, "Towards a Unified View of Parameter-Efficient Transfer Learning", section 4.6
    ("MAM Adapter"), arXiv:2110.04366.
    """

    reduction = Parallel.reduction
    scale = Parallel.scale

    def init(self, generator: Generator) -> Tensors:
        """Returns the bottleneck's tensors."""
        return self._bottleneck(generator)

    def init_task(self, generator: Generator) -> Tensors:
        """Returns the prefix's network and every layer's bottleneck."""
        return {**super().init_task(generator), **self._init_layers(generator)}

    def output(self, sum_PTH: Tensor, x_PTH: Tensor | None, norm: nn.Module, at: LayerTensors) -> Tensor:
        """Returns the adapted output of a layer."""
        return parallel(sum_PTH, x_PTH, norm, at, scaling=self.scaling)
