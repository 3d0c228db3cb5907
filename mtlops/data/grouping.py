"""Which rows belong together: connected components over groups and texts, across all sources and tasks."""

import hashlib
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Components:
    """Sets of rows that share a group or a text, directly or through other rows.

    Attributes:
        of_row: (N,) int64, the component of each row.
        names: for each component the least row id in it: the same for every order of the rows.
        sizes: (C,) int64, rows in each component.
    """

    of_row: NDArray[np.int64]
    names: list[str]
    sizes: NDArray[np.int64]

    def __len__(self) -> int:
        """Number of components."""
        return len(self.names)

    def select(self, chosen: NDArray[np.bool_]) -> "Components":
        """Returns only the components for which `chosen` (C,) holds; `of_row` is then of their rows, in order."""
        number = np.cumsum(chosen) - 1
        of_row = number[self.of_row[chosen[self.of_row]]]
        return Components(of_row, [self.names[c] for c in np.flatnonzero(chosen)], self.sizes[chosen])

    def chance(self, *, seed: int, purpose: str) -> NDArray[np.float64]:
        """Returns for each component a number in [0, 1) that only its name, `seed` and `purpose` decide.

        Comparing it with a share sends the same component to the same side when other rows come or go.
        """
        return np.asarray([chance(name, seed=seed, purpose=purpose) for name in self.names], dtype=np.float64)


def chance(name: str, *, seed: int, purpose: str) -> float:
    """Returns a number in [0, 1) that `name`, `seed` and `purpose` decide: uniform over names."""
    digest = hashlib.sha256(f"{seed}:{purpose}:{name}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / (1 << 48)


def connect(ids: Sequence[str], *, keys: Sequence[str], groups: Sequence[str | None]) -> Components:
    """Returns the components of rows with these ids, texts (`keys`) and groups (None: belongs to none).

    Texts and groups are the nodes and each row is an edge between its two: union by the smaller
    node with path halving (Tarjan and van Leeuwen 1984), near linear in the number of rows.
    """
    nodes: dict[Hashable, int] = {}
    parent: list[int] = []

    def find(name: Hashable) -> int:
        node = nodes.setdefault(name, len(parent))
        if node == len(parent):
            parent.append(node)
        while parent[node] != node:
            parent[node] = node = parent[parent[node]]
        return node

    for key, group in zip(keys, groups, strict=True):
        if group is not None:
            one, other = find(key), find((group,))
            parent[max(one, other)] = min(one, other)
    roots = np.asarray([find(key) for key in keys], dtype=np.int64)
    _, of_row = np.unique(roots, return_inverse=True)
    return Components(of_row, _least(ids, of_row), np.bincount(of_row))


def _least(ids: Sequence[str], of_row: NDArray[np.int64]) -> list[str]:
    names: dict[int, str] = {}
    for name, component in zip(ids, of_row.tolist(), strict=True):
        names[component] = min(name, names.get(component, name))
    return [names[component] for component in range(len(names))]
