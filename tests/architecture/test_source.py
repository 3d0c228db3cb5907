"""Rules of the house that no tool of its own checks."""

import ast
import re

import pytest

from tests.clones import ROOT, repository_files

FILES = repository_files()
ROOMS = ("mtlops/", "components/", "monitoring/", "pipelines/")
MODULES = [name for name in FILES if name.endswith(".py") and name.startswith(ROOMS)]
LONGEST_BODY = 60
# In pieces, so that this file does not hold what it looks for.
HOSTS = (
    "pypi" + r"\.org",
    "python" + r"hosted\.org",
    "npmjs" + r"\.org",
    r"deb\." + "debian",
    r"download\.pytorch" + r"\.org",
)
FOLDERS = ("work", "root", "home", "opt", "tmp")
PLACES = re.compile("|".join([*HOSTS, rf"(?<![\w.}}/~-])/(?:{'|'.join(FOLDERS)})/\w"]))


@pytest.mark.parametrize("name", FILES)
def test_no_registry_hosts_or_machine_paths(name: str) -> None:
    content = (ROOT / name).read_bytes()
    if b"\0" in content:
        return
    found = [line.strip() for line in content.decode().splitlines() if PLACES.search(line)]
    assert not found


@pytest.mark.parametrize("name", MODULES)
def test_functions_are_short(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) else node.body
            length = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert length <= LONGEST_BODY, f"{name}:{node.lineno}: {node.name} has {length} lines"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("components/")])
def test_components_import_only_kfp_and_the_standard_library_at_the_top(name: str) -> None:
    tree = ast.parse((ROOT / name).read_text(encoding="utf-8"))
    imported = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    assert imported <= {"kfp", "typing", "components.image"}


def test_no_vague_module_names() -> None:
    vague = {"utils", "helpers", "common", "base", "manager", "misc"}
    assert not [name for name in MODULES if vague & set(name.removesuffix(".py").split("/"))]


def test_sources_are_utf8_text_without_carriage_returns() -> None:
    for name in MODULES:
        assert "\r" not in (ROOT / name).read_text(encoding="utf-8")
