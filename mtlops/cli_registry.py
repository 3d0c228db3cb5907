"""The commands that read and change a registry: promote, rollback, registry list | show | gc, diff."""

import argparse
import dataclasses
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlops.errors import UsageError

if TYPE_CHECKING:
    from mtlops.registry import Entry, Published, Registry

AddCommand = Callable[[Any, str, str, Callable[[argparse.Namespace], None]], argparse.ArgumentParser]
"""Adds a command with the options that all commands share: (parsers, name, summary, what it runs)."""

COMMANDS = ("promote", "rollback", "registry", "diff")


def add_commands(commands: Any, add: AddCommand) -> None:
    """Adds the commands to the parsers of the command line."""
    _add_promote(commands, add)
    _add_rollback(commands, add)
    command = commands.add_parser("registry", help="bundles and champions: list, show, gc")
    parts = command.add_subparsers(metavar="COMMAND", required=True)
    _add_list(parts, add)
    _add_show(parts, add)
    _add_gc(parts, add)
    _add_diff(commands, add)


def add_registry_option(command: argparse.ArgumentParser) -> None:
    """Adds --registry, and --params beside which the default registry lies."""
    command.add_argument(
        "--registry", metavar="URL",
        help="a folder, or a URL of fsspec (default: $MTLOPS_REGISTRY, else the folder registry beside params.yaml)",
    )  # fmt: skip
    command.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="params.yaml to use")


def _registry(options: argparse.Namespace) -> "Registry":
    from mtlops.registry import Registry, registry_url

    return Registry(registry_url(options.registry, beside=options.params))


def _add_who_and_why(command: argparse.ArgumentParser) -> None:
    command.add_argument("--by", default="", metavar="NAME", help="who does it (default: user@host)")
    command.add_argument("--reason", default="", metavar="TEXT", help="why; goes into the history")


def _add_promote(commands: Any, add: AddCommand) -> None:
    command = add(commands, "promote", "publish the bundle and make it champion, if it passed the gate", _promote)
    add_registry_option(command)
    _add_who_and_why(command)
    command.add_argument("--bundle", type=Path, default=Path("models/candidate"), metavar="DIR", help="bundle to use")
    for name, meaning in (("decision", "what evaluate decided"), ("export", "what export measured")):
        command.add_argument(f"--{name}", type=Path, default=Path(f"reports/{name}.json"), metavar="FILE", help=meaning)
    command.add_argument("--force", action="store_true", help="overrule verdict and limits; needs --reason")
    command.add_argument("--sign", type=Path, metavar="KEY", help="sign the bundle with this Ed25519 key (PEM)")
    command.add_argument("--git-tag", action="store_true", help="also tag the commit, for `dvc artifacts get`")


def _promote(options: argparse.Namespace) -> None:
    from mtlops.registry import registry_url
    from mtlops.steps.promote import promote

    done = promote(
        registry=registry_url(options.registry, beside=options.params),
        bundle=options.bundle,
        decision=options.decision,
        export=options.export,
        by=options.by,
        reason=options.reason,
        force=options.force,
        git_tag=options.git_tag,
        sign=options.sign,
    )
    if options.json:
        print(json.dumps(dataclasses.asdict(done), ensure_ascii=False))
        return
    state = f"after {done.previous or 'none'}" if done.is_new else "it was already"
    print(f"champion {done.bundle_id}, version {done.version} in {done.registry} ({state})")
    for tag in done.tags:
        print(f"git tag {tag} (`git push --tags` hands it on)")


def _add_rollback(commands: Any, add: AddCommand) -> None:
    command = add(commands, "rollback", "make the champion before the present one champion again", _rollback)
    add_registry_option(command)
    _add_who_and_why(command)
    command.add_argument("--to", metavar="ID", help="an earlier champion, by its id or the start of it")


def _rollback(options: argparse.Namespace) -> None:
    from mtlops.leases import whoami

    registry = _registry(options)
    target = registry.find_id(options.to) if options.to else None
    entry = registry.rollback(target, by=options.by or whoami(), reason=options.reason)
    if options.json:
        print(json.dumps(dataclasses.asdict(entry), ensure_ascii=False))
        return
    print(f"champion {entry.bundle_id}, version {entry.version} in {registry.url} (after {entry.previous})")


def _add_list(parts: Any, add: AddCommand) -> None:
    add_registry_option(add(parts, "list", "print the history of champions and the bundles", _list))


def _list(options: argparse.Namespace) -> None:
    registry = _registry(options)
    history, bundles = registry.history(), registry.bundles()
    if options.json:
        value = {
            "url": registry.url,
            "champion": history[-1].bundle_id if history else None,
            "history": [dataclasses.asdict(entry) for entry in history],
            "bundles": [_facts(bundle) for bundle in bundles],
        }
        print(json.dumps(value, ensure_ascii=False))
        return
    if not bundles and not history:
        print(f"{registry.url} is empty; `mtlops promote` publishes the first bundle.")
        return
    for line in _list_lines(history, bundles):
        print(line)


def _list_lines(history: Sequence["Entry"], bundles: Sequence["Published"]) -> Iterator[str]:
    from mtlops.report.markup import size

    champion = history[-1].bundle_id if history else None
    heads = ("version", "time", "bundle", "action", "verdict", "by", "reason")
    entries = [
        (str(e.version), e.time, e.bundle_id, e.action, e.verdict or "-", e.by, e.reason or "-")
        for e in reversed(history)
    ]
    yield from _aligned([heads, *entries])
    yield ""
    heads = ("bundle", "published", "verdict", "tasks", "size", "added", "")
    rows = [
        (
            b.id,
            b.time,
            str(b.manifest["verdict"]),
            str(len(b.manifest["tasks"])),
            size(b.bytes),
            size(b.added_bytes),
            "champion" if b.id == champion else "",
        )
        for b in reversed(bundles)
    ]
    yield from _aligned([heads, *rows])
    yield f"{len(bundles)} bundles, {size(sum(b.added_bytes for b in bundles))} stored"


def _add_show(parts: Any, add: AddCommand) -> None:
    command = add(parts, "show", "print what a published bundle is, and which of its files others share", _show)
    add_registry_option(command)
    command.add_argument("id", help="of a bundle, or the start of it")


def _show(options: argparse.Namespace) -> None:
    registry = _registry(options)
    bundle_id = registry.find_id(options.id)
    bundles = {bundle.id: bundle for bundle in registry.bundles()}
    bundle, lineage = bundles[bundle_id], _lineage(bundles, bundle_id)
    history = [entry for entry in registry.history() if entry.bundle_id == bundle_id]
    if options.json:
        facts = _facts(bundle) | {
            "lineage": lineage,
            "history": [dataclasses.asdict(entry) for entry in history],
            "files": {name: dataclasses.asdict(file) for name, file in bundle.files.items()},
            "manifest": bundle.manifest,
        }
        print(json.dumps(facts, ensure_ascii=False))
        return
    for line in _show_lines(bundle, lineage, history):
        print(line)


def _show_lines(bundle: "Published", lineage: Sequence[str], history: Sequence["Entry"]) -> Iterator[str]:
    from mtlops.report.markup import size

    manifest = bundle.manifest
    shared = sum(file.bytes for file in bundle.files.values() if file.bundles > 1)
    facts = [
        ("bundle", bundle.id),
        ("suite", manifest["suite"]),
        ("published", bundle.time),
        ("created", manifest["created"]),
        ("code", f"{manifest['code']['version']} ({manifest['code']['digest'][:12]})"),
        ("data", manifest["data"]["manifest_sha256"][:12]),
        ("parent", " <- ".join(lineage) or "none: all tasks were trained"),
        ("champion", ", ".join(f"version {e.version} ({e.action}, {e.time}, {e.by})" for e in history) or "never"),
        ("bytes", f"{size(bundle.bytes)}, of which {size(shared)} are shared with other bundles"),
    ]
    yield from (f"{name:<10} {value}" for name, value in facts)
    yield ""
    tasks = [
        (name, task["kind"], task["verdict"], task["primary"], f"{task['metrics'][task['primary']]['value']:.3f}")
        for name, task in manifest["tasks"].items()
    ]
    yield from _aligned([("task", "kind", "verdict", "metric", "value"), *tasks])
    yield ""
    files = [
        (name, size(file.bytes), "own" if file.bundles == 1 else f"in {file.bundles} bundles", file.sha256[:12])
        for name, file in bundle.files.items()
    ]
    yield from _aligned([("file", "size", "held", "sha256"), *files])


def _lineage(bundles: dict[str, "Published"], bundle_id: str) -> list[str]:
    """The bundles that this one was made from, the nearest first; the last may have been collected."""
    lineage: list[str] = []
    while bundle_id in bundles and (parent := bundles[bundle_id].manifest["parent"]) and parent not in lineage:
        lineage.append(parent)
        bundle_id = parent
    return lineage


def _facts(bundle: "Published") -> dict[str, Any]:
    return {
        "id": bundle.id,
        "time": bundle.time,
        "suite": bundle.manifest["suite"],
        "verdict": bundle.manifest["verdict"],
        "parent": bundle.manifest["parent"],
        "tasks": list(bundle.manifest["tasks"]),
        "bytes": bundle.bytes,
        "added_bytes": bundle.added_bytes,
    }


def _add_gc(parts: Any, add: AddCommand) -> None:
    command = add(parts, "gc", "remove bundles that nobody needs any more", _gc)
    add_registry_option(command)
    command.add_argument("--keep", type=int, default=5, metavar="N", help="keep the newest N champions (default: 5)")
    command.add_argument(
        "--grace-hours", type=float, default=24.0, metavar="HOURS", help="keep whatever is younger (default: 24)"
    )
    command.add_argument("--dry-run", action="store_true", help="say what would go, remove nothing")


def _gc(options: argparse.Namespace) -> None:
    from mtlops.report.markup import size

    if options.keep < 1 or options.grace_hours < 0:
        raise UsageError("gc: --keep must be at least 1 (the champion stays) and --grace-hours at least 0.")
    gone = _registry(options).gc(keep=options.keep, grace_seconds=options.grace_hours * 3600, dry_run=options.dry_run)
    if options.json:
        print(json.dumps(dataclasses.asdict(gone)))
        return
    verb = "would remove" if options.dry_run else "removed"
    print(f"{verb} {len(gone.bundles)} bundles and {gone.blobs} files, {size(gone.bytes)}")
    for bundle_id in gone.bundles:
        print(f"  {bundle_id}")


def _add_diff(commands: Any, add: AddCommand) -> None:
    command = add(commands, "diff", "compare two bundles task by task, to the bit", _diff)
    command.add_argument("a", help="a bundle: its folder, or its id in the registry")
    command.add_argument("b", help="another bundle")
    add_registry_option(command)


def _diff(options: argparse.Namespace) -> None:
    from mtlops.bundle import Bundle, diff

    with tempfile.TemporaryDirectory() as cache:
        a, b = (Bundle.open(_bundle_folder(options, text, Path(cache))) for text in (options.a, options.b))
        parts = diff(a, b)
    if options.json:
        print(json.dumps({part: dataclasses.asdict(difference) for part, difference in parts.items()}))
        return
    print(f"{'':<16} {'files':<10} golden outputs")
    for part, difference in parts.items():
        largest = f" (largest difference {difference.largest:.2g})" if difference.largest else ""
        print(f"{part:<16} {difference.files:<10} {difference.outputs or '-'}{largest}")


def _bundle_folder(options: argparse.Namespace, text: str, cache: Path) -> Path:
    """The folder that the user names; a name of 4 to 16 hex digits that is no folder is an id."""
    if Path(text).exists() or not re.fullmatch(r"[0-9a-f]{4,16}", text):
        return Path(text)
    registry = _registry(options)
    return registry.fetch(registry.find_id(text), cache)


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
