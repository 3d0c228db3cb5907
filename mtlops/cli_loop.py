"""The commands that close the loop: admit a labelled window, update a champion, ask for labels, print a lineage."""

import argparse
import dataclasses
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlops.cli_registry import add_registry_option
from mtlops.errors import UsageError, VerdictError
from mtlops.small import keep_quick

if TYPE_CHECKING:
    from mtlops.params import Params

AddCommand = Callable[[Any, str, str, Callable[[argparse.Namespace], None]], argparse.ArgumentParser]
"""Adds a command with the options that all commands share: (parsers, name, summary, what it runs)."""

COMMANDS = ("admit", "update", "label-queue", "lineage")


def add_commands(commands: Any, add: AddCommand) -> None:
    """Adds the commands to the parsers of the command line."""
    _add_admit(commands, add)
    _add_update(commands, add)
    _add_label_queue(commands, add)
    _add_lineage(commands, add)


def _add_params(command: argparse.ArgumentParser) -> None:
    command.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="params.yaml to use")
    _add_overrides(command)


def _add_overrides(command: argparse.ArgumentParser) -> None:
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


def _add_update(commands: Any, add: AddCommand) -> None:
    summary = "train some tasks of a champion again, judge and export them in one process, and promote what earned it"
    command = add(commands, "update", summary, _update)
    command.add_argument("--tasks", required=True, metavar="A,B", help="tasks to train; all others are taken over")
    add_update_options(command, default="registry")
    command.add_argument("--promote", action="store_true", help="make it champion when the verdict is PROMOTE")
    command.add_argument("--by", default="", metavar="NAME", help="who promotes (default: user@host)")
    command.add_argument("--reason", default="", metavar="TEXT", help="why; goes into the history")
    _add_overrides(command)
    add_registry_option(command)


def _update(options: argparse.Namespace) -> None:
    if options.is_alone:
        keep_quick()
    from mtlops.params import read_params
    from mtlops.registry import Registry, registry_url
    from mtlops.steps.evaluate import evaluate
    from mtlops.steps.export import export
    from mtlops.steps.promote import promote
    from mtlops.steps.train import train
    from mtlops.tasks import split_names

    params = read_params(options.params, overrides=options.overrides)
    home = registry_url(options.registry, beside=options.params)
    known = params.suite.tasks.keys() & split_names(options.tasks)  # others are refused below, and are no file's name
    with Registry(home).retraining(known):
        update, registry = read_update(options, params, registry=home)
        done: dict[str, Any] = {"train": train(update, registry=registry)}
        done["evaluate"] = evaluate(params, registry=registry)
        done["export"] = export(params, registry=registry)
        if options.promote and done["evaluate"].verdict == "PROMOTE":
            done["promote"] = promote(registry=home, by=options.by, reason=options.reason)
    if options.json:
        print(json.dumps({step: dataclasses.asdict(result) for step, result in done.items()}, ensure_ascii=False))
    else:
        print(f"bundle {done['export'].bundle_id} in {done['export'].path}: {done['evaluate'].verdict}")
        if "promote" in done:
            print(f"champion version {done['promote'].version} in {done['promote'].registry}")
    if options.promote and "promote" not in done:
        raise VerdictError(
            f"the verdict is {done['evaluate'].verdict}, so nothing was promoted; {done['evaluate'].decision} says why."
        )


def _add_label_queue(commands: Any, add: AddCommand) -> None:
    summary = "write the production rows whose labels would help a task most, or take the labels back"
    command = add(commands, "label-queue", summary, _label_queue)
    command.add_argument("--task", required=True, metavar="NAME", help="task to label for")
    command.add_argument("--log", default="", metavar="URL", help="prediction log that keeps texts")
    command.add_argument("--table", type=Path, metavar="FILE", help="or a file with texts")
    command.add_argument("--since", type=_time, metavar="TIME", help="only rows of the log from this ISO time on")
    command.add_argument("--bundle", type=Path, default=Path("models/candidate"), metavar="DIR", help="bundle to ask")
    command.add_argument("--rows", type=int, default=100, metavar="N", help="how many rows to write (default: 100)")
    command.add_argument(
        "--random-share", type=float, default=0.3, metavar="SHARE",
        help="share of them that is drawn at random and becomes the window's test (default: 0.3)",
    )  # fmt: skip
    command.add_argument(
        "--candidates", type=int, default=1000, metavar="N", help="rows that are looked at (default: 1000)"
    )
    command.add_argument("--prepared", type=Path, default=Path("data/prepared"), metavar="DIR", help="labelled so far")
    command.add_argument("--answers", type=Path, metavar="FILE", help="a queue that came back with labels")
    command.add_argument("--out", type=Path, metavar="FILE", help="queue, or with --answers the window, to write")
    _add_params(command)


def _label_queue(options: argparse.Namespace) -> None:
    from mtlops.params import read_params
    from mtlops.steps.label_queue import fill_queue, take_answers

    params = read_params(options.params, overrides=options.overrides)
    if options.rows < 1 or options.candidates < 1 or not 0 <= options.random_share <= 1:
        raise UsageError("label-queue: --rows and --candidates must be at least 1, --random-share between 0 and 1.")
    if options.answers:
        back = take_answers(params, task=options.task, answers=options.answers, out=options.out or Path("window.csv"))
        if options.json:
            print(json.dumps(dataclasses.asdict(back), ensure_ascii=False))
            return
        counts = ", ".join(f"{count} {name}" for name, count in back.labels.items())
        print(f"{back.path}: {counts}; {back.unlabelled} rows without a label")
        print(f"Next: mtlops train --tasks {options.task} --from registry --window {back.path}")
        return
    made = fill_queue(
        params, task=options.task, bundle=options.bundle, log=options.log, table=options.table, since=options.since,
        rows=options.rows, random_share=options.random_share, most_candidates=options.candidates,
        prepared=options.prepared, out=options.out or Path("queue.csv"),
    )  # fmt: skip
    if options.json:
        print(json.dumps(dataclasses.asdict(made), ensure_ascii=False))
        return
    rows = ", ".join(f"{count} {purpose}" for purpose, count in made.rows.items())
    print(f"{made.path}: {rows}, of {made.candidates} candidates")
    for why, count in made.left_out.items():
        print(f"  {count} rows left out: {why}")


def _time(text: str) -> datetime:
    time = datetime.fromisoformat(text)
    return time if time.tzinfo else time.replace(tzinfo=UTC)


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


def add_update_options(command: argparse.ArgumentParser, *, default: str | None = None) -> None:
    """Adds what says which bundle is updated, with which rows."""
    command.add_argument(
        "--from", dest="parent", default=default, metavar="WHERE",
        help="train only --tasks, and take all others from this bundle: `registry` (its champion), an id there, a "
             f"folder, or the URL of another registry (default: {default or 'all tasks are trained'})",
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
        prepared = getattr(options, "prepared", None) or Path("data/prepared")
        admit(params, rows=options.window, tasks=tasks, windows=prepared.parent / "windows", prepared=prepared)
    is_bundle = options.parent == CHAMPION or re.fullmatch(r"[0-9a-f]{4,16}", options.parent)
    if is_bundle or (Path(options.parent) / "manifest.json").exists():
        return params, registry
    return params.retraining(tasks, CHAMPION), options.parent
