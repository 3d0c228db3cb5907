"""What a task is: its kind, its label space, and how labels become numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mtlops import catalog
from mtlops.errors import DataError
from mtlops.tags import marks_spans


@dataclass(frozen=True)
class Task:
    """One prediction task of a suite, as params.yaml describes it and every bundle records it.

    Attributes:
        name: the task's name in files, outputs and metrics.
        kind: a name of `catalog.KINDS`.
        classes: class names in logit order; for `ordinal` from low to high; for `binary` negative first;
            for `tagging` the tags; empty for `regression`.
        range: (lowest, highest) possible value of a `regression` label, or None when unbounded.
    """

    name: str
    kind: str
    classes: tuple[str, ...] = ()
    range: tuple[float, float] | None = None

    @classmethod
    def from_facts(cls, name: str, facts: Mapping[str, Any]) -> "Task":
        """Returns the task that `facts` describe; any other keys in them are left alone."""
        return cls(name, facts["kind"], tuple(facts["classes"]), tuple(facts["range"]) if facts["range"] else None)

    def facts(self) -> dict[str, Any]:
        """Returns what `from_facts` reads, as plain JSON values."""
        return {"kind": self.kind, "classes": list(self.classes), "range": list(self.range) if self.range else None}

    @property
    def num_outputs(self) -> int:
        """Columns of the logits that belong to this task: one a class, or one for a regression."""
        return len(self.classes) or 1

    @property
    def per_word(self) -> bool:
        """It gives every word of a text a class; the words are what stands between spaces."""
        return catalog.KINDS[self.kind].per_word

    @property
    def has_label_lists(self) -> bool:
        """A label is a list of classes: any number of them, or one a word."""
        return self.per_word or self.kind == "multilabel"

    @property
    def has_spans(self) -> bool:
        """Its classes are tags that mark where spans of words begin and end."""
        return self.per_word and marks_spans(self.classes)

    @property
    def primary(self) -> str:
        """The metric that early stopping and the gate look at."""
        return "span_f1" if self.has_spans else catalog.KINDS[self.kind].primary

    def encode(self, labels: Sequence[Any]) -> NDArray[np.int64] | NDArray[np.float32]:
        """Returns labels as the numbers that losses and metrics work on.

        Shapes: (N,) int64 class positions; multilabel (N, C) float32 of 0 and 1; regression (N,) float32;
        tagging (N, W) int64 class positions of the words of each row, -1 behind its last one.

        Raises:
            DataError: a label is outside the classes, or not a number where one is promised.
        """
        if self.kind == "regression":
            return np.asarray(labels, dtype=np.float32)
        position = {name: i for i, name in enumerate(self.classes)}
        try:
            if self.kind == "multilabel":
                encoded = np.zeros((len(labels), len(self.classes)), dtype=np.float32)
                for row, names in enumerate(labels):
                    encoded[row, [position[name] for name in names]] = 1.0
                return encoded
            if self.per_word:
                tags = np.full((len(labels), max(map(len, labels), default=0)), -1, dtype=np.int64)
                for row, names in enumerate(labels):
                    tags[row, : len(names)] = [position[name] for name in names]
                return tags
            return np.asarray([position[label] for label in labels], dtype=np.int64)
        except KeyError as error:
            raise DataError(
                f"task {self.name}: label {error.args[0]!r} is not one of its classes {list(self.classes)}. "
                f"Run `mtlops validate`: its report lists the rows."
            ) from None


def split_names(text: str) -> list[str]:
    """Returns the names in a comma list."""
    return [name.strip() for name in text.split(",") if name.strip()]
