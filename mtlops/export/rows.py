"""The rows graph, where tasks train layers together: each row once through the tuned layers, then heads for the pairs.

Shape suffixes: B rows, S tokens, E exits, P pairs, H hidden, C widest task's outputs.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from mtlops.export.graph import INPUTS, OUTPUTS
from mtlops.model import multitask
from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.sharing.anatomy import Sharing
from mtlops.model.trunk_pruning import shrink


class RowsGraph(nn.Module):
    """The whole model as one function of token ids and wanted pairs.

    Args:
        sharing: what lies above the state, over the trunk as it was before training.
        shared: what the tasks trained together.
        tasks: the tensors of each task, in order of task positions.
    """

    inputs: tuple[str, ...] = INPUTS
    outputs: tuple[str, ...] = OUTPUTS
    exit_T: Tensor

    def __init__(self, sharing: Sharing, shared: Mapping[str, Tensor], tasks: Sequence[Tensors]) -> None:
        super().__init__()
        self._sharing, rest = sharing.folded(shared)
        for layer in self._sharing.trained:
            shrink(layer)
        self.trunk, self.copies = self._sharing.trunk, nn.ModuleList(self._sharing.copies)
        self.register_buffer("exit_T", torch.tensor(self._sharing.exits))
        self.bank, self.rest = nn.Module(), nn.Module()
        self._heads = _register(self.bank, multitask.stack(tasks))
        self._rest = _register(self.rest, rest)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, pair_row: Tensor, pair_task: Tensor, embed_row: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Returns logits (P, C), columns beyond a task's outputs 0, and the embeddings (E, H) of some rows.

        Shapes: input_ids and attention_mask (B, S) int64; pair_row and pair_task (P,) int64;
        embed_row (E,) int64, the rows whose embedding is wanted.
        """
        sharing = self._sharing
        x_BSH = sharing.state(self.trunk, input_ids, attention_mask)
        rest = {name: getattr(self.rest, attribute) for name, attribute in self._rest.items()}
        exit_P = self.exit_T.index_select(0, pair_task)
        vectors_EBH = sharing.vectors(x_BSH, attention_mask, rest, exit_P)
        heads = {name: getattr(self.bank, attribute) for name, attribute in self._heads.items()}
        logits_PC = multitask.logits(vectors_EBH[exit_P, pair_row], multitask.pick(heads, pair_task))
        mask_ES = attention_mask.index_select(0, embed_row)
        return logits_PC, sharing.embedding(x_BSH.index_select(0, embed_row), mask_ES)


def _register(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Makes tensors parameters of a module; returns the attribute of each name."""
    names = {name: name.replace(".", "_") for name in tensors}
    for name, tensor in tensors.items():
        module.register_parameter(names[name], nn.Parameter(tensor, requires_grad=False))
    return names
