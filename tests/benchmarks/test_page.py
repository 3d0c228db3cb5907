"""Parts of docs/benchmarks.md replace one another and nothing else."""

from pathlib import Path

from tests.benchmarks.page import table, write_part


def test_a_part_replaces_its_last_version_only(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    for name, lines in (("a", ["one"]), ("b", ["two \\1"]), ("a", ["three", "four"])):
        write_part(name, lines, page=page)
    text = page.read_text(encoding="utf-8")
    assert "one" not in text
    assert text.endswith("<!-- a -->\nthree\nfour\n<!-- end of a -->\n\n<!-- b -->\ntwo \\1\n<!-- end of b -->\n")


def test_table() -> None:
    assert table(["a", "b"], [[0.12345, 10_000]]) == ["| a | b |", "| --- | --- |", "| 0.123 | 10000 |"]
