"""`python -m pipelines`: compile, run, submit or schedule the pipelines."""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from components.image import IMAGE
from mtlops.catalog import suggest
from mtlops.errors import MtlopsError, UsageError

_DEFAULT_WORKSPACE = Path("runs")
_DEFAULT_OUT = Path("models/candidate")
_REPORTS = Path("reports")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code, the same codes as `mtlops`."""
    try:
        options = _parser().parse_args(arguments)
        options.command(options)
    except MtlopsError as error:
        for line in str(error).splitlines():
            print(f"pipelines: error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("pipelines: interrupted", file=sys.stderr)
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m pipelines", description="The pipelines for Kubeflow: training, continuous and profiling."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_compile(commands)
    _add_run(commands)
    _add_submit(commands)
    _add_schedule(commands)
    return parser


def _add_compile(commands: Any) -> None:
    summary = "write the pipelines as YAML, for the image in MTLOPS_IMAGE (and MTLOPS_ACCELERATOR)"
    command = commands.add_parser("compile", help=summary, description=summary)
    command.set_defaults(command=_compile)
    command.add_argument("--out", type=Path, metavar="FILE", help="default: each in pipelines/compiled")
    command.add_argument("--pipeline", default="training", metavar="NAME", help="which one --out gets: or `continuous`")
    command.add_argument("--check", action="store_true", help="write nothing; exit 4 when the file is out of date")


def _compile(options: argparse.Namespace) -> None:
    from pipelines.compiling import PIPELINES, check_compiled, compiled_path, write_compiled

    for name in [_known(options.pipeline)] if options.out else PIPELINES:
        path = options.out or compiled_path(name)
        if options.check:
            check_compiled(_compiled_text(name), path=path)
        else:
            write_compiled(_compiled_text(name), path=path)
            print(path)


def _compiled_text(pipeline: str) -> str:
    from pipelines.compiling import compile_text

    image, accelerator = os.environ.get("MTLOPS_IMAGE", IMAGE), os.environ.get("MTLOPS_ACCELERATOR", "")
    return compile_text(image, accelerator=accelerator, pipeline=pipeline)


def _add_request(command: argparse.ArgumentParser, *, or_file: bool = False) -> None:
    command.add_argument(
        "--pipeline", default="training", metavar="training|continuous|profiling",
        help="train the whole suite (default); update --tasks of the registry's champion with --window; judge the days "
             "--since to --until of --log against it, in --parts"
             + "; or a compiled pipeline's file" * or_file,
    )  # fmt: skip
    command.add_argument(
        "--window", default="", metavar="FILE",
        help="continuous: labelled rows, or a recorded window, relative to the data repository",
    )  # fmt: skip
    command.add_argument("--log", default="", metavar="URL", help="profiling: the prediction log")
    command.add_argument("--since", default="", metavar="DAY", help="profiling: first day, YYYY-MM-DD, UTC")
    command.add_argument("--until", default="", metavar="DAY", help="profiling: last day, one that has ended")
    command.add_argument("--parts", type=int, default=4, metavar="N", help="profiling: parts side by side (default: 4)")
    command.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="params.yaml to use")
    command.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE", help="override one value"
    )
    command.add_argument("--tasks", default="", metavar="A,B", help="act as if the suite had only these tasks")
    command.add_argument("--reason", default="", help="why it is run; recorded with the run and the bundle")
    command.add_argument(
        "--registry", default="", metavar="URL", help="compare with its champion, and promote into it; default: neither"
    )
    command.add_argument("--data-repo", default="", metavar="URL", help="git/DVC repository that holds your data files")
    command.add_argument("--data-rev", default="", metavar="REV", help="its branch, tag or commit")


def _request(options: argparse.Namespace, *, data_repo: str) -> Any:
    from pipelines.requests import of_log, read_request, with_window

    is_continuous = options.pipeline == "continuous"
    if options.window and not is_continuous:
        raise UsageError("--window is for --pipeline continuous; `mtlops admit` adds one to the data of all runs.")
    request = read_request(
        options.params,
        overrides=options.overrides,
        tasks=options.tasks,
        reason=options.reason,
        registry=options.registry,
        data_repo=data_repo,
        data_rev=options.data_rev,
    )
    if options.pipeline == "profiling":
        return of_log(request, log=options.log, since=options.since, until=options.until, parts=options.parts)
    return with_window(request, options.window) if is_continuous else request


def _add_run(commands: Any) -> None:
    summary = "run a compiled pipeline on this machine, without a cluster"
    command = commands.add_parser("run", help=summary, description=summary)
    command.set_defaults(command=_run)
    _add_request(command, or_file=True)
    command.add_argument("--out", type=Path, default=_DEFAULT_OUT, metavar="DIR", help="gets the bundle, or the report")
    command.add_argument("--workspace", type=Path, default=_DEFAULT_WORKSPACE, metavar="DIR", help="outputs and logs")
    command.add_argument(
        "--runner", choices=("subprocess", "docker"), default="subprocess",
        help="where a step runs: in a process of this Python (default), or in a container of Docker or podman",
    )  # fmt: skip
    command.add_argument("--image", default="", metavar="NAME", help="for --runner docker; default: the pipeline's own")
    command.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    command.add_argument("--quiet", action="store_true", help="no progress")


def _run(options: argparse.Namespace) -> None:
    from pipelines.compiling import PIPELINES, compiled_path
    from pipelines.local import copy_bundle, reasons, run_pipeline, table

    if options.image and options.runner != "docker":
        raise UsageError("--image is for --runner docker; a subprocess runs in this Python.")
    data_repo = options.data_repo or str(options.params.resolve().parent)
    data = Path(data_repo).resolve() if Path(data_repo).is_dir() else None
    request = _request(options, data_repo=str(data or data_repo))
    if options.pipeline == "profiling":
        _run_profiling(options, request)
        return
    # Downloads and the trunk cache are shared with `mtlops` and DVC; both are checked by hash on every use.
    os.environ.setdefault("MTLOPS_WORK", str(Path("data").resolve()))
    compiled = compiled_path(options.pipeline) if options.pipeline in PIPELINES else Path(options.pipeline)
    in_containers = options.runner == "docker"
    opened = _containers(options, compiled, data=data, request=request) if in_containers else nullcontext()
    with _alone(options, request), opened as containers:
        arguments = request.arguments()
        if containers:
            _tell_other_code(containers, arguments["code_digest"])
            arguments["code_digest"] = containers.image_id
        run = run_pipeline(
            compiled,
            arguments,
            workspace=options.workspace,
            containers=containers,
            echo=None if options.quiet else sys.stderr,
        )
    copy_bundle(run, options.out)
    if options.json:
        tasks = [vars(task) for task in run.tasks]
        done = {"verdict": run.outputs["verdict"], "reasons": reasons(run), "bundle": str(options.out), "tasks": tasks}
        print(json.dumps(done))
        return
    print(table(run))
    print(f"verdict {run.outputs['verdict']}, bundle {options.out}, log {run.log}")


def _run_profiling(options: argparse.Namespace, request: Any) -> None:
    from pipelines.compiling import compiled_path
    from pipelines.local import copy_reports, run_pipeline, table

    if options.runner == "docker":
        raise UsageError("--runner docker is for pipelines that train; profiling runs in processes of this Python.")
    echo = None if options.quiet else sys.stderr
    run = run_pipeline(compiled_path("profiling"), request.arguments(), workspace=options.workspace, echo=echo)
    report = copy_reports(run, _REPORTS if options.out == _DEFAULT_OUT else options.out)
    if options.json:
        tasks = [vars(task) for task in run.tasks]
        print(json.dumps({"level": run.outputs["level"], "report": str(report), "tasks": tasks}))
        return
    print(table(run))
    print(f"level {run.outputs['level']}, report {report}, log {run.log}")


def _alone(options: argparse.Namespace, request: Any) -> Any:
    """A schedule and an alert at once give one run on a registry's tasks: the second is refused."""
    from mtlops.params import parse_params
    from mtlops.registry import Registry
    from mtlops.tasks import split_names

    if not request.registry:
        return nullcontext()
    suite = parse_params(request.params, where=str(options.params))
    return Registry(request.registry).retraining(split_names(request.tasks) or list(suite.suite.tasks))


def _containers(options: argparse.Namespace, compiled: Path, *, data: Path | None, request: Any) -> Any:
    from pipelines.compiling import image_of, read_compiled
    from pipelines.containers import open_containers

    image = options.image or image_of(read_compiled(compiled))
    registry = Path(request.registry) if request.registry.startswith("/") else None
    return open_containers(image, data=data, work=Path(os.environ["MTLOPS_WORK"]).resolve(), registry=registry)


def _tell_other_code(containers: Any, code_digest: str) -> None:
    if containers.code_digest != code_digest:
        print(
            f"pipelines: note: the code that runs is that of {containers.image}, and it is not this checkout's. "
            f"`make image` renews it.",
            file=sys.stderr,
        )


def _add_cluster(command: argparse.ArgumentParser) -> None:
    command.add_argument("--host", default="", metavar="URL", help="Kubeflow Pipelines endpoint (or KFP_ENDPOINT)")
    command.add_argument("--namespace", default="", help="for a multi-user Kubeflow")
    command.add_argument("--experiment", default="mtlops", help="experiment that groups the runs")


def _cluster(options: argparse.Namespace) -> Any:
    from pipelines.cluster import Cluster

    return Cluster.connect(
        options.host or os.environ.get("KFP_ENDPOINT", ""),
        token=os.environ.get("KFP_TOKEN", ""),
        namespace=options.namespace,
    )


def _add_submit(commands: Any) -> None:
    summary = "compile, upload and run the pipeline on a cluster"
    command = commands.add_parser("submit", help=summary, description=summary)
    command.set_defaults(command=_submit)
    _add_cluster(command)
    _add_request(command)


def _submit(options: argparse.Namespace) -> None:
    text = _compiled_text(_known(options.pipeline))
    request = _request(options, data_repo=options.data_repo)
    cluster = _cluster(options)
    version = cluster.upload(text, pipeline=f"mtlops-{options.pipeline}")
    run_id = cluster.start(
        version, request.arguments(), experiment=options.experiment, name=_run_name(request, options.pipeline)
    )
    print(run_id)


def _known(pipeline: str) -> str:
    from pipelines.compiling import PIPELINES

    if pipeline not in PIPELINES:
        raise UsageError(f"--pipeline: no pipeline {pipeline!r}. {suggest(pipeline, list(PIPELINES))}")
    return pipeline


def _run_name(request: Any, pipeline: str) -> str:
    return f"{pipeline} {request.label()}"


def _add_schedule(commands: Any) -> None:
    summary = "run the pipeline on a cluster again and again; replaces the schedule of the same name"
    command = commands.add_parser("schedule", help=summary, description=summary)
    command.set_defaults(command=_schedule)
    command.add_argument(
        "--cron", required=True, metavar="'S M H DAY MONTH WEEKDAY'", help="six fields in UTC, seconds first"
    )
    command.add_argument("--name", default="", help="name of the schedule (default: mtlops-PIPELINE)")
    _add_cluster(command)
    _add_request(command)


def _schedule(options: argparse.Namespace) -> None:
    from pipelines.cluster import check_cron
    from pipelines.compiling import without_cached_data

    check_cron(options.cron)
    if options.pipeline == "profiling":
        raise UsageError("profiling judges given days: submit it. `python -m monitoring once` is for each day anew.")
    text = _compiled_text(_known(options.pipeline))
    request = _request(options, data_repo=options.data_repo)
    cluster = _cluster(options)
    version = cluster.upload(
        without_cached_data(text) if options.data_repo else text, pipeline=f"mtlops-{options.pipeline}"
    )
    schedule_id = cluster.schedule(
        version,
        request.arguments(),
        experiment=options.experiment,
        name=options.name or f"mtlops-{options.pipeline}",
        cron=options.cron,
    )
    print(schedule_id)


if __name__ == "__main__":
    raise SystemExit(main())
