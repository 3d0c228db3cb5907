"""Which tags mark spans, and the spans that a row of tags stands for."""

import pytest

from mtlops.tags import Span, marks_spans, spans


@pytest.mark.parametrize(
    ("classes", "expected"),
    [
        (("O", "B-x", "I-x"), True),
        (("B-x", "I-x", "E-x", "S-x", "O"), True),
        (("I-x", "O"), True),
        (("noun", "verb"), False),
        (("O", "B-x", "noun"), False),
        (("O",), False),
        (("B-", "O"), False),
    ],
)
def test_tags_of_bio_and_iobes_mark_spans(classes: tuple[str, ...], expected: bool) -> None:
    assert marks_spans(classes) == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", []),
        ("B-a I-a O B-b", [("a", 0, 2), ("b", 3, 4)]),
        ("B-a B-a", [("a", 0, 1), ("a", 1, 2)]),
        ("I-a I-a O I-b", [("a", 0, 2), ("b", 3, 4)]),
        ("B-a I-b", [("a", 0, 1), ("b", 1, 2)]),
        ("S-a B-a I-a E-a E-a", [("a", 0, 1), ("a", 1, 4), ("a", 4, 5)]),
        ("S-a I-a", [("a", 0, 1), ("a", 1, 2)]),
        ("B-a-b I-a-b", [("a-b", 0, 2)]),
        ("B-a ? I-a", [("a", 0, 1), ("a", 2, 3)]),
    ],
)
def test_spans_are_those_of_conlleval(tags: str, expected: list[tuple[str, int, int]]) -> None:
    """`?`: a word that was not judged."""
    found = list(spans([None if tag == "?" else tag for tag in tags.split()]))
    assert found == [Span(*one) for one in expected]
