"""A labelled window for the tiny suite: posts on new words, in new threads, of the same three topics."""

import json
from pathlib import Path
from typing import Any

WORDS = {"sport": ("puck", "rink", "skate"), "space": ("comet", "rocket", "orbit"), "law": ("court", "judge", "bill")}


def posts() -> list[dict[str, Any]]:
    """27 posts of each topic, each in a thread of its own."""
    return [
        {"body": f"{a} {b} {c} of the year {a}", "topic": topic, "thread": f"new-{topic}-{a}-{b}-{c}"}
        for topic, words in WORDS.items()
        for a in words
        for b in words
        for c in words
    ]


def write_window(path: Path, rows: list[dict[str, Any]] | None = None) -> Path:
    """Writes rows as JSON Lines and returns the path."""
    text = "".join(json.dumps(row) + "\n" for row in (posts() if rows is None else rows))
    path.write_text(text, encoding="utf-8")
    return path
