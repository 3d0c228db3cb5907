"""Labelled windows for the tiny suite: posts of the same three topics, in new threads, about other things."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

WORDS = {"sport": ("road", "car", "engine"), "space": ("disk", "chip", "code"), "law": ("god", "church", "plot")}
"""Of each topic words that its first posts do not have, and that the tiny encoder knows."""


def posts(*, ending: str = "this") -> list[dict[str, Any]]:
    """Returns 27 posts of each topic, each in a thread of its own; another ending makes other posts."""
    return [
        {"body": f"the {a} and {b} of {c} {ending}", "topic": topic, "thread": f"{ending}-{topic}-{a}-{b}-{c}"}
        for topic, words in WORDS.items()
        for a in words
        for b in words
        for c in words
    ]


def write_window(path: Path, rows: Sequence[dict[str, Any]] | None = None) -> Path:
    """Writes rows as JSON Lines and returns the path."""
    text = "".join(json.dumps(row) + "\n" for row in (posts() if rows is None else rows))
    path.write_text(text, encoding="utf-8")
    return path
