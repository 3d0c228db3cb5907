"""Which unlabelled rows are worth a label: those that the model doubts, that are many, and that are new.

    usefulness = uncertainty x density x drift

uncertainty   entropy of the answer, as a share of the largest possible (Lewis and Gale 1994; multilabel: the mean over
              classes); 1 for a regression, which states none
density       how close a row lies to the other candidates: doubts about a crowd count more than about an outlier
              (information density, Settles and Craven 2008, "An Analysis of Active Learning Strategies for Sequence
              Labeling Tasks", section 3.4; differs: a Gaussian kernel instead of the cosine)
drift         the share of that closeness among candidates in the closeness to candidates and reference together: 0.5
              where production looks as before, towards 1 where it does not

Rows are then taken one by one, each the most useful once what lies close to those already taken counts less, so that
the queue does not hold one question many times over. (Greedy, as maximal marginal relevance: Carbonell and Goldstein
1998.)
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mtlops.decoding import Outputs
from mtlops.drift.embeddings import Embeddings

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Usefulness:
    """The score of N rows and its factors, each (N,) between 0 and 1."""

    uncertainty: Floats
    density: Floats
    drift: Floats

    @property
    def score(self) -> Floats:
        """Their product."""
        return self.uncertainty * self.density * self.drift


def uncertainty(outputs: Outputs) -> Floats:
    """Returns (N,) between 0 (sure) and 1 (every class alike)."""
    if outputs.probabilities is None:
        assert outputs.values is not None
        return np.ones(len(outputs.values))
    p = np.clip(np.asarray(outputs.probabilities, dtype=np.float64), 1e-12, 1.0)
    if outputs.labels is not None and outputs.labels.ndim == 2:
        each = -(p * np.log2(p) + (1 - p).clip(1e-12) * np.log2((1 - p).clip(1e-12)))
        return np.asarray(each.mean(axis=1))
    entropy = -(p * np.log(p)).sum(axis=1) / np.log(p.shape[1])
    return np.asarray(entropy.clip(0.0, 1.0))


def usefulness(outputs: Outputs, vectors: NDArray[np.float32], *, reference: Embeddings) -> Usefulness:
    """Returns how useful a label of each candidate would be.

    Args:
        outputs: the model's answers to N candidates.
        vectors: (N, H) their embeddings.
        reference: the embeddings that the task's drift is measured against.
    """
    among, before = reference.of(vectors).affinity(vectors), reference.affinity(vectors)
    together = among + before
    drift = np.divide(among, together, out=np.full(len(among), 0.5), where=together > 0)
    density = among / max(float(among.max(initial=0.0)), 1e-12)
    return Usefulness(uncertainty(outputs), density, drift)


def spread(score: Floats, vectors: NDArray[np.float32], *, most: int) -> list[int]:
    """Returns at most so many positions, the most useful first, none of them close to an earlier one if that can be.

    Shapes: score (N,); vectors (N, H). Close means a large cosine; a row equal to one taken counts nothing any more.
    """
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit = (vectors / np.maximum(lengths, 1e-12)).astype(np.float64)
    left, taken = score.astype(np.float64), []
    free = np.ones(len(score), dtype=bool)
    for _ in range(min(most, len(score))):
        best = int(np.flatnonzero(free)[np.argmax(left[free])])
        taken.append(best)
        free[best] = False
        left = left * (1.0 - (unit @ unit[best]).clip(0.0, 1.0) ** 4)
    return taken
