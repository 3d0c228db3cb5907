"""Tags of words: which tag sets mark spans, and the spans that a sequence of tags stands for.

Spans are read as the evaluation of CoNLL-2000 does, leniently: a tag `I-X` after anything but `B-X` or `I-X` begins a
span too (conlleval; the default of the library seqeval).
Source: Tjong Kim Sang and Buchholz 2000, "Introduction to the CoNLL-2000 Shared Task: Chunking", section 4.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

OUTSIDE = "O"
"""The tag of a word that belongs to no span."""

_SPAN_TAG = re.compile(r"[BIES]-.+")
_ENDING = ("E", "S")
_STARTING = ("B", "S")


@dataclass(frozen=True)
class Span:
    """Words `start` up to, without, `end` that belong together, and what they are."""

    label: str
    start: int
    end: int


def marks_spans(classes: Sequence[str]) -> bool:
    """Returns whether tags are of the schemes BIO or IOBES: `O`, and `B-X`, `I-X`, `E-X` or `S-X`."""
    tags = [name for name in classes if name != OUTSIDE]
    return bool(tags) and all(_SPAN_TAG.fullmatch(tag) for tag in tags)


def spans(tags: Sequence[str | None]) -> Iterator[Span]:
    """Yields the spans of a row's tags, the first one first; None, a word that was not judged, is outside of any."""
    start, label = 0, ""
    before = OUTSIDE
    for position, tag in enumerate([*tags, OUTSIDE]):
        mark, _, name = (tag or OUTSIDE).partition("-")
        if label and (name != label or mark in _STARTING or before in _ENDING):
            yield Span(label, start, position)
            label = ""
        if name and not label:
            start, label = position, name
        before = mark
