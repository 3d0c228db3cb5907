"""The command `mtlops serve`."""

import argparse
import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlops.catalog import PROVIDERS, REFERENCE_VARIANT, VARIANTS
from mtlops.errors import UsageError
from mtlops.small import keep_small

if TYPE_CHECKING:
    from mtlops.serving.follower import TrialSettings
    from mtlops.serving.server import Options, Security

AddCommand = Callable[[Any, str, str, Callable[[argparse.Namespace], None]], argparse.ArgumentParser]

logger = logging.getLogger(__name__)

_LOOPBACK = "127.0.0.1"


def add_command(commands: Any, add: AddCommand) -> None:
    """Adds the command to the parsers of the command line."""
    command = add(commands, "serve", "answer over REST and gRPC, and follow the registry's champion", _serve)
    for group in (_what, _where, _model, _limits, _trial, _log, _security, _stopping):
        group(command)


def add_variant(command: Any) -> None:
    """Adds the option that chooses a variant of a bundle's graph."""
    command.add_argument(
        "--variant", default=REFERENCE_VARIANT, metavar="NAME",
        help=f"of the bundle's graph: {', '.join((REFERENCE_VARIANT, *VARIANTS))}, if the bundle has it (default "
        f"{REFERENCE_VARIANT})",
    )  # fmt: skip


def _what(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("what is served")
    group.add_argument(
        "--registry", metavar="URL",
        help="registry whose champion is served and followed (default: $MTLOPS_REGISTRY, else the folder registry "
        "beside params.yaml)",
    )  # fmt: skip
    group.add_argument("--params", type=Path, default=Path("params.yaml"), metavar="FILE", help="see --registry")
    group.add_argument("--bundle", type=Path, metavar="DIR", help="serve this bundle instead, and follow nothing")
    group.add_argument("--poll-seconds", type=_positive, default=2.0, metavar="S", help="between two looks (default 2)")
    group.add_argument(
        "--cache", type=Path, metavar="DIR",
        help="folder of fetched bundles, and of rows on their way to the log (default: $XDG_CACHE_HOME/mtlops/serve)",
    )  # fmt: skip


def _where(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("where it listens; port 0 takes any free one")
    group.add_argument("--host", default=_LOOPBACK, help=f"of REST and gRPC (default {_LOOPBACK}; 0.0.0.0: everyone)")
    group.add_argument("--port", type=_port, default=8080, help="REST (default 8080)")
    group.add_argument("--grpc-port", type=_port, default=9000, metavar="PORT", help="gRPC (default 9000)")
    group.add_argument("--admin-host", default=_LOOPBACK, metavar="HOST", help=f"of the admin port ({_LOOPBACK})")
    group.add_argument("--admin-port", type=_port, default=8081, metavar="PORT", help="status, drain (default 8081)")
    group.add_argument("--metrics-host", default=_LOOPBACK, metavar="HOST", help=f"of the metrics port ({_LOOPBACK})")
    group.add_argument("--metrics-port", type=_port, default=9090, metavar="PORT", help="Prometheus (default 9090)")


def _model(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("how the model runs")
    group.add_argument(
        "--provider", default="cpu", metavar="NAME",
        help=f"{', '.join(PROVIDERS)}, or the name of another execution provider of ONNX Runtime (default cpu)",
    )  # fmt: skip
    add_variant(group)
    group.add_argument("--threads", type=_count, default=0, help="of one pass (default 0: one for each core)")
    group.add_argument("--workers", type=_number, default=2, help="passes at the same time (default 2)")
    group.add_argument("--batch-rows", type=_number, default=8, metavar="N", help="rows of a pass at most (default 8)")
    group.add_argument(
        "--batch-delay-ms", type=_amount, default=0.0, metavar="MS",
        help="wait for more rows (default 0: on a CPU it does not pay; on a GPU try 2)",
    )  # fmt: skip


def _limits(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("limits of a request, checked before anything of that size is made")
    group.add_argument("--max-body-mb", type=_positive, default=8.0, metavar="MB", help="body (default 8)")
    group.add_argument("--max-rows", type=_number, default=256, metavar="N", help="texts (default 256)")
    group.add_argument("--max-pairs", type=_number, default=8192, metavar="N", help="texts times tasks (default 8192)")
    group.add_argument(
        "--max-characters", type=_number, default=100_000, metavar="N", help="of a text (default 100000)"
    )
    group.add_argument(
        "--queue-rows", type=_number, default=1024, metavar="N", help="that wait; then 429 (default 1024)"
    )
    group.add_argument(
        "--timeout-seconds", type=_positive, default=30.0, metavar="S", help="until it is begun; then 504 (default 30)"
    )
    group.add_argument(
        "--read-seconds", type=_positive, default=30.0, metavar="S",
        help="from a request's first byte to its last; then 408 (default 30)",
    )  # fmt: skip


def _trial(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("a challenger beside the champion")
    group.add_argument("--challenger", metavar="ID", help="bundle of the registry that is on trial")
    group.add_argument(
        "--canary", action="append", default=[], metavar="TASK=SHARE",
        help="the challenger answers this share of the requests for a task, 0 to 1; repeatable",
    )  # fmt: skip
    group.add_argument("--shadow", action="store_true", help="the challenger answers too, for the log alone")


def _log(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("what is kept")
    group.add_argument("--log", metavar="URL", help="prediction log: a folder, or a URL of fsspec (default: none)")
    group.add_argument("--log-text", action="store_true", help="keep the texts, too")
    group.add_argument("--log-events", metavar="URL", help="POST answers there as CloudEvents, as KServe's logger does")
    group.add_argument(
        "--log-flush-seconds", type=_positive, default=5.0, metavar="S", help="a file is written so often (default 5)"
    )
    group.add_argument(
        "--log-flush-rows", type=_number, default=5000, metavar="N", help="or this many rows (default 5000)"
    )
    group.add_argument(
        "--log-queue-rows",
        type=_number,
        default=50_000,
        metavar="N",
        help="that wait; more are dropped (default 50000)",
    )
    group.add_argument(
        "--log-embeddings", type=_count, default=120, metavar="N",
        help="rows a minute whose embedding is kept, for drift: each costs layers that nobody else needs (default 120)",
    )  # fmt: skip
    group.add_argument(
        "--trace-endpoint", metavar="URL",
        help="send OpenTelemetry spans there over OTLP/HTTP (default: where OTEL_EXPORTER_OTLP_ENDPOINT says, if set)",
    )  # fmt: skip
    group.add_argument("--access-log", action="store_true", help="a line for each request in the process's log")


def _security(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("who may ask (health needs no token)")
    group.add_argument("--token-file", type=Path, metavar="FILE", help="clients must send: Authorization: Bearer TOKEN")
    group.add_argument(
        "--verify-key", type=Path, metavar="PUBKEY", help="serve only bundles that `promote --sign` signed with its key"
    )
    group.add_argument("--tls-cert", type=Path, metavar="FILE", help="certificate for REST and gRPC")
    group.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")
    group.add_argument("--tls-client-ca", type=Path, metavar="FILE", help="clients must bring a certificate of this CA")


def _stopping(command: argparse.ArgumentParser) -> None:
    group = command.add_argument_group("stopping (SIGTERM, or POST /drain on the admin port)")
    group.add_argument(
        "--drain-seconds", type=_amount, default=1.0, metavar="S",
        help="go on answering for so long, but say not ready (default 1; more behind a slow load balancer)",
    )  # fmt: skip
    group.add_argument(
        "--stop-seconds", type=_positive, default=30.0, metavar="S", help="that requests under way have (default 30)"
    )


def _serve(options: argparse.Namespace) -> None:
    if options.is_alone and options.log:
        keep_small()
    try:
        from mtlops.serving import server
    except ImportError as error:
        raise UsageError(f"{error.name} is not installed. Install `mtlops[serve]`.") from None

    wanted = _options(options)

    def ready(ports: dict[str, int]) -> None:
        if options.json:
            print(json.dumps({"ready": True, "pid": os.getpid(), "ports": ports}), flush=True)
        logger.info("ready %s", " ".join(f"{name}={port}" for name, port in sorted(ports.items())))

    server.serve(wanted, ready=ready)


def _options(options: argparse.Namespace) -> "Options":
    from mtlops.registry import registry_url
    from mtlops.serving.follower import Engine
    from mtlops.serving.limits import Limits
    from mtlops.serving.log import Settings
    from mtlops.serving.server import Options, Ports
    from mtlops.serving.tracing import is_configured

    if options.bundle and options.verify_key:
        raise UsageError("--verify-key: needs a registry, where signatures lie; --bundle reads none.")
    if options.bundle and options.registry:
        raise UsageError("--bundle and --registry: give one of them.")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mtlops/serve"
    return Options(
        bundle=options.bundle,
        registry=registry_url(options.registry, beside=options.params),
        verify_key=options.verify_key,
        cache=options.cache or cache,
        poll_seconds=options.poll_seconds,
        ports=Ports(
            host=options.host, rest=options.port, grpc=options.grpc_port, admin_host=options.admin_host,
            admin=options.admin_port, metrics_host=options.metrics_host, metrics=options.metrics_port,
        ),
        security=_read_security(options),
        engine=Engine(provider=options.provider, threads=options.threads, variant=options.variant),
        limits=Limits(
            body_bytes=int(options.max_body_mb * 1e6), rows=options.max_rows, pairs=options.max_pairs,
            characters=options.max_characters, queue_rows=options.queue_rows, timeout_seconds=options.timeout_seconds,
            read_seconds=options.read_seconds,
        ),
        workers=options.workers,
        batch_rows=options.batch_rows,
        batch_delay_seconds=options.batch_delay_ms / 1000,
        trial=_read_trial(options),
        log_url=options.log,
        log=Settings(
            flush_rows=options.log_flush_rows, flush_seconds=options.log_flush_seconds,
            queue_rows=options.log_queue_rows, with_text=options.log_text, journal=(options.cache or cache) / "journal",
        ),
        events_url=options.log_events,
        traces=bool(options.trace_endpoint) or is_configured(),
        trace_endpoint=options.trace_endpoint,
        embeddings_a_minute=options.log_embeddings,
        access_log=options.access_log,
        drain_seconds=options.drain_seconds,
        stop_seconds=options.stop_seconds,
    )  # fmt: skip


def _read_security(options: argparse.Namespace) -> "Security":
    from mtlops.serving.server import Security

    if bool(options.tls_cert) != bool(options.tls_key):
        raise UsageError("--tls-cert and --tls-key: give both.")
    if options.tls_client_ca and not options.tls_cert:
        raise UsageError("--tls-client-ca: needs --tls-cert and --tls-key.")
    token = None
    if options.token_file:
        try:
            token = options.token_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"--token-file {options.token_file}: cannot be read ({error}).") from None
        if not token:
            raise UsageError(f"--token-file {options.token_file}: is empty.")
    return Security(token, options.tls_cert, options.tls_key, options.tls_client_ca)


def _read_trial(options: argparse.Namespace) -> "TrialSettings | None":
    from mtlops.serving.follower import TrialSettings

    shares = {}
    for word in options.canary:
        task, _, share = word.partition("=")
        try:
            shares[task] = float(share)
        except ValueError:
            raise UsageError(f"--canary {word}: give TASK=SHARE, as in topic=0.1.") from None
        if not 0 <= shares[task] <= 1:
            raise UsageError(f"--canary {word}: a share is 0 to 1.")
    if not options.challenger:
        if shares or options.shadow:
            raise UsageError("--canary and --shadow: say with --challenger which bundle is on trial.")
        return None
    if options.bundle:
        raise UsageError("--challenger: needs a registry; --bundle follows none.")
    if not shares and not options.shadow:
        raise UsageError("--challenger: say with --canary TASK=SHARE or --shadow how it takes part.")
    from mtlops.registry import Registry, registry_url

    registry = Registry(registry_url(options.registry, beside=options.params))
    return TrialSettings(registry.find_id(options.challenger), shares, options.shadow)


def _port(word: str) -> int:
    if not word.isdigit() or int(word) > 65535:
        raise argparse.ArgumentTypeError(f"{word!r} is no port: give 0 to 65535")
    return int(word)


def _number(word: str) -> int:
    if not word.isdigit() or int(word) < 1:
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number above 0")
    return int(word)


def _count(word: str) -> int:
    if not word.isdigit():
        raise argparse.ArgumentTypeError(f"{word!r} is not a whole number")
    return int(word)


def _positive(word: str) -> float:
    if (value := _amount(word)) <= 0:
        raise argparse.ArgumentTypeError(f"{word!r} is not above 0")
    return value


def _amount(word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{word!r} is not a number") from None
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{word!r} is not a number of 0 or more")
    return value
