"""How alike two tasks read the same rows: what their adapters make of them, compared without regard to rotation."""

import numpy as np
from numpy.typing import NDArray

FEWEST_ROWS = 4
"""The unbiased estimate needs as many."""


def cka(x: NDArray[np.float32], y: NDArray[np.float32]) -> float:
    """Returns the linear centred kernel alignment of two tasks' vectors: 1 alike, about 0 unrelated.

    Invariant to rotation and scale of either side. The estimate is unbiased in the number of rows, so that few rows
    in many dimensions do not look alike by chance; it may therefore fall slightly below 0.

    Shapes: x (N, H), y (N, K): row i of both belongs to the same text; N at least `FEWEST_ROWS`.

    Source: Kornblith et al. 2019, "Similarity of Neural Network Representations Revisited", section 3
    (arXiv:1905.00414), with the unbiased HSIC of Song et al. 2012, equation 4, as in Nguyen et al. 2021
    (arXiv:2010.15327), section 3.1.
    """
    own, other = _kernel(x), _kernel(y)
    scale = _hsic(own, own) * _hsic(other, other)
    return float(_hsic(own, other) / np.sqrt(scale)) if scale > 0 else 0.0


def _kernel(x: NDArray[np.float32]) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    products = wide @ wide.T
    np.fill_diagonal(products, 0.0)
    kernel: NDArray[np.float64] = products
    return kernel


def _hsic(k: NDArray[np.float64], m: NDArray[np.float64]) -> float:
    n = len(k)
    rows_k, rows_m = k.sum(axis=1), m.sum(axis=1)
    trace = float((k * m).sum())
    product = float(rows_k.sum() * rows_m.sum()) / ((n - 1) * (n - 2))
    return (trace + product - 2.0 / (n - 2) * float(rows_k @ rows_m)) / (n * (n - 3))
