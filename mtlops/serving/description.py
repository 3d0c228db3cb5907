"""Answers as plain values, for people and for JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtlops.data.normalisation import normalise
from mtlops.decoding import Outputs
from mtlops.tags import spans
from mtlops.tasks import Task


def describe(tasks: Sequence[Task], answers: Mapping[str, Outputs], texts: Sequence[str]) -> list[dict[str, Any]]:
    """Returns answers as plain values, one mapping a text.

    Each is `{"text": ..., "tasks": {task: {"label": ..., "probabilities": {class: share}}}}`; a multilabel
    label is a list; a regression has `{"value": ...}` instead; of a task that tags words see `describe_tags`.
    """
    by_name = {task.name: task for task in tasks}
    return [
        {
            "text": text,
            "tasks": {
                name: describe_tags(by_name[name], outputs, row, text=text)
                if by_name[name].per_word
                else _describe_one(by_name[name], outputs, row)
                for name, outputs in answers.items()
            },
        }
        for row, text in enumerate(texts)
    ]


def describe_tags(task: Task, outputs: Outputs, row: int, *, text: str) -> dict[str, Any]:
    """Returns the tags of one text as plain values.

    `words`, `tags` and `confidences`, of the same length: words are what stands between spaces after `normalise`; a
    word that the model does not see, as the text is cut before it, has tag and confidence None. Where tags mark spans,
    `spans` too: each with its `label`, its `text`, and `start` and `end`, characters of the words joined by one space.
    """
    assert outputs.labels is not None and outputs.probabilities is not None
    words = normalise(text).split(" ")
    found = outputs.labels[row][: len(words)].tolist()
    shares = outputs.probabilities[row]
    tags = [task.classes[tag] if tag >= 0 else None for tag in found]
    answer: dict[str, Any] = {
        "words": words,
        "tags": tags,
        "confidences": [float(shares[i, tag]) if tag >= 0 else None for i, tag in enumerate(found)],
    }
    if task.has_spans:
        starts = np.cumsum([0, *(len(word) + 1 for word in words)]).tolist()
        answer["spans"] = [
            {
                "label": span.label,
                "text": " ".join(words[span.start : span.end]),
                "start": starts[span.start],
                "end": starts[span.end] - 1,
            }
            for span in spans(tags)
        ]
    return answer


def label_names(task: Task, outputs: Outputs, row: int) -> list[str] | None:
    """Returns the names that one row's answer consists of: one, of a multilabel task any number, None for a value.

    Of a task that tags words: the tags of the words that the model sees.
    """
    if outputs.labels is None:
        return None
    if task.per_word:
        return [task.classes[tag] for tag in outputs.labels[row].tolist() if tag >= 0]
    if task.kind == "multilabel":
        return [name for name, is_set in zip(task.classes, outputs.labels[row], strict=True) if is_set]
    return [task.classes[int(outputs.labels[row])]]


def _describe_one(task: Task, outputs: Outputs, row: int) -> dict[str, Any]:
    names = label_names(task, outputs, row)
    if outputs.values is not None or names is None:
        assert outputs.values is not None
        return {"value": float(outputs.values[row])}
    assert outputs.probabilities is not None
    shares = {name: float(p) for name, p in zip(task.classes, outputs.probabilities[row], strict=True)}
    return {"label": names if task.kind == "multilabel" else names[0], "probabilities": shares}
