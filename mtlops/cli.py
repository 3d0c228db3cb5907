"""The command line: `mtlops <command>`. Errors become exit codes here and nowhere else.

A step's code is imported when its command runs, so `--help` costs no torch.
"""

import argparse
import dataclasses
import json
import logging
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from mtlops import __version__, cli_layouts, cli_loop, cli_registry, cli_serve
from mtlops.catalog import PROVIDERS, load, suggest
from mtlops.errors import MtlopsError, UsageError, VerdictError
from mtlops.small import keep_quick

if TYPE_CHECKING:
    from mtlops.model.adapterhub import Moved
    from mtlops.params import Params

_INTERRUPTED = 130


@dataclass(frozen=True)
class StepCommand:
    """A step as a command.

    Attributes:
        summary: one line of help.
        code: the step's function.
        paths: its path arguments that become options, with a line of help each.
    """

    summary: str
    code: str
    paths: Mapping[str, str]


_PREPARED = "folder of prepared splits"
_ENCODER = "folder of the pretrained encoder"
_CACHE = "folder of the trunk cache"
_TRAINED = "folder of the trained model"
_REPORT = "report to write (JSON; its HTML twin lies beside it)"

STEPS: Mapping[str, StepCommand] = MappingProxyType({
    "prepare": StepCommand(
        "fetch the sources, clean them and split them once for all tasks", "mtlops.steps.prepare:prepare",
        {"raw": "folder of fetched packages", "out": _PREPARED, "encoder": _ENCODER},
    ),
    "validate": StepCommand(
        "check every promise that params.yaml makes about the data", "mtlops.steps.validate:validate",
        {"prepared": _PREPARED, "report": _REPORT},
    ),
    "train": StepCommand(
        "train one adapter and head per task on the frozen trunk", "mtlops.steps.train:train",
        {"prepared": _PREPARED, "encoder": _ENCODER, "out": _TRAINED, "cache": _CACHE, "report": _REPORT},
    ),
    "prune": StepCommand(
        "remove the least important units of trained adapters or layers, and say what it costs",
        "mtlops.steps.prune:prune",
        {"prepared": _PREPARED, "encoder": _ENCODER, "trained": _TRAINED, "out": "folder of the pruned model",
         "cache": _CACHE, "report": _REPORT},
    ),
    "evaluate": StepCommand(
        "measure every task beside its baselines and decide: PROMOTE, HOLD or REJECT",
        "mtlops.steps.evaluate:evaluate",
        {"prepared": _PREPARED, "encoder": _ENCODER, "trained": _TRAINED, "cache": _CACHE, "report": _REPORT,
         "decision": "decision to write (JSON)"},
    ),
    "export": StepCommand(
        "write the bundle: one ONNX graph for all tasks, golden outputs, hashes", "mtlops.steps.export:export",
        {"prepared": _PREPARED, "encoder": _ENCODER, "trained": _TRAINED, "cache": _CACHE,
         "evaluation": "evaluation report to read",
         "decision": "decision to read", "out": "folder of the bundle", "report": _REPORT},
    ),
})  # fmt: skip


_WITH_REGISTRY = ("train", "evaluate", "export")
"""Steps that may need a bundle of the registry: the champion to compare with, the parent of an update."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code (listed in `errors.py`).

    Args:
        arguments: None for those of this process, which is then for this command alone.
    """
    is_alone = arguments is None
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        parser = _parser()
        _refuse_unknown_command(arguments)
        options = parser.parse_args(arguments, argparse.Namespace(is_alone=is_alone))
        configure_logging(quiet=options.quiet)
        options.command(options)
    except MtlopsError as error:
        for line in str(error).splitlines():
            print(f"mtlops: error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("mtlops: interrupted; earlier outputs are unchanged, run the same command to go on", file=sys.stderr)
        return _INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mtlops",
        description="Several prediction tasks on one shared encoder: from data to the champion that is served.",
    )
    parser.add_argument("--version", action="version", version=f"mtlops {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for name, step in STEPS.items():
        _add_step(commands, name, step)
    _add_predict(commands)
    cli_registry.add_commands(commands, _add_command)
    cli_loop.add_commands(commands, _add_command)
    cli_serve.add_command(commands, _add_command)
    _add_summary(commands)
    _add_schema(commands)
    _add_adapters(commands)
    return parser


def _add_command(commands: Any, name: str, summary: str, run: Callable[..., None]) -> argparse.ArgumentParser:
    description = f"{summary[0].upper()}{summary[1:]}."
    command: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=description)
    command.set_defaults(command=run)
    command.add_argument("--json", action="store_true", help="print one JSON object on stdout")
    command.add_argument("--quiet", action="store_true", help="log warnings only")
    return command


def _add_step(commands: Any, name: str, step: StepCommand) -> None:
    command = _add_command(commands, name, step.summary, lambda options: _run_step(name, step, options))
    command.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="params.yaml to use")
    command.add_argument(
        "--set", action="append", default=[], dest="overrides", metavar="SECTION.KEY=VALUE", help="override one value"
    )
    command.add_argument("--tasks", default="", metavar="A,B", help="act as if the suite had only these tasks")
    for option, meaning in step.paths.items():
        command.add_argument(f"--{option}", type=Path, default=None, metavar="PATH", help=meaning)
    if name == "prune":
        command.add_argument("--keep", type=float, default=0.5, metavar="SHARE", help="share of units that stays")
    if name == "evaluate":
        command.add_argument("--exit-code", action="store_true", help="exit 6 when the verdict is not PROMOTE")
    if name == "train":
        cli_loop.add_update_options(command)
    if name == "export":
        cli_layouts.add_options(command)
    if name in _WITH_REGISTRY:
        command.add_argument(
            "--registry", metavar="URL",
            help=f"registry of the {'champion' if name == 'evaluate' else 'bundle that an update is made from'} "
                 f"(default: $MTLOPS_REGISTRY, else the folder registry beside params.yaml)",
        )  # fmt: skip


def _run_step(name: str, step: StepCommand, options: argparse.Namespace) -> None:
    if name == "export" and cli_layouts.is_wanted(options):
        cli_layouts.write(options)
        return
    if options.is_alone:
        keep_quick(pandas=name == "validate")
    is_update = name == "train" and (options.parent is not None or options.window is not None)
    params = _read_params(options, only=not is_update)
    paths: dict[str, Any] = {path: getattr(options, path) for path in step.paths if getattr(options, path) is not None}
    if name == "prepare":
        paths["base"] = options.params.parent
    if name in _WITH_REGISTRY:
        from mtlops.registry import registry_url

        paths["registry"] = registry_url(options.registry, beside=options.params)
    if is_update:
        params, paths["registry"] = cli_loop.read_update(options, params, registry=paths["registry"])
    more = {"keep": options.keep} if name == "prune" else {}
    result = load(step.code)(params, **paths, **more)
    if options.json:
        print(json.dumps(dataclasses.asdict(result), ensure_ascii=False))
    if name == "evaluate" and options.exit_code and result.verdict != "PROMOTE":
        raise VerdictError(f"the verdict is {result.verdict}, not PROMOTE; the decision report says why.")


def _read_params(options: argparse.Namespace, *, only: bool = True) -> "Params":
    from mtlops.params import read_params

    return read_params(options.params, overrides=options.overrides, tasks=options.tasks if only else "")


def _add_predict(commands: Any) -> None:
    command = _add_command(commands, "predict", "answer from a bundle, all tasks in one pass", _predict)
    command.add_argument("text", nargs="*", help="texts; none: one text a line from standard input")
    command.add_argument("--bundle", type=Path, default=Path("models/candidate"), metavar="DIR", help="bundle to use")
    command.add_argument("--tasks", metavar="A,B", help="answer only these tasks")
    cli_serve.add_variant(command)
    command.add_argument(
        "--provider", default="cpu", metavar="NAME",
        help=f"{', '.join(PROVIDERS)}, or the name of another execution provider of ONNX Runtime (default cpu)",
    )  # fmt: skip


def _predict(options: argparse.Namespace) -> None:
    from mtlops.bundle import Bundle
    from mtlops.serving.description import describe
    from mtlops.serving.runtime import Runtime
    from mtlops.tasks import split_names

    texts = options.text or [line.rstrip("\n") for line in sys.stdin]
    runtime = Runtime(Bundle.open(options.bundle), provider=options.provider, variant=options.variant)
    answers = runtime.predict(texts, tasks=split_names(options.tasks) if options.tasks else None)
    rows = describe(runtime.tasks, answers, texts)
    if options.json:
        print(json.dumps({"bundle": runtime.bundle_id, "predictions": rows}, ensure_ascii=False))
        return
    for row in rows:
        print(row["text"])
        for task, answer in row["tasks"].items():
            print(f"  {task:<14} {_answer_text(answer)}")


def _answer_text(answer: dict[str, Any]) -> str:
    if "value" in answer:
        return f"{answer['value']:.3f}"
    if "tags" in answer:
        return " ".join(f"{word}/{tag or '-'}" for word, tag in zip(answer["words"], answer["tags"], strict=True))
    label = answer["label"] if isinstance(answer["label"], str) else ", ".join(answer["label"]) or "(none)"
    shares = "  ".join(f"{name} {share:.2f}" for name, share in answer["probabilities"].items())
    return f"{label:<14} {shares}"


def _add_summary(commands: Any) -> None:
    command = _add_command(commands, "summary", "print the result of the last run as a table", _summary)
    command.add_argument("--reports", type=Path, default=Path("reports"), metavar="DIR", help="folder of reports")


def _summary(options: argparse.Namespace) -> None:
    from mtlops.report import summary

    if options.json:
        raise UsageError("summary prints a table; read reports/evaluation.json and its siblings for JSON.")
    print(summary(options.reports))


def _add_schema(commands: Any) -> None:
    command = _add_command(commands, "schema", "print every key of params.yaml: as JSON schema or as Markdown", _schema)
    command.add_argument("--markdown", action="store_true", help="print Markdown tables instead of the JSON schema")


def _schema(options: argparse.Namespace) -> None:
    from mtlops.params import schema
    from mtlops.reference import markdown

    print(markdown() if options.markdown else schema())


def _add_adapters(commands: Any) -> None:
    summary = "exchange adapters with AdapterHub's library: take one there, bring one from there"
    group = commands.add_parser("adapters", help=summary, description=summary[0].upper() + summary[1:] + ".")
    ways = group.add_subparsers(metavar="export|import", required=True)
    out = _add_command(ways, "export", "write a task's adapter as the library saves adapters", _export_adapter)
    out.add_argument("--bundle", type=Path, default=Path("models/candidate"), metavar="DIR", help="bundle to read")
    out.add_argument("--task", required=True, metavar="NAME", help="task to take along")
    out.add_argument("--to", type=Path, required=True, metavar="FOLDER", help="folder to write")
    out.add_argument("--safetensors", action="store_true", help="write safetensors, not files of torch.save")
    back = _add_command(ways, "import", "put an adapter of the library in the place of a task's", _import_adapter)
    back.add_argument("folder", type=Path, help="folder that the library's save_adapter wrote")
    back.add_argument("--task", required=True, metavar="NAME", help="task that gets it")
    back.add_argument("--trained", type=Path, default=Path("models/trained"), metavar="DIR", help=_TRAINED)
    back.add_argument("--encoder", type=Path, default=Path("data/encoder"), metavar="DIR", help=_ENCODER)


def _export_adapter(options: argparse.Namespace) -> None:
    from mtlops.bundle import Bundle
    from mtlops.model.adapterhub import export_adapter

    bundle = Bundle.open(options.bundle)
    _print_moved(export_adapter(bundle, options.task, options.to, safetensors=options.safetensors), options)


def _import_adapter(options: argparse.Namespace) -> None:
    from mtlops.model.adapterhub import import_adapter

    moved = import_adapter(options.folder, options.task, trained=options.trained, encoder=options.encoder)
    _print_moved(moved, options)


def _print_moved(moved: "Moved", options: argparse.Namespace) -> None:
    if options.json:
        print(json.dumps(dataclasses.asdict(moved)))
        return
    head = "with its head" if moved.head else f"without its head: {moved.remark}"
    print(f"{moved.path}: the {moved.adapter} adapter of task {moved.task}, {head}")


def _refuse_unknown_command(arguments: Sequence[str]) -> None:
    own = ["predict", "serve", "summary", "schema", "adapters"]
    known = [*STEPS, *cli_registry.COMMANDS, *cli_loop.COMMANDS, *own]
    if arguments and not arguments[0].startswith("-") and arguments[0] not in known:
        raise UsageError(f"unknown command {arguments[0]!r}. {suggest(arguments[0], known)}")


def configure_logging(*, quiet: bool) -> None:
    """Sends the library's log to stderr, a line an entry; with `quiet` warnings and errors only."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname).1s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("mtlops")
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
