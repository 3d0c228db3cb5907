"""The commands of the registry: what they print, as text and as JSON, and how they fail."""

import json
from pathlib import Path
from typing import Any

import pytest

from mtlops.cli import main
from mtlops.cli_registry import COMMANDS
from mtlops.registry import Registry
from tests.small_bundles import make_bundle, write_reports


class Line:
    """A folder with a registry in which bundles were promoted one after another."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self._capsys = folder, capsys
        self.ids: list[str] = []

    def promote(self, *options: str, champion: str | None = None, parent: str | None = None) -> str:
        bundle = self.folder / f"bundle-{len(self.ids)}"
        self.ids.append(make_bundle(bundle, tasks={"topic": len(self.ids)}, parent=parent))
        paths = write_reports(self.folder / "reports", bundle, champion=champion)
        return self.run("promote", f"--bundle={bundle}", f"--decision={paths['decision']}", *options)

    def run(self, *arguments: str, code: int = 0) -> str:
        assert main([*arguments, "--quiet"]) == code
        printed = self._capsys.readouterr()
        return printed.err if code else printed.out

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run(*arguments, "--json"))


@pytest.fixture
def line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Line:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MTLOPS_REGISTRY", raising=False)
    return Line(tmp_path, capsys)


@pytest.fixture
def two(line: Line) -> Line:
    line.promote("--by=ann", "--reason=first")
    line.promote("--by=bob", champion=line.ids[0], parent=line.ids[0])
    return line


def test_promote_says_what_happened(line: Line) -> None:
    said = line.promote()
    assert said == f"champion {line.ids[0]}, version 1 in registry (after none)\n"
    again = line.run("promote", f"--bundle={line.folder / 'bundle-0'}")
    assert again == f"champion {line.ids[0]}, version 1 in registry (it was already)\n"


def test_list_shows_history_bundles_and_what_each_added(two: Line) -> None:
    lines = [row.split() for row in two.run("registry", "list").splitlines()]
    one, other = two.ids
    assert lines[0] == ["version", "time", "bundle", "action", "verdict", "by", "reason"]
    assert [row[0] for row in lines[1:3]] == ["2", "1"]
    assert lines[1][2:] == [other, "promote", "PROMOTE", "bob", "all", "good"]
    assert lines[2][2:] == [one, "promote", "PROMOTE", "ann", "first"]
    assert lines[4] == ["bundle", "published", "verdict", "tasks", "size", "added"]
    bundles = {row[0]: row[2:] for row in lines[5:7]}
    assert bundles[other] == ["PROMOTE", "2", "78.0", "kB", "35.0", "kB", "champion"]
    assert bundles[one] == ["PROMOTE", "2", "78.0", "kB", "78.0", "kB"]
    assert lines[7] == ["2", "bundles,", "113", "kB", "stored"]


def test_list_as_json(two: Line) -> None:
    value = two.json("registry", "list")
    assert (value["url"], value["champion"]) == ("registry", two.ids[1])
    assert [entry["bundle_id"] for entry in value["history"]] == two.ids
    assert value["history"][0]["report"]["decision"]["verdict"] == "PROMOTE"
    first, second = value["bundles"]
    assert (second["parent"], second["tasks"]) == (two.ids[0], ["mood", "topic"])
    assert second["added_bytes"] < first["added_bytes"] == first["bytes"]


def test_show_tells_facts_lineage_and_shared_files(two: Line) -> None:
    said = two.run("registry", "show", two.ids[1][:6])
    facts = dict(row.split(maxsplit=1) for row in said.splitlines()[:9])
    assert (facts["bundle"], facts["suite"], facts["parent"]) == (two.ids[1], "small", two.ids[0])
    assert facts["champion"].startswith("version 2 (promote, ")
    assert facts["bytes"] == "78.0 kB, of which 43.0 kB are shared with other bundles"
    files = {row.split()[0]: row.split()[1:-1] for row in said.splitlines() if "/" in row}
    assert files["tasks/mood/adapter.safetensors"] == ["2.0", "kB", "in", "2", "bundles"]
    assert files["tasks/topic/adapter.safetensors"] == ["2.0", "kB", "own"]


def test_show_as_json(two: Line) -> None:
    value = two.json("registry", "show", two.ids[1])
    assert (value["lineage"], [entry["version"] for entry in value["history"]]) == ([two.ids[0]], [2])
    files = value["files"]
    assert files["trunk/model.safetensors"] == {
        "sha256": value["manifest"]["files"]["trunk/model.safetensors"], "bytes": 40_000, "bundles": 2,
    }  # fmt: skip
    assert sum(file["bytes"] for file in files.values() if file["bundles"] == 1) < 40_000


def test_rollback_is_one_command(two: Line) -> None:
    said = two.run("rollback", "--reason=it is slow")
    assert said == f"champion {two.ids[0]}, version 3 in registry (after {two.ids[1]})\n"
    entry = two.json("rollback", f"--to={two.ids[1][:8]}", "--by=ann")
    assert (entry["bundle_id"], entry["version"], entry["action"], entry["by"]) == (two.ids[1], 4, "rollback", "ann")
    assert [e.reason for e in Registry("registry").history()][2:] == ["it is slow", ""]


def test_gc_says_what_goes(two: Line) -> None:
    assert two.json("registry", "gc", "--keep=1")["bundles"] == []
    assert two.run("registry", "gc", "--keep=1", "--grace-hours=0", "--dry-run").splitlines() == [
        "would remove 1 bundles and 5 files, 33.2 kB",
        f"  {two.ids[0]}",
    ]
    assert two.json("registry", "gc", "--keep=1", "--grace-hours=0")["bundles"] == [two.ids[0]]
    assert two.json("registry", "show", two.ids[1])["lineage"] == [two.ids[0]]


def test_diff_takes_folders_and_ids(two: Line) -> None:
    for a, b in ((two.ids[0], two.ids[1][:5]), ("bundle-0", two.ids[1]), ("bundle-0", "bundle-1")):
        parts = two.json("diff", a, b)
        assert {name: part["files"] for name, part in parts.items()} == {
            "trunk": "identical", "mood": "identical", "topic": "changed",
        }  # fmt: skip
        assert parts["topic"]["largest"] == pytest.approx(0.1)


def test_registry_of_the_environment(two: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MTLOPS_REGISTRY", "memory://elsewhere-cli")
    assert two.run("registry", "list").startswith("memory://elsewhere-cli is empty;")
    assert two.json("registry", "list", "--registry=registry")["champion"] == two.ids[1]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["promot"], 2, "unknown command 'promot'. Did you mean 'promote'?"),
        (["promote"], 4, "reports/decision.json: not found. Run `mtlops evaluate` first."),
        (["promote", "--force"], 2, "--force needs --reason"),
        (["promote", "--registry", "nothing://x"], 4, "reports/decision.json: not found."),
        (["rollback"], 4, "registry: there is no champion yet"),
        (["rollback", "--to", "abcd"], 4, "registry: holds no bundle 'abcd'. It is empty: run `mtlops promote`."),
        (["registry", "show", "abcd"], 4, "registry: holds no bundle 'abcd'"),
        (["registry", "list", "--registry", "nothing://x"], 2, "nothing://x: Protocol not known"),
        (["registry", "gc", "--keep", "0"], 2, "gc: --keep must be at least 1"),
        (["diff", "abcd", "abcd"], 4, "registry: holds no bundle 'abcd'"),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(line: Line, arguments: list[str], code: int, message: str) -> None:
    said = line.run(*arguments, code=code).splitlines()
    assert len(said) == 1
    assert said[0].startswith("mtlops: error: ") and message in said[0]


def test_refusals_have_their_exit_codes(two: Line) -> None:
    stale = two.folder / "bundle-9"
    make_bundle(stale, tasks={"topic": 9})
    paths = write_reports(two.folder / "reports", stale, champion=two.ids[0])
    assert "was made against champion" in two.run("promote", f"--bundle={stale}", code=4)
    make_bundle(stale, tasks={"topic": 9}, verdict="HOLD")
    write_reports(paths["decision"].parent, stale, champion=two.ids[1], verdict="HOLD")
    assert "the verdict is HOLD" in two.run("promote", f"--bundle={stale}", code=6)


def test_every_command_has_help(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (*([name] for name in COMMANDS), *(["registry", part] for part in ("list", "show", "gc"))):
        with pytest.raises(SystemExit, match="0"):
            main([*command, "--help"])
        assert f"usage: mtlops {' '.join(command)}" in capsys.readouterr().out
