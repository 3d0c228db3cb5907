"""How often each class occurs in rows without labels, from a model's probabilities.

Source: Saerens, Latinne and Decaestecker 2002, "Adjusting the outputs of a classifier to new a priori probabilities",
Neural Computation 14(1), section 2.2: expectation maximisation. It is right when classes look as they did and only
their shares changed, and the probabilities are calibrated; under any other drift it is a guess.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_STEPS = 200
_ENOUGH = 1e-6
_SMALLEST = 1e-6


@dataclass(frozen=True)
class PriorShift:
    """Shares of classes, then and now.

    Attributes:
        reference: share of each class in the reference.
        current: estimated share now, or the true one where labels are known.
        effect: sum of squared differences over the pooled shares: the w^2 of a column.
    """

    reference: dict[str, float]
    current: dict[str, float]
    effect: float

    @property
    def largest(self) -> str:
        """The class whose share changed most."""
        return max(self.current, key=lambda name: abs(self.current[name] - self.reference.get(name, 0.0)))

    def describe(self) -> str:
        """Returns the largest change in words."""
        name = self.largest
        return f"{name} from {self.reference.get(name, 0.0):.0%} to {self.current[name]:.0%}"


def estimate_priors(
    probabilities: NDArray[np.float32], reference: NDArray[np.float64]
) -> NDArray[np.float64]:  # fmt: skip
    """Returns the shares (C,) of the classes among rows with these probabilities (N, C).

    Shapes: reference: (C,) shares of the classes among the rows that the model learned from.
    """
    old: NDArray[np.float64] = np.maximum(reference, _SMALLEST) / np.maximum(reference, _SMALLEST).sum()
    shares = old.copy()
    given = probabilities.astype(np.float64)
    for _ in range(_STEPS):
        posterior = given * (shares / old)
        posterior /= np.maximum(posterior.sum(axis=1, keepdims=True), _SMALLEST)
        updated: NDArray[np.float64] = posterior.mean(axis=0)
        done = float(np.abs(updated - shares).max()) < _ENOUGH
        shares = updated
        if done:
            break
    return shares


def prior_shift(
    classes: tuple[str, ...], reference: NDArray[np.float64], current: NDArray[np.float64]
) -> PriorShift:  # fmt: skip
    """Returns how far two sets of shares (C,) lie apart."""
    pooled = np.maximum((reference + current) / 2.0, _SMALLEST)
    effect = float(((reference - current) ** 2 / pooled).sum())
    return PriorShift(
        dict(zip(classes, reference.tolist(), strict=True)), dict(zip(classes, current.tolist(), strict=True)), effect
    )
