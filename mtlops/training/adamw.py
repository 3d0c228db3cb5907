"""The optimiser: PyTorch's AdamW over named tensors, each with its own peak rate and weight decay.

Source: Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization", algorithm 2, arXiv:1711.05101; betas and
epsilon are PyTorch's.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

_BETAS = (0.9, 0.999)
_EPSILON = 1e-8
_STATE = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Setting:
    """How one tensor learns: its peak learning rate, and its weight decay."""

    rate: float
    weight_decay: float = 0.0


class AdamW:
    """Steps of AdamW.

    It calls PyTorch's function in place of its class `torch.optim.AdamW`, to the same bits: that class imports the
    compiler, which takes a second of CPU time of every run. On a GPU all tensors of a setting are one fused kernel.

    Args:
        tensors: what is trained, by name; leaves that ask for gradients.
        settings: of each tensor.
    """

    def __init__(self, tensors: Mapping[str, Tensor], settings: Mapping[str, Setting]) -> None:
        self.tensors, self.settings = dict(tensors), dict(settings)
        self._state: dict[str, tuple[Tensor, Tensor, Tensor]] = {}
        self._groups: dict[Setting, list[str]] = {}
        for name in tensors:
            self._groups.setdefault(settings[name], []).append(name)

    @torch.no_grad()
    def step(self, *, share: float = 1.0, frozen: Collection[str] = (), clip_norm: float | None = None) -> None:
        """Takes one step on the tensors' gradients, and forgets them.

        A tensor that the pass left out gets a gradient of zero, so that its moments decay on every path alike. A frozen
        one gets none: it stays as it is, and starts with fresh moments.

        Args:
            share: of the peak rates at which to learn.
            frozen: names of tensors that do not learn yet.
            clip_norm: largest norm of all gradients together (Pascanu et al. 2013, algorithm 1, arXiv:1211.5063).
        """
        for name, tensor in self.tensors.items():
            if name in frozen:
                tensor.grad = None
            elif tensor.grad is None:
                tensor.grad = torch.zeros_like(tensor)
        if clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.tensors.values(), clip_norm)
        for setting, group in self._groups.items():
            if names := [name for name in group if name not in frozen]:
                self._step(names, setting, rate=setting.rate * share)
        self.forget_gradients()

    def forget_gradients(self) -> None:
        """Leaves all tensors without a gradient."""
        for tensor in self.tensors.values():
            tensor.grad = None

    def state(self) -> dict[str, Tensor]:
        """Returns what the optimiser remembers of its tensors, as `step/<name>`, `exp_avg/<name>` and so on."""
        found = self._state.items()
        return {f"{key}/{name}": part for name, parts in found for key, part in zip(_STATE, parts, strict=True)}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Goes back to what `state` returned; whatever else lies in `saved` is left alone."""
        for name, tensor in self.tensors.items():
            if f"step/{name}" in saved:
                step, average, square = (saved[f"{key}/{name}"].clone().to(tensor.device) for key in _STATE)
                self._state[name] = step, average, square

    def _step(self, names: list[str], setting: Setting, *, rate: float) -> None:
        tensors = [self.tensors[name] for name in names]
        steps, averages, squares = map(list, zip(*map(self._remembered, names), strict=True))
        is_fused = tensors[0].is_cuda
        adamw(
            tensors, [tensor.grad for tensor in tensors if tensor.grad is not None], averages, squares, [], steps,
            foreach=False, fused=is_fused, amsgrad=False, beta1=_BETAS[0], beta2=_BETAS[1], lr=rate,
            weight_decay=setting.weight_decay, eps=_EPSILON, maximize=False,
        )  # fmt: skip

    def _remembered(self, name: str) -> tuple[Tensor, Tensor, Tensor]:
        """A tensor's steps (), and the moving averages of its gradient and of its square, shaped as it is."""
        if name not in self._state:
            tensor = self.tensors[name]
            step = torch.zeros((), device=tensor.device)
            self._state[name] = step, torch.zeros_like(tensor), torch.zeros_like(tensor)
        return self._state[name]
