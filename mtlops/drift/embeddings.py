"""A column of vectors: sums of random Fourier features, and a permutation test of the maximum mean discrepancy.

Rows fall into blocks by the hash of their key. Under no drift, swapping the two samples within a block changes
nothing but chance, so flipping the sign of the blocks' differences at random gives the statistic's distribution: a
permutation test on the stored sums, at the same cost for a hundred rows and for a hundred million. Rows that belong
together (one author, one document) share a key and with it a block, so that they do not pass for independent evidence.

With a floor, the flipped differences are added to a shift of exactly the floor in the direction that was seen: the
distribution that the statistic has at the floor. Along that direction they are centred, so that they are noise alone.

Source: Gretton et al. 2012, "A kernel two-sample test", JMLR 13, section 2 (the discrepancy) and 8.1 (its bandwidth);
Rahimi and Recht 2007, "Random features for large-scale kernel machines", section 3; Zaremba et al. 2013, "B-test: a
non-parametric, low variance kernel two-sample test" (blocks; differs: their blocks split the kernel's sum, ours the
rows, and the test stays on all rows); Wu 1986, "Jackknife, bootstrap and other resampling methods in regression
analysis", Annals of Statistics 14(4), section 7 (signs as multipliers).
"""

import hashlib
import zlib
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.drift.finding import Finding, Settings
from mtlops.drift.sketch import Arrays, Facts, Keys
from mtlops.errors import ArtefactError

NUM_FREQUENCIES = 256
NUM_BLOCKS = 64
LEAST_BLOCKS = 16
LEAST_FILLED = 12
"""Blocks that must hold rows of both samples: 4,096 ways to flip them."""
ROWS_PER_BLOCK = 4
NUM_FLIPS = 9999
SCALE = 1 << 14
"""A feature is stored as the nearest multiple of 1 / SCALE: sums are integers and do not depend on their order."""

_SEED = 20071207
_ROWS_AT_ONCE = 512
_ROWS_FOR_BANDWIDTH = 500
_FLIPS_AT_ONCE = 1000
_TAIL = 0.025

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Embeddings:
    """Sums of the features cos(x . w) and sin(x . w) over the rows of each block.

    Attributes:
        width: H, numbers in a vector.
        bandwidth: of the Gaussian kernel: the median distance between vectors of the reference.
        counts: (NUM_BLOCKS,) int64 rows.
        sums: (NUM_BLOCKS, 2 * NUM_FREQUENCIES) int64, in units of 1 / SCALE.
    """

    width: int
    bandwidth: float
    counts: NDArray[np.int64]
    sums: NDArray[np.int64]

    @classmethod
    def fit(cls, values: Any, *, keys: Keys | None = None, settings: Settings) -> "Embeddings":
        """Returns the sums over `values` (N, H), with a bandwidth that fits them."""
        vectors = np.asarray(values, dtype=np.float32)
        zeros = np.zeros((NUM_BLOCKS, 2 * NUM_FREQUENCIES), dtype=np.int64)
        return cls(vectors.shape[1], _bandwidth(vectors), zeros[:, 0], zeros).of(vectors, keys=keys)

    def of(self, values: Any, *, keys: Keys | None = None) -> "Embeddings":
        """Returns the sums over other `values` (N, H) with the same features.

        `keys` names the unit that each row belongs to; without it a row is its own, and equal rows are one unit.
        """
        vectors = np.asarray(values, dtype=np.float32).reshape(-1, self.width)
        names = [row.tobytes() for row in vectors] if keys is None else [key.encode() for key in keys]
        blocks = np.fromiter((zlib.crc32(name) for name in names), dtype=np.int64, count=len(names)) % NUM_BLOCKS
        sums = np.zeros(self.sums.shape)
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            of_block = (blocks[part] == np.arange(NUM_BLOCKS)[:, None]).astype(np.float64)
            sums += of_block @ self._features(vectors[part])
        counts = np.bincount(blocks, minlength=NUM_BLOCKS).astype(np.int64)
        return replace(self, counts=counts, sums=sums.astype(np.int64))

    def affinity(self, values: Any) -> Floats:
        """Returns the mean kernel value (N,) of each of `values` (N, H) with the rows summed: how dense they lie there.

        It is an estimate by random features, never below 0 here, and about 1 where all rows are the same vector.
        """
        vectors = np.asarray(values, dtype=np.float32).reshape(-1, self.width)
        mean = self.sums.sum(axis=0) / max(self.rows, 1)
        found = np.zeros(len(vectors))
        for start in range(0, len(vectors), _ROWS_AT_ONCE):
            part = slice(start, start + _ROWS_AT_ONCE)
            found[part] = self._features(vectors[part]) @ mean / (SCALE**2 * NUM_FREQUENCIES)
        clipped: Floats = found.clip(min=0.0)
        return clipped

    @property
    def rows(self) -> int:
        """Rows summed."""
        return int(self.counts.sum())

    def same_shape(self, other: "Embeddings") -> bool:
        """Returns whether the two use the same features."""
        return (self.width, self.bandwidth) == (other.width, other.bandwidth)

    def merge(self, other: "Embeddings") -> "Embeddings":
        """Returns the sums over both samples."""
        return replace(self, counts=self.counts + other.counts, sums=self.sums + other.sums)

    def compare(self, current: "Embeddings", settings: Settings) -> Finding:
        """Returns whether `current` differs from this reference by more than `settings.embedding_floor`."""
        n, m, floor = self.rows, current.rows, settings.embedding_floor
        needed = max(settings.min_rows, LEAST_BLOCKS * ROWS_PER_BLOCK)
        if min(n, m) < needed:
            return Finding(n, m, floor, reason=f"{min(n, m)} rows, {needed} are needed")
        weights, differences = _differences(self, current, num_blocks=_num_blocks(min(n, m)))
        if len(weights) < LEAST_FILLED:
            return Finding(n, m, floor, reason="the rows belong to too few groups; rows of more groups are needed")
        return _test(weights, differences, rows=(n, m), floor=floor)

    def state(self) -> tuple[Facts, Arrays]:
        """Returns what `restore` reads."""
        facts = {"width": self.width, "bandwidth": self.bandwidth, "frequencies": _frequencies_digest(self.width)}
        return facts, {"counts": self.counts, "sums": self.sums}

    @classmethod
    def restore(cls, facts: Facts, arrays: Arrays) -> "Embeddings":
        """Returns the sums that `state` described.

        Raises:
            ArtefactError: they were made with other frequencies, so nothing can be compared with them.
        """
        if facts["frequencies"] != _frequencies_digest(facts["width"]):
            raise ArtefactError(
                "the embeddings' sums were made with other random frequencies (another NumPy). "
                "Export the bundle again with this installation."
            )
        return cls(facts["width"], facts["bandwidth"], arrays["counts"], arrays["sums"])  # type: ignore[arg-type]

    def _features(self, vectors: NDArray[np.float32]) -> Floats:
        """Features (B, 2F) as whole numbers of 1 / SCALE.

        Always computed on a block of one fixed size: a matrix product of another shape may round otherwise, and a
        row's features must not depend on its neighbours.
        """
        full = np.zeros((_ROWS_AT_ONCE, self.width))
        full[: len(vectors)] = vectors
        angles = (full @ (_frequencies(self.width) / self.bandwidth)).astype(np.float32)
        features = np.concatenate([np.cos(angles), np.sin(angles)], axis=1)[: len(vectors)]
        return np.rint(features * np.float32(SCALE)).astype(np.float64)


def _differences(a: Embeddings, b: Embeddings, *, num_blocks: int) -> tuple[Floats, Floats]:
    """Weights (B,), sum 1, and mean differences (B, D) of the blocks that hold rows of both samples.

    The kernel's value of a row with itself is 1: features are divided by the root of the number of frequencies.
    """
    (n, sums_a), (m, sums_b) = ((_fold(x.counts, num_blocks), _fold(x.sums, num_blocks)) for x in (a, b))
    filled = (n > 0) & (m > 0)
    n, m, sums_a, sums_b = n[filled], m[filled], sums_a[filled], sums_b[filled]
    differences = (sums_a / n[:, None] - sums_b / m[:, None]) / (SCALE * NUM_FREQUENCIES**0.5)
    weights = n * m / (n + m)
    return weights / weights.sum(), differences


def _test(weights: Floats, differences: Floats, *, rows: tuple[int, int], floor: float) -> Finding:
    shift = weights @ differences
    statistic = float(shift @ shift)
    length = statistic**0.5
    weighted = weights[:, None] * differences
    # One mean was fitted: the same correction as n / (n - 1) of a variance, for unequal weights.
    noise = weights[:, None] * (differences - shift) / np.sqrt(1.0 - weights)[:, None]
    signs = _signs(len(weights))
    along = signs @ (noise @ (shift / length)) if length > 0.0 else np.zeros(len(signs))
    at_floor = floor + 2.0 * floor**0.5 * along + _squares(signs, weighted)
    chance = float((noise**2).sum())
    effect = statistic - chance
    around = 2.0 * length * along + _squares(signs, noise) - chance
    low, high = np.quantile(around, [_TAIL, 1.0 - _TAIL])
    return Finding(
        *rows, floor, statistic=statistic, effect=max(0.0, effect),
        low=max(0.0, effect + float(low)), high=max(0.0, effect + float(high)),
        p_value=float((1 + np.count_nonzero(at_floor >= statistic)) / (1 + len(signs))),
    )  # fmt: skip


def _squares(signs: Floats, vectors: Floats) -> Floats:
    """Squared lengths (R,) of the signed sums of (B, D) vectors."""
    products = vectors @ vectors.T
    parts = (signs[start : start + _FLIPS_AT_ONCE] for start in range(0, len(signs), _FLIPS_AT_ONCE))
    return np.concatenate([np.einsum("rb,rb->r", part @ products, part) for part in parts])


def _num_blocks(rows: int) -> int:
    """A power of two, so that blocks fold evenly: as many as leave `ROWS_PER_BLOCK` rows in each."""
    return int(np.clip(1 << ((rows // ROWS_PER_BLOCK).bit_length() - 1), LEAST_BLOCKS, NUM_BLOCKS))


def _fold(of_block: NDArray[np.int64], num_blocks: int) -> Floats:
    folded: Floats = of_block.reshape(-1, num_blocks, *of_block.shape[1:]).sum(axis=0).astype(np.float64)
    return folded


def _bandwidth(vectors: NDArray[np.float32]) -> float:
    """The median distance between at most 500 different vectors, whatever their order, to 6 digits."""
    names = np.asarray([zlib.crc32(row.tobytes()) for row in vectors], dtype=np.int64)
    _, first = np.unique(names, return_index=True)
    some = vectors[first[:_ROWS_FOR_BANDWIDTH]].astype(np.float64)
    squares = (some**2).sum(axis=1)
    distances = squares[:, None] + squares - 2.0 * some @ some.T
    between = distances[np.triu_indices(len(some), k=1)]
    median = float(np.sqrt(max(float(np.median(between)), 0.0))) if len(between) else 0.0
    return float(f"{median:.6g}") or 1.0


@lru_cache(maxsize=4)
def _frequencies(width: int) -> Floats:
    """(H, F) normal numbers: divided by the bandwidth they are the spectrum of the Gaussian kernel."""
    return np.random.Generator(np.random.Philox(_SEED)).standard_normal((width, NUM_FREQUENCIES), dtype=np.float64)


@lru_cache(maxsize=4)
def _frequencies_digest(width: int) -> str:
    return hashlib.sha256(_frequencies(width).tobytes()).hexdigest()[:16]


@lru_cache(maxsize=4)
def _signs(num_blocks: int) -> Floats:
    drawn = np.random.Generator(np.random.Philox(_SEED)).integers(2, size=(NUM_FLIPS, num_blocks))
    signs: Floats = drawn.astype(np.float64) * 2.0 - 1.0
    return signs
