"""Which part of a model learns how fast, and when."""

import math
import re
from collections.abc import Callable, Collection, Iterable

Schedule = Callable[[float], float]
"""Maps the share of the steps after warm-up that is left, 1 down to 0, to the share of the peak rate."""

_LAYER = re.compile(r"^layers\.(\d+)\.")
_BELOW = ("word_embeddings", "position_embeddings", "token_type_embeddings", "embedding")


def linear(left: float) -> float:
    """Falls evenly to 0."""
    return max(0.0, left)


def cosine(left: float) -> float:
    """Falls to 0 along half a cosine (Loshchilov and Hutter 2017, "SGDR", equation 5, without restarts)."""
    return 0.5 * (1.0 - math.cos(math.pi * max(0.0, left)))


def constant(left: float) -> float:
    """Stays at the peak."""
    return 1.0


def rate(done: int, *, total: int, warmup_share: float, schedule: Schedule) -> float:
    """Returns the share of the peak rate for the step after `done` steps of `total`.

    It rises linearly to 1 over the first `warmup_share` of the steps (at least one), then `schedule` takes over.
    """
    warmup = max(1, round(total * warmup_share))
    if done < warmup:
        return (done + 1) / warmup
    return schedule((total - done) / max(1, total - warmup))


def rates_by_layer(names: Iterable[str], decay: float) -> dict[str, float]:
    """Returns each tensor's factor of the learning rate: 1 in the top layer, `decay` times less a layer down.

    `layers.<i>.<part>` belongs to layer i; embeddings lie one below layer 0; anything else (heads) learns at 1.

    Source: Howard and Ruder 2018, "ULMFiT", section 3.2 ("discriminative fine-tuning"), arXiv:1801.06146.
    """
    level = {name: _level(name) for name in names}
    top = max((i for i in level.values() if i is not None), default=0)
    return {name: 1.0 if i is None else decay ** (top - i) for name, i in level.items()}


def frozen_names(names: Iterable[str], *, epoch: int) -> frozenset[str]:
    """Returns the tensors that gradual unfreezing does not train yet in `epoch`, counted from 1.

    In epoch e the top e of the layers that have tensors are trained; anything outside layers (heads) always is,
    embeddings count as one more layer below.

    Source: Howard and Ruder 2018, "ULMFiT", section 3.3 ("gradual unfreezing"), arXiv:1801.06146.
    """
    level = {name: _level(name) for name in names}
    layers = sorted({i for i in level.values() if i is not None}, reverse=True)
    trained = set(layers[:epoch])
    return frozenset(name for name, i in level.items() if i is not None and i not in trained)


def unlayered(names: Collection[str]) -> list[str]:
    """Returns the tensors that belong to all layers at once, so that no layer's rate or freezing fits them."""
    return sorted(name for name in names if _level(name) is None and not name.startswith("head."))


def _level(name: str) -> int | None:
    if match := _LAYER.match(name):
        return int(match[1])
    return -1 if name.startswith(_BELOW) else None
