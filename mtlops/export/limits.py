"""What an exported bundle must keep to, beside being good at its tasks."""

from dataclasses import dataclass

from mtlops.params import Gates

_MEGABYTE = 1e6


@dataclass(frozen=True)
class Limits:
    """Whether a bundle keeps to its limits.

    Attributes:
        passed: whether it keeps to all of them.
        reasons: the limits that it breaks; where it breaks none, what was found.
    """

    passed: bool
    reasons: tuple[str, ...]


def check_limits(
    gates: Gates, *, latency_ms: float, num_bytes: int, max_error: float, tolerance: float, golden_rows: int
) -> Limits:
    """Returns how a bundle stands to `gates.max_latency_ms`, `gates.max_bundle_mb`, parity and golden outputs.

    Args:
        gates: the limits.
        latency_ms: median time of one text through all tasks, on this machine.
        num_bytes: of the bundle.
        max_error: largest difference of a logit between ONNX Runtime and PyTorch.
        tolerance: largest that is allowed.
        golden_rows: texts whose expected logits the bundle's own graph has given again.
    """
    size = num_bytes / _MEGABYTE
    found = [
        (
            max_error <= tolerance,
            f"ONNX Runtime and PyTorch differ by {max_error:.1e} (export.tolerance {tolerance:g}).",
        ),
        (golden_rows > 0, f"{golden_rows} golden rows were reproduced."),
        _limit(latency_ms, gates.max_latency_ms, "one text takes", "ms here", "gates.max_latency_ms"),
        _limit(size, gates.max_bundle_mb, "the bundle has", "MB", "gates.max_bundle_mb"),
    ]
    broken = tuple(sentence for kept, sentence in found if not kept)
    return Limits(not broken, broken or tuple(sentence for _, sentence in found))


def _limit(value: float, limit: float | None, what: str, unit: str, key: str) -> tuple[bool, str]:
    if limit is None:
        return True, f"{what} {value:.1f} {unit}; {key} sets no limit."
    return value <= limit, f"{what} {value:.1f} {unit}, {key} allows {limit:g}."
