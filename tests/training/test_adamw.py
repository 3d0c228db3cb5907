"""The optimiser against PyTorch's class, to the bit."""

import subprocess
import sys

import torch
from torch import Tensor

from mtlops.training.adamw import AdamW, Setting

SETTINGS = {"matrix": Setting(1e-2, 0.1), "vector": Setting(1e-2), "low": Setting(1e-3, 0.1)}


def _tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"matrix": (7, 5), "vector": (5,), "low": (3, 3)}
    return {name: torch.randn(shape, generator=generator).requires_grad_() for name, shape in shapes.items()}


def _backward(tensors: dict[str, Tensor], step: int, *, without: str = "") -> None:
    generator = torch.Generator().manual_seed(step)
    for name, tensor in tensors.items():
        if name != without:
            (tensor * torch.randn(tensor.shape, generator=generator)).sum().backward()


def _same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_steps_are_those_of_pytorch_s_class_to_the_bit() -> None:
    ours, theirs = _tensors(), _tensors()
    optimizer = AdamW(ours, SETTINGS)
    reference = torch.optim.AdamW(
        [{"params": [theirs[name]], "peak": s.rate, "weight_decay": s.weight_decay} for name, s in SETTINGS.items()]
    )
    for step in range(20):
        _backward(ours, step)
        _backward(theirs, step)
        share = 1.0 - step / 20
        torch.nn.utils.clip_grad_norm_(theirs.values(), 0.5)
        for group in reference.param_groups:
            group["lr"] = group["peak"] * share
        reference.step()
        reference.zero_grad()
        optimizer.step(share=share, clip_norm=0.5)
        assert _same(ours, theirs), step
        assert all(tensor.grad is None for tensor in ours.values())


def test_what_the_pass_left_out_decays_and_what_is_frozen_starts_afresh() -> None:
    tensors, start = _tensors(), _tensors()
    optimizer = AdamW(tensors, SETTINGS)
    _backward(tensors, 0)
    optimizer.step(frozen={"low"})
    assert torch.equal(tensors["low"], start["low"]) and "step/low" not in optimizer.state()
    before = optimizer.state()["exp_avg/vector"].clone()
    _backward(tensors, 1, without="vector")
    optimizer.step()
    state = optimizer.state()
    assert torch.allclose(state["exp_avg/vector"], before * 0.9, rtol=1e-5)
    assert (state["step/vector"], state["step/low"]) == (2, 1)


def test_restored_it_goes_on_to_the_same_bits() -> None:
    whole, cut = _tensors(), _tensors()
    optimizer, first = AdamW(whole, SETTINGS), AdamW(cut, SETTINGS)
    for step in range(6):
        _backward(whole, step)
        optimizer.step()
    for step in range(3):
        _backward(cut, step)
        first.step()
    second = AdamW(cut, SETTINGS)
    second.restore({name: tensor.clone() for name, tensor in first.state().items()} | {"now/matrix": cut["matrix"]})
    for step in range(3, 6):
        _backward(cut, step)
        second.step()
    assert _same(whole, cut) and _same(optimizer.state(), second.state())


def test_a_step_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch\n"
        "from mtlops.training.adamw import AdamW, Setting\n"
        "torch.set_deterministic_debug_mode('error')\n"
        "tensor = torch.ones(3, requires_grad=True)\n"
        "optimizer = AdamW({'a': tensor}, {'a': Setting(0.1)})\n"
        "tensor.sum().backward()\n"
        "optimizer.step(clip_norm=1.0)\n"
        "assert float(tensor.detach()[0]) != 1.0\n"
        "print([name for name in sys.modules if name.startswith(('torch._dynamo', 'torch._inductor'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
