"""What a step really uses, read from its code without running it."""

import ast
from functools import cache
from pathlib import Path

import grimp

from mtlops import catalog
from mtlops.params import Params

ROOT = Path(__file__).parents[2]
STEPS = ("prepare", "validate", "train", "evaluate", "export")
_TABLES = {name: table for name, table in vars(catalog).items() if name.isupper()}
_FIELDS = ("code", "loss", "metrics", "divergence")


def modules_of(step: str) -> set[str]:
    """Modules of mtlops that a step imports, over any number of stations and through the catalogue."""
    found: set[str] = set()
    waiting = {f"mtlops.steps.{step}"}
    while waiting:
        module = waiting.pop()
        found.add(module)
        waiting |= (_imported_by(module) | _loaded_by(module) | _parents_with_code(module)) - found
    return found - {"mtlops", "mtlops.steps"}


def sections_of(step: str) -> set[str]:
    """Sections of params.yaml that a step reads."""
    return set().union(*(_sections_read_by(module) for module in modules_of(step) - {"mtlops.params"}))


def source_of(module: str) -> Path:
    """The file of a module, relative to the repository."""
    path = Path(*module.split("."))
    return path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")


@cache
def _graph() -> grimp.ImportGraph:
    return grimp.build_graph("mtlops", cache_dir=None)


@cache
def _tree(module: str) -> ast.Module:
    return ast.parse((ROOT / source_of(module)).read_text(encoding="utf-8"))


def _imported_by(module: str) -> set[str]:
    return set(_graph().find_modules_directly_imported_by(module))


def _parents_with_code(module: str) -> set[str]:
    """Packages around a module whose __init__ imports something: Python runs it before the module."""
    parts = module.split(".")
    parents = {".".join(parts[:length]) for length in range(2, len(parts))}
    return {parent for parent in parents if _imported_by(parent)}


def _loaded_by(module: str) -> set[str]:
    """Modules that `catalog.load` may bring in: those named by the tables and fields that the module mentions."""
    if module == "mtlops.catalog" or not any(_is_load(node) for node in ast.walk(_tree(module))):
        return set()
    attributes = {node.attr for node in ast.walk(_tree(module)) if isinstance(node, ast.Attribute)}
    codes = {
        getattr(entry, field, "")
        for table in _TABLES.keys() & attributes
        for entry in _TABLES[table].values()
        for field in set(_FIELDS) & attributes
    }
    return {code.partition(":")[0] for code in codes if code}


def _is_load(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "catalog.load"


def _sections_read_by(module: str) -> set[str]:
    sections = set()
    for node in ast.walk(_tree(module)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "params.model_dump":
            included = next((k.value for k in node.keywords if k.arg == "include"), None)
            sections |= ast.literal_eval(included) if included else set(Params.model_fields)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "params":
            sections |= {node.attr} & set(Params.model_fields)
            sections |= {"suite"} if node.attr in ("tasks", "inputs") else set()
    filled = {section for preset in catalog.PRESETS.values() for section in preset.settings}
    return sections | ({"preset"} if sections & filled else set())
