"""`python -m monitoring`: watch the prediction log once, all the time, or a table as if it were traffic."""

import argparse
import dataclasses
import json
import logging
import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlops.cli import configure_logging
from mtlops.errors import MtlopsError, UsageError, VerdictError
from mtlops.small import keep_small

if TYPE_CHECKING:
    from monitoring.triggers import Place
    from mtlops.params import Params

LOG = "MTLOPS_LOG"
"""Environment variable with the URL of the prediction log."""

_INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code, the same codes as `mtlops`.

    Args:
        arguments: None for those of this process, which is then for this command alone and keeps small.
    """
    try:
        options = _parser().parse_args(arguments)
        configure_logging(quiet=options.quiet)
        if arguments is None and not getattr(options, "scenario", ""):
            keep_small()
        options.command(options)
    except MtlopsError as error:
        for line in str(error).splitlines():
            print(f"monitoring: error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("monitoring: interrupted; what was judged is kept", file=sys.stderr)
        return _INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m monitoring",
        description="Drift of each task: what moved, whether it hurts, what to do.",
        epilog=f"--log may also be given by the variable {LOG}, --registry by MTLOPS_REGISTRY. Alarms are told to the "
        "addresses in MTLOPS_NOTIFY, or in the file that MTLOPS_NOTIFY_FILE names: docs/monitoring.md.",
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_once(commands)
    _add_run(commands)
    _add_replay(commands)
    _add_reset(commands)
    _add_profile(commands)
    _add_merge(commands)
    return parser


def _add(commands: Any, name: str, summary: str, run: Any) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=f"{summary}.")
    command.set_defaults(command=run)
    command.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="params.yaml to use")
    command.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE", help="override one value"
    )
    command.add_argument("--registry", metavar="URL", help="registry of the champion (default: the folder registry)")
    command.add_argument("--bundle", type=Path, metavar="DIR", help="compare with this bundle instead of the champion")
    command.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    command.add_argument("--quiet", action="store_true", help="log warnings only")
    return command


def _add_log(command: argparse.ArgumentParser) -> None:
    command.add_argument("--log", default=os.environ.get(LOG, ""), metavar="URL", help="the prediction log")
    command.add_argument("--state", type=Path, metavar="FILE", help="memory (default: in the registry's folder)")


def _add_once(commands: Any) -> None:
    command = _add(commands, "once", "read what is new in the log, write the report and end", _once)
    _add_log(command)
    command.add_argument("--report", type=Path, default=Path("reports/drift.json"), metavar="FILE", help="to write")
    command.add_argument("--exit-code", action="store_true", help="exit 6 when something has drifted")
    command.add_argument("--live", action="store_true", help="the log is being written: silence until now counts")
    command.add_argument("--trigger", action="store_true", help="carry out requests to retrain (trigger.by), too")
    _add_trigger(command)


def _add_run(commands: Any) -> None:
    command = _add(commands, "run", "watch the log until stopped, with a status page and metrics", _run)
    _add_log(command)
    command.add_argument("--host", default="127.0.0.1", help="to listen on (default: 127.0.0.1)")
    command.add_argument("--port", type=int, default=9091, help="of /, /metrics, /drift.json, /health (default: 9091)")
    command.add_argument("--interval", type=float, default=5.0, metavar="SECONDS", help="between passes (default: 5)")
    _add_trigger(command)


def _add_trigger(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--retrain-command", default="", metavar="COMMAND",
        help="instead of the pipeline's; {tasks} {window} {reason} {request} {registry} {params} {out} are filled in",
    )  # fmt: skip
    command.add_argument("--requests", type=Path, default=Path("reports/retrain"), metavar="DIR", help="request files")


def _add_replay(commands: Any) -> None:
    command = _add(commands, "replay", "judge a table as if its rows were traffic, without a server", _replay)
    command.add_argument(
        "table", type=Path, nargs="?", help="CSV, JSON Lines or Parquet file, or a folder of a prepared window"
    )
    command.add_argument(
        "--scenario", default="", metavar="NAME",
        help="instead of a table: play a scenario with a real server, monitor, pipeline and registry in build/demo",
    )  # fmt: skip
    command.add_argument("--tasks", default="", metavar="A,B", help="asked of each row (default: those with labels)")
    command.add_argument("--text", default="text", metavar="COLUMN", help="column with the text (default: text)")
    command.add_argument("--rows-per-day", type=float, default=1000.0, metavar="N", help="pace (default: 1000)")
    command.add_argument("--no-labels", action="store_true", help="leave out the labels that the table has")
    command.add_argument("--keep-order", action="store_true", help="rows in the table's order (default: shuffled)")
    command.add_argument("--report", type=Path, metavar="FILE", help="write the report here, too")
    command.add_argument("--exit-code", action="store_true", help="exit 6 when something has drifted")


def _add_reset(commands: Any) -> None:
    command = _add(commands, "reset", "forget the alarms of a task, with a record: after a fault was repaired", _reset)
    command.add_argument("--task", required=True, help="the task, or encoder")
    command.add_argument("--reason", required=True, help="why; recorded")
    command.add_argument(
        "--relearn", action="store_true", help="forget its rhythm and phases too: what is now is usual"
    )
    command.add_argument("--state", type=Path, metavar="FILE", help="memory (default: in the registry's folder)")


def _add_profile(commands: Any) -> None:
    command = _add(commands, "profile", "count a part of the log, beside other parts on other machines", _profile)
    command.add_argument("--log", default=os.environ.get(LOG, ""), metavar="URL", help="the prediction log")
    command.add_argument("--part", required=True, metavar="K/N", help="which part of how many, such as 1/4")
    command.add_argument("--since", required=True, metavar="DAY", help="first day, YYYY-MM-DD, UTC")
    command.add_argument("--until", required=True, metavar="DAY", help="last day, one that has ended")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")


def _add_merge(commands: Any) -> None:
    command = _add(commands, "merge", "judge the parts of a log as one window and write the report", _merge)
    command.add_argument("parts", type=Path, nargs="+", metavar="DIR", help="folders that `profile` wrote")
    command.add_argument("--report", type=Path, default=Path("reports/drift.json"), metavar="FILE", help="to write")
    command.add_argument("--exit-code", action="store_true", help="exit 6 when something has drifted")


def _once(options: argparse.Namespace) -> None:
    from monitoring.notifier import Notifier, read_targets
    from monitoring.triggers import Carrier, open_trigger
    from mtlops.report import write_report
    from mtlops.steps.monitor import Monitor

    params = _params(options)
    place = _place(options)
    carrier = Carrier(open_trigger(params, place), place, params=params) if options.trigger else None
    notifier = Notifier(read_targets())
    monitor = Monitor(params, **_where(options))
    try:
        done, report = monitor.once(clock=time.time() if options.live else None)
        if carrier and carrier.finish(monitor.state):
            _, report = monitor.once()
        notifier.step(monitor.state, report)
        notifier.finish(monitor.state)
    finally:
        monitor.close()
    write_report(options.report, report)
    _show(options, dataclasses.asdict(done) | {"report": str(options.report)}, report)


def _run(options: argparse.Namespace) -> None:
    from monitoring.notifier import Notifier, read_targets
    from monitoring.resident import Resident, serve, stopping_on_signals
    from monitoring.triggers import Carrier, open_trigger
    from mtlops.steps.monitor import Monitor, state_path

    params, where = _params(options), _where(options)
    if not where["log"]:
        raise UsageError("no prediction log. Give --log URL: the same as `mtlops serve --log`.")
    where["state"] = where["state"] or state_path(where["registry"])
    place = _place(options)
    resident = Resident(
        lambda: Monitor(params, **where), carrier=Carrier(open_trigger(params, place), place, params=params),
        notifier=Notifier(read_targets()), interval_seconds=options.interval,
    )  # fmt: skip
    server = serve(resident, host=options.host, port=options.port)
    address, port = server.server_address[:2]
    logging.getLogger("mtlops").info("status page and metrics: http://%s:%s/", address, port)
    with stopping_on_signals(resident):
        resident.run()
    server.shutdown()


def _replay(options: argparse.Namespace) -> None:
    if options.scenario:
        _play(options)
        return
    if options.table is None:
        raise UsageError("replay: give a table, or --scenario NAME.")
    from monitoring.replay import answer, judge, read_traffic
    from mtlops.bundle import Bundle
    from mtlops.report import write_report
    from mtlops.serving.runtime import Runtime
    from mtlops.tasks import split_names

    params = _params(options)
    runtime = Runtime(Bundle.open(_bundle(options)))
    traffic = read_traffic(options.table, runtime.tasks, text=options.text)
    tasks = split_names(options.tasks) or list(traffic.labels) or [task.name for task in runtime.tasks]
    tables = answer(
        traffic, runtime, tasks=tasks, rows_per_day=options.rows_per_day, shuffle=None if options.keep_order else 0
    )
    report = judge(tables, runtime.bundle.folder, params=params, with_labels=not options.no_labels)
    if options.report:
        write_report(options.report, report)
    levels = {name: task["level"] for name, task in report["tasks"].items()}
    _show(options, {"level": report["level"], "levels": levels, "rows": len(traffic.texts)}, report)


def _play(options: argparse.Namespace) -> None:
    from monitoring.demo import FOLDER, play

    if options.table is not None:
        raise UsageError(f"replay: a scenario brings its own rows. Leave {options.table} out.")
    play(options.scenario, params_file=options.params, folder=FOLDER)


def _reset(options: argparse.Namespace) -> None:
    from mtlops.steps.monitor import state_path
    from mtlops.watch.state import State

    state = State(options.state or state_path(_registry(options)))
    try:
        known = [row["name"] for row in state.rows("SELECT DISTINCT name FROM detectors")]
        if options.task not in known:
            raise UsageError(f"--task {options.task}: no alarm is kept of it; there are: {', '.join(known) or 'none'}.")
        with state.transaction():
            state.run("DELETE FROM detectors WHERE name = ?", options.task)
            if options.relearn:
                state.run("DELETE FROM volumes WHERE name = ?", options.task)
                state.run("DELETE FROM phases WHERE name = ?", options.task)
                state.run("DELETE FROM facts WHERE name = ?", f"season.{options.task}")
            state.tell(options.task, f"alarms reset: {options.reason}", time=state.fact("newest") or 0)
    finally:
        state.close()


def _profile(options: argparse.Namespace) -> None:
    from mtlops.steps.log_parts import profile_log

    found = profile_log(log=options.log, part=options.part, since=options.since, until=options.until, out=options.out,
                        registry=_registry(options), bundle=options.bundle)  # fmt: skip
    print(json.dumps(found) if options.json else "  ".join(f"{key} {value}" for key, value in found.items()))


def _merge(options: argparse.Namespace) -> None:
    from mtlops.steps.log_parts import merge_log

    report = merge_log(_params(options), parts=options.parts, registry=_registry(options), bundle=options.bundle,
                       report=options.report)  # fmt: skip
    levels = {name: task["level"] for name, task in report["tasks"].items()}
    _show(options, {"level": report["level"], "levels": levels, "report": str(options.report)}, report)


def _params(options: argparse.Namespace) -> "Params":
    from mtlops.params import read_params

    return read_params(options.params, overrides=options.overrides)


def _registry(options: argparse.Namespace) -> str:
    from mtlops.registry import registry_url

    return "" if options.bundle else registry_url(options.registry, beside=options.params)


def _where(options: argparse.Namespace) -> dict[str, Any]:
    return {"log": options.log, "registry": _registry(options), "bundle": options.bundle, "state": options.state}


def _place(options: argparse.Namespace) -> "Place":
    from monitoring.triggers import Place

    return Place(options.params, _registry(options), options.requests, tuple(shlex.split(options.retrain_command)))


def _bundle(options: argparse.Namespace) -> Path:
    """The bundle that answers a replay: the one given, the champion, or what was made last."""
    from mtlops.registry import Registry

    if options.bundle:
        return Path(options.bundle)
    registry = Registry(_registry(options))
    entry = registry.champion()
    if entry is None:
        return Path(options.params).parent / "models/candidate"
    return registry.fetch(entry.bundle_id, options.params.parent / "data/cache/bundles")


def _show(options: argparse.Namespace, done: Mapping[str, Any], report: Mapping[str, Any]) -> None:
    if options.json:
        print(json.dumps(done, ensure_ascii=False))
    else:
        print("\n".join(_lines(report)))
    if options.exit_code and report["level"] == "drifted":
        raise VerdictError("something has drifted; the report says what.")


def _lines(report: Mapping[str, Any]) -> list[str]:
    lines = [f"{report['level']}: bundle {report['bundle']}, newest row {report['newest_row'] or 'none'}"]
    for name, task in report["tasks"].items():
        if not task["cells"]:
            rows = ", ".join(f"{found['rows']} rows of {source}" for source, found in task["open"].items())
            lines += [f"  {name:<14} no window is full yet ({rows})"] if rows and name != "encoder" else []
            continue
        cells = ", ".join(f"{kind} {cell['level']}" for kind, cell in task["cells"].items() if cell["level"] != "ok")
        lines.append(f"  {name:<14} {task['level']:<10} {cells or 'nothing moved'}")
        if task["diagnosis"]:
            lines += [f"    {found['cause']}: {found['because']}" for found in task["diagnosis"]["causes"]]
            lines.append(f"    {task['diagnosis']['action']}")
    lines += [f"  warning: {warning}" for warning in report["warnings"]]
    lines += [f"  set aside: {file['name']}: {file['reason']}" for file in report["log"]["set_aside"]]
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
