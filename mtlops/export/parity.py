"""Proof that the exported graph computes what PyTorch computes."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from mtlops.errors import ArtefactError
from mtlops.export.graph import PairsGraph
from mtlops.export.rows import RowsGraph

if TYPE_CHECKING:
    import onnxruntime

SHAPES = ((1, 2, 1), (1, 64, 3), (2, 3, 7), (3, 17, 2), (5, 33, 20), (8, 40, 32))
"""(rows, tokens, pairs) that are compared: single ones, odd ones, more pairs than rows and fewer."""


@dataclass(frozen=True)
class Parity:
    """Largest absolute difference of a logit, or of a number of an embedding, at one shape."""

    rows: int
    tokens: int
    pairs: int
    max_error: float


def measure(graph: PairsGraph | RowsGraph, session: "onnxruntime.InferenceSession", *, num_tasks: int) -> list[Parity]:
    """Returns the differences between a session and the PyTorch graph on random inputs of all `SHAPES`."""
    random = np.random.default_rng(0)
    return [_measure(graph, session, shape, num_tasks, random) for shape in SHAPES]


def check(parities: list[Parity], *, tolerance: float) -> float:
    """Returns the largest difference.

    Raises:
        ArtefactError: it is above `tolerance`, or not a number.
    """
    worst = max(parities, key=lambda p: p.max_error if np.isfinite(p.max_error) else np.inf)
    if not worst.max_error <= tolerance:
        raise ArtefactError(
            f"model.onnx: an output differs by {worst.max_error:.2g} from PyTorch at rows={worst.rows} "
            f"tokens={worst.tokens} pairs={worst.pairs}; export.tolerance is {tolerance:g}. Nothing was exported."
        )
    return worst.max_error


def _measure(
    graph: PairsGraph | RowsGraph,
    session: "onnxruntime.InferenceSession",
    shape: tuple[int, int, int],
    num_tasks: int,
    random: np.random.Generator,
) -> Parity:
    rows, tokens, pairs = shape
    lengths = random.integers(1, tokens + 1, size=rows)
    lengths[0] = tokens
    mask = (np.arange(tokens) < lengths[:, None]).astype(np.int64)
    input_ids = random.integers(0, graph.trunk.config.vocab_size, size=(rows, tokens)) * mask
    pair_row, pair_task = random.integers(0, rows, size=pairs), random.integers(0, num_tasks, size=pairs)
    arrays = [input_ids, mask, pair_row, pair_task, random.integers(0, rows, size=rows)]
    if len(graph.inputs) > len(arrays):
        arrays.append(random.integers(0, pairs, size=pairs))
    with torch.inference_mode():
        expected = [output.numpy() for output in graph(*map(torch.from_numpy, arrays))]
    answers = session.run(list(graph.outputs), dict(zip(graph.inputs, arrays, strict=True)))
    # np.max, not max: not-a-number wins.
    error = float(np.max([np.abs(a - e).max() for a, e in zip(answers, expected, strict=True)]))
    return Parity(rows, tokens, pairs, error)
