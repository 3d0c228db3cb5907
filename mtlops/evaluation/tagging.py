"""The metrics of tasks that tag words: of words as of any classes, and of the spans that tags mark."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops.decoding import Outputs
from mtlops.evaluation.bootstrap import Floats, Resamples
from mtlops.evaluation.metrics import Metrics, classification, of_words
from mtlops.tags import spans
from mtlops.tasks import Task


def _tagging(task: Task, labels: NDArray[Any], outputs: Outputs, samples: Resamples) -> dict[str, Floats]:
    assert outputs.labels is not None
    judged = (labels >= 0) & (outputs.labels >= 0)
    row_of_word = np.nonzero(judged)[0]
    of_rows = Resamples(
        samples.group_of_row[row_of_word], samples.num_groups, num_samples=samples.num_samples, seed=samples.seed
    )
    words = classification.over(of_rows, task, *of_words(task, labels, outputs))
    return {**_spans(task, labels, outputs, samples), **words} if task.has_spans else words


def _spans(task: Task, labels: NDArray[Any], outputs: Outputs, samples: Resamples) -> dict[str, Floats]:
    """Sums over rows of spans that are labelled, answered, and both: a right span has the right ends and label."""
    assert outputs.labels is not None
    answers = outputs.labels.astype(np.int64)
    judged = (labels >= 0) & (answers >= 0)
    sides = [[set(spans(tags)) for tags in _tags(task, of, judged)] for of in (labels, answers)]
    columns = {
        "hit": np.asarray([len(labelled & answered) for labelled, answered in zip(*sides, strict=True)]),
        "labelled": np.asarray([len(found) for found in sides[0]]),
        "answered": np.asarray([len(found) for found in sides[1]]),
    }
    sums = samples.sums(columns)
    hit, labelled, answered = (sums[name] for name in columns)
    return {
        "span_f1": _ratio(2 * hit, labelled + answered),
        "span_precision": _ratio(hit, answered),
        "span_recall": _ratio(hit, labelled),
    }


def _tags(task: Task, positions: NDArray[np.int64], judged: NDArray[np.bool_]) -> Iterator[list[str | None]]:
    """The tags of each row by name; None for words that were not judged."""
    for row, seen in zip(positions.tolist(), judged.tolist(), strict=True):
        yield [task.classes[tag] if is_seen else None for tag, is_seen in zip(row, seen, strict=True)]


def _ratio(numerator: Floats, denominator: Floats) -> Floats:
    result: Floats = np.divide(numerator, denominator, out=np.zeros_like(numerator), where=denominator > 0)
    return result


tagging = Metrics(_tagging)
"""Metrics of `tagging`, over the words that the model sees:

- `macro_f1`, `accuracy`, `ece`, `log_loss`: those of `classification`, each word counting once; rows are resampled
  whole.
- `span_f1`, `span_precision`, `span_recall`, where tags mark spans: over all spans, as the evaluation of CoNLL-2000
  counts them (`mtlops.tags`).
"""
