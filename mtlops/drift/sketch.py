"""What every kind of column sketch can do; `catalog.DRIFT` lists the kinds."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from mtlops.drift.finding import Finding, Settings

Facts = Mapping[str, Any]
"""The small part of a sketch's state, as plain JSON values."""

Arrays = Mapping[str, NDArray[np.generic]]
"""The large part of a sketch's state."""

Keys = Sequence[str]
"""Names of the independent units that rows belong to: a group, or the row itself."""


class Sketch(Protocol):
    """A summary of a column that is small, merges in any order to the same bits, and can be tested.

    A new kind of test is one class like this in a file of its own, and one line in `catalog.DRIFT`; the contract
    tests in tests/drift run every entry of that table through the same matrix.
    """

    @classmethod
    def fit(cls, values: Any, *, keys: Keys | None = None, settings: Settings) -> Self:
        """Returns the sketch of a reference: its shape (edges, scales) and its counts."""
        ...

    def of(self, values: Any, *, keys: Keys | None = None) -> Self:
        """Returns the sketch of another sample in the same shape."""
        ...

    @property
    def rows(self) -> int:
        """Rows counted."""
        ...

    def same_shape(self, other: Self) -> bool:
        """Returns whether the two can be merged and compared."""
        ...

    def merge(self, other: Self) -> Self:
        """Returns the sketch of both samples together."""
        ...

    def compare(self, current: Self, settings: Settings) -> Finding:
        """Returns whether `current` differs from this reference by more than the floor."""
        ...

    def state(self) -> tuple[Facts, Arrays]:
        """Returns all there is to store: the same sample gives the same bytes."""
        ...

    @classmethod
    def restore(cls, facts: Facts, arrays: Arrays) -> Self:
        """Returns the sketch that `state` described."""
        ...
