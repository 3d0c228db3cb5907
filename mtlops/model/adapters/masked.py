"""A bottleneck that loses random units in training and has to say which."""

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from mtlops.model.adapters.anatomy import LayerTensors, Tensors, down
from mtlops.model.adapters.pfeiffer import Pfeiffer


class Masked(Pfeiffer):
    """a = relu(D z), a~ = a (1 - m), out = LN(f + U a~ + x), with m ~ Bernoulli(`model.mask_rate`) a text and layer.

    In training a small head on the mean over tokens of U a~ predicts m; its cross-entropy joins the task's loss
    (`model.mask_weight`). The head stands after U: before it, the zeros would give the answer away. It is not
    kept, and no unit is masked outside training: U is multiplied by the share of units that training kept
    (weight scaling, Srivastava et al. 2014, section 10).
    """

    def init(self, generator: Generator) -> Tensors:
        """Returns the bottleneck's tensors, and mask_head (H, R) and mask_head_bias (R,)."""
        hidden, width = self.sizes.hidden, self.bottleneck
        head = torch.randn(hidden, width, generator=generator) * hidden**-0.5
        return {**self._bottleneck(generator), "mask_head": head, "mask_head_bias": torch.zeros(width)}

    def bank(self, trained: Tensors, *, training: bool) -> Tensors:
        """Returns the same tensors in training; otherwise without the head and with U scaled."""
        if training:
            return trained
        kept = {name: tensor for name, tensor in trained.items() if "mask_head" not in name}
        share = 1.0 - self.model.mask_rate
        return {name: tensor * share if name.endswith(".up") else tensor for name, tensor in kept.items()}

    def noise(self, num_rows: int, generator: Generator) -> Tensors:
        """Returns each layer's m (num_rows, R), 1 where a unit is masked."""
        rate = torch.full((num_rows, self.bottleneck), self.model.mask_rate)
        return {f"layers.{layer}.mask": torch.bernoulli(rate, generator=generator) for layer in self.layers}

    def output(self, sum_PTH: Tensor, x_PTH: Tensor | None, norm: nn.Module, at: LayerTensors) -> Tensor:
        """Returns the adapted output of a layer; in training it adds the head's loss to the penalties."""
        if "mask" not in at:
            return super().output(sum_PTH, x_PTH, norm, at)
        a_PTR = torch.relu(down(norm(sum_PTH), at)) * (1.0 - at["mask"]).unsqueeze(1)
        added_PTH = a_PTR @ at["up"]
        guess_PR = guess_mask(added_PTH, at)
        loss = binary_cross_entropy_with_logits(guess_PR, at["mask"], reduction="none").mean(dim=1)
        at.penalties.append(self.model.mask_weight / len(self.layers) * loss)
        out: Tensor = norm(sum_PTH + added_PTH + at["up_bias"].unsqueeze(1))
        return out


def guess_mask(added_PTH: Tensor, at: LayerTensors) -> Tensor:
    """Returns the head's logits (P, R) of m from what the bottleneck adds, averaged over tokens."""
    weight_PT1 = at.mask_PS[:, : added_PTH.shape[1]].to(added_PTH.dtype).unsqueeze(-1)
    mean_P1H = (added_PTH * weight_PT1).sum(1, keepdim=True) / weight_PT1.sum(1, keepdim=True)
    return (mean_P1H @ at["mask_head"]).squeeze(1) + at["mask_head_bias"]
