"""Every block of commands in README.md runs, in order, in one clone with the tiny suite.

`sh` blocks run as one script each. In a `console` block the lines that begin with `$ ` run; the others are
what a user sees, and are not compared. A block that cannot run here is preceded by a line that says why:

    <!-- not run: REASON -->
"""

import re
from dataclasses import dataclass

import pytest

from mtlops.params import parse_params
from tests.clones import ROOT, Clone

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("clone")]

_BLOCK = re.compile(
    r"(?P<why><!-- not run: (?P<reason>.*?) -->\n+)?^```(?P<kind>sh|console)\n(?P<text>.*?)^```$", re.M | re.S
)


@dataclass(frozen=True)
class Block:
    """A block of commands.

    Attributes:
        line: where it begins in the file.
        script: its commands, to be given to a shell.
        reason: why it is not run; None when it is.
    """

    line: int
    script: str
    reason: str | None


def blocks(text: str) -> list[Block]:
    """Returns the blocks of commands of a Markdown text, in order."""
    found = []
    for match in _BLOCK.finditer(text):
        lines = match["text"].splitlines()
        if match["kind"] == "console":
            lines = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
        found.append(Block(text[: match.start()].count("\n") + 1, "\n".join(lines), match["reason"]))
    return found


def test_blocks_are_found_with_their_reasons() -> None:
    text = "a\n\n```sh\nmake run\n```\n\n<!-- not run: needs a cluster -->\n```console\n$ one\nout\n$ two\n```\n"
    assert blocks(text) == [Block(3, "make run", None), Block(7, "one\ntwo", "needs a cluster")]


def test_every_block_runs(clone: Clone) -> None:
    readme = blocks((ROOT / "README.md").read_text(encoding="utf-8"))
    assert sum(block.reason is None for block in readme) >= 3
    ready = clone.folder / "ready"
    ready.write_text(f"{clone.folder}\n", encoding="utf-8")
    for block in readme:
        if block.reason is None:
            # `make` finds the environment of this test run instead of installing one; `make test` only collects.
            settings = f"export MAKEFLAGS='READY={ready.name}' PYTEST_ADDOPTS=--collect-only"
            clone.run("bash", "-euo", "pipefail", "-c", f"{settings}\n: README.md line {block.line}\n{block.script}")


def test_every_example_of_params_is_valid() -> None:
    examples = re.findall(r"^```yaml\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
    assert [list(parse_params(example).suite.tasks) for example in examples] == [
        ["urgent", "severity", "areas", "minutes", "products"]
    ]
