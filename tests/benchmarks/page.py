"""docs/benchmarks.md: each benchmark replaces its own part between two markers."""

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs/benchmarks.md"
_START = "# Benchmarks\n\nMeasured, not promised: each part names the command that wrote it.\n"


def write_part(name: str, lines: Sequence[str], *, page: Path = PAGE) -> None:
    """Writes a part of the page, in place of its last version or at the end."""
    text = page.read_text(encoding="utf-8") if page.exists() else _START
    part = "\n".join([f"<!-- {name} -->", *lines, f"<!-- end of {name} -->"])
    found = re.compile(rf"<!-- {name} -->.*?<!-- end of {name} -->", re.DOTALL)
    text = found.sub(lambda _: part, text) if found.search(text) else f"{text.rstrip()}\n\n{part}\n"
    page.write_text(text, encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Returns a Markdown table; numbers are shown with three digits."""
    cells = [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]


def machine() -> str:
    """Returns what the numbers were measured on."""
    return f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
