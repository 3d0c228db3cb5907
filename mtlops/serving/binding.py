"""Runs of a graph on a device with memory of its own: adapters and heads lie there, instead of going there each time.

ONNX Runtime copies what a pass is given to the device, and its bank is given to every pass: some 0.2 MB a task. Bound,
the bank is copied once a bundle; token ids go there with each pass, and its outputs come back at once.
"""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtlops.serving.bank import Bank

if TYPE_CHECKING:
    import onnxruntime

DEVICES: Mapping[str, str] = MappingProxyType({"CUDAExecutionProvider": "cuda", "TensorrtExecutionProvider": "cuda"})
"""By execution provider, what ONNX Runtime calls the device whose memory it computes in; others use the host's."""


class BoundBank:
    """A bank in the memory of a device.

    Args:
        bank: to be copied there.
        device: of ONNX Runtime: `cuda`, or `cpu`, where it saves nothing.
    """

    def __init__(self, bank: Bank, *, device: str) -> None:
        from onnxruntime import OrtValue

        self._values = {
            name: OrtValue.ortvalue_from_numpy(np.ascontiguousarray(tensor), device, 0) for name, tensor in bank.items()
        }

    def run(
        self, session: "onnxruntime.InferenceSession", names: Sequence[str], feeds: Mapping[str, NDArray[Any]]
    ) -> list[NDArray[Any]]:
        """Returns the named outputs, on the host, of a pass over inputs that lie on the host."""
        from onnxruntime import OrtValue

        binding = session.io_binding()
        for name, value in self._values.items():
            binding.bind_ortvalue_input(name, value)
        for name, array in feeds.items():  # `bind_cpu_input` does not know inputs that have a default
            binding.bind_ortvalue_input(name, OrtValue.ortvalue_from_numpy(array))
        for name in names:
            binding.bind_output(name, "cpu")
        session.run_with_iobinding(binding)
        found: list[NDArray[Any]] = binding.copy_outputs_to_cpu()
        return found
