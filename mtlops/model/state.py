"""The state of a text: what the frozen trunk gives at the cut, where everything that tasks own begins.

Shape suffixes: B rows, S tokens, H hidden, V values of a token at the cut, P (row, task) pairs or rows.
"""

from torch import Tensor

from mtlops.model.adapters.anatomy import Cut
from mtlops.model.encoders import Trunk
from mtlops.model.pooling import Pooling, mean, opened


class AboveCut:
    """What lies above the cut, whatever tasks share there.

    Attributes:
        cut: how far layer `depth` is shared.
        depth: the layer at which the cut lies.
        hidden: H.
        pooling: how a text's token vectors become one.
    """

    cut: Cut
    depth: int
    hidden: int
    pooling: Pooling

    @property
    def has_first(self) -> bool:
        """The state brings the first layer's mean along: the pooling reads it, and that layer lies below the cut."""
        return self.pooling.reads_first and self.depth > 0

    def state(self, trunk: Trunk, input_ids_BS: Tensor, mask_BS: Tensor) -> Tensor:
        """Returns what the trunk gives at the cut (B, S, V), one line a token; with `has_first` one more in front."""
        state: Tensor = trunk(input_ids_BS, mask_BS, depth=self.depth, cut=self.cut, has_first=self.has_first)
        return state

    def _opened(self, state_PSV: Tensor) -> tuple[Tensor | None, Tensor]:
        return opened(state_PSV, hidden=self.hidden, has_first=self.has_first)

    def _first(self, position: int, x_PSH: Tensor, mask_PS: Tensor, known: Tensor | None) -> Tensor | None:
        """The first layer's mean (P, H), where x is that layer's output and the pooling reads it, or what is known."""
        return mean.pool(x_PSH, mask_PS) if position == 0 and self.pooling.reads_first else known
