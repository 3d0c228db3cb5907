"""The commands that close the loop: admit a labelled window; and the options of train that update a champion."""

import argparse
import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlops.cli_registry import add_registry_option
from mtlops.errors import UsageError

if TYPE_CHECKING:
    from mtlops.params import Params

AddCommand = Callable[[Any, str, str, Callable[[argparse.Namespace], None]], argparse.ArgumentParser]
"""Adds a command with the options that all commands share: (parsers, name, summary, what it runs)."""

COMMANDS = ("admit", "lineage")


def add_commands(commands: Any, add: AddCommand) -> None:
    """Adds the commands to the parsers of the command line."""
    _add_admit(commands, add)
    _add_lineage(commands, add)


def _add_params(command: argparse.ArgumentParser) -> None:
    command.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="params.yaml to use")
    command.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE", help="override one value"
    )


def _add_admit(commands: Any, add: AddCommand) -> None:
    command = add(commands, "admit", "add a labelled window of production rows to the prepared splits", _admit)
    command.add_argument("rows", type=Path, metavar="FILE", help="labelled rows, or the folder of a recorded window")
    command.add_argument("--tasks", default="", metavar="A,B", help="tasks whose labels the file has")
    command.add_argument("--name", default="", help="of the window (default: the file's)")
    command.add_argument("--alert", default="", metavar="ID", help="the alert that asked for it")
    command.add_argument("--note", default="", metavar="TEXT", help="what else a reader should know")
    _add_params(command)
    for name, default, meaning in (
        ("windows", "data/windows", "folder of recorded windows"),
        ("prepared", "data/prepared", "folder of prepared splits"),
    ):
        command.add_argument(f"--{name}", type=Path, default=Path(default), metavar="DIR", help=meaning)
    command.add_argument("--out", type=Path, metavar="DIR", help="where the splits go (default: they are replaced)")


def _admit(options: argparse.Namespace) -> None:
    from mtlops.params import read_params
    from mtlops.steps.admit import admit
    from mtlops.tasks import split_names

    done = admit(
        read_params(options.params, overrides=options.overrides),
        rows=options.rows, tasks=split_names(options.tasks), name=options.name, alert=options.alert,
        note=options.note, windows=options.windows, prepared=options.prepared, out=options.out,
    )  # fmt: skip
    if options.json:
        print(json.dumps(dataclasses.asdict(done), ensure_ascii=False))
        return
    state = "" if done.is_new else " (it was there already)"
    print(f"window {done.window}, recorded in {done.folder}{state}")
    for task, counts in done.rows.items():
        print(f"  {task:<14} " + ", ".join(f"{rows} {split}" for split, rows in counts.items()))
    for reason, count in done.rows_set_aside.items():
        print(f"  {count} set aside: {reason}")
    print(f"To keep it in later runs of `mtlops prepare`: data.labelled: [..., {done.folder}] in params.yaml")


def _add_lineage(commands: Any, add: AddCommand) -> None:
    command = add(commands, "lineage", "print where a bundle comes from, back to the first data", _lineage)
    command.add_argument("bundle", help="its folder, or its id in the registry")
    add_registry_option(command)


def _lineage(options: argparse.Namespace) -> None:
    from mtlops.ancestry import ancestry, lines
    from mtlops.registry import Registry, registry_url

    registry = Registry(registry_url(options.registry, beside=options.params))
    path = Path(options.bundle)
    chain = ancestry(registry, path if path.exists() else registry.find_id(options.bundle))
    if options.json:
        print(json.dumps([link.facts() for link in chain], ensure_ascii=False))
        return
    for line in lines(chain):
        print(line)


def add_update_options(command: argparse.ArgumentParser) -> None:
    """Adds to `train` what makes it update a bundle."""
    command.add_argument(
        "--from", dest="parent", metavar="WHERE",
        help="train only --tasks, and take all others from this bundle: `registry` (its champion), an id there, a "
             "folder, or the URL of another registry",
    )  # fmt: skip
    command.add_argument(
        "--window", type=Path, metavar="FILE", help="with --from: labelled rows to admit first (see `mtlops admit`)"
    )


def read_update(options: argparse.Namespace, params: "Params", *, registry: str) -> tuple["Params", str]:
    """Returns the params of the update that the options of `train` ask for, and the registry of its parent.

    A window is admitted to the prepared splits first.

    Raises:
        UsageError: no task is named, or --window comes without --from.
        As `admit`.
    """
    from mtlops.steps.admit import admit
    from mtlops.steps.updates import CHAMPION
    from mtlops.tasks import split_names

    if options.parent is None:
        raise UsageError("--window is for updates. Say --from registry, or use `mtlops admit`.")
    tasks = split_names(options.tasks)
    if not tasks:
        raise UsageError("--from: which tasks are to be trained? Give --tasks A,B; all others are taken over.")
    params = params.retraining(tasks, options.parent)
    if options.window is not None:
        prepared = options.prepared or Path("data/prepared")
        admit(params, rows=options.window, tasks=tasks, windows=prepared.parent / "windows", prepared=prepared)
    is_bundle = options.parent == CHAMPION or re.fullmatch(r"[0-9a-f]{4,16}", options.parent)
    if is_bundle or (Path(options.parent) / "manifest.json").exists():
        return params, registry
    return params.retraining(tasks, CHAMPION), options.parent
