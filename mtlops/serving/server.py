"""The server: four ports in one process, from the first socket to the last answer."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import prometheus_client
import uvicorn

from mtlops.bundle import Bundle
from mtlops.errors import PlatformError, UsageError
from mtlops.registry import Registry
from mtlops.serving.asgi import Application
from mtlops.serving.batching import Batcher
from mtlops.serving.connection import reading_within
from mtlops.serving.events import EventSender
from mtlops.serving.follower import Engine, Follower, TrialSettings
from mtlops.serving.grpc_port import GrpcPort, credentials
from mtlops.serving.incoming import Incoming
from mtlops.serving.limits import Limits
from mtlops.serving.log import PredictionLog
from mtlops.serving.log import Settings as LogSettings
from mtlops.serving.metrics import Metrics
from mtlops.serving.operations import admin_application, metrics_application
from mtlops.serving.passes import check_provider
from mtlops.serving.rest import Rest
from mtlops.serving.service import Service, Serving
from mtlops.serving.tracing import Tracing
from mtlops.signatures import Verifier

logger = logging.getLogger(__name__)

_KEEP_ALIVE_SECONDS = 75
_BACKLOG = 2048
_LINGER_SECONDS = 0.2
_OPEN_FILES = 65_536


@dataclass(frozen=True)
class Ports:
    """Where the server listens; 0 takes any free port."""

    host: str = "127.0.0.1"
    rest: int = 8080
    grpc: int = 9000
    admin_host: str = "127.0.0.1"
    admin: int = 8081
    metrics_host: str = "127.0.0.1"
    metrics: int = 9090


@dataclass(frozen=True)
class Security:
    """Who may ask.

    Attributes:
        token: that clients must bring.
        certificate: of the server, for TLS on the clients' ports.
        key: of the certificate.
        client_ca: authority whose certificate clients must bring.
    """

    token: str | None = None
    certificate: Path | None = None
    key: Path | None = None
    client_ca: Path | None = None


@dataclass(frozen=True)
class Options:
    """All that `mtlops serve` can be told.

    Attributes:
        bundle: folder to serve; None follows the registry.
        registry: URL to follow.
        verify_key: public key that its bundles must be signed with; None asks for none.
        cache: folder of fetched bundles.
        poll_seconds: between two looks at the registry.
        ports: where to listen.
        security: who may ask.
        engine: how bundles are run.
        limits: of requests.
        workers: passes of the model at the same time.
        batch_rows: rows of a pass at most.
        batch_delay_seconds: that a pass waits for more rows.
        trial: a challenger.
        log_url: where the prediction log goes; None keeps none.
        log: how it is written.
        events_url: where requests and answers go as CloudEvents; None sends none.
        traces: spans are sent, to `trace_endpoint` or, where that is None, to whom OTEL_* names.
        trace_endpoint: URL of a collector.
        embeddings_a_minute: rows whose embedding goes into the log.
        access_log: a line for each request.
        drain_seconds: from the signal to stop until no connection is taken any more.
        stop_seconds: that requests under way then have left.
    """

    bundle: Path | None
    registry: str
    cache: Path
    verify_key: Path | None = None
    poll_seconds: float = 2.0
    ports: Ports = field(default_factory=Ports)
    security: Security = field(default_factory=Security)
    engine: Engine = field(default_factory=Engine)
    limits: Limits = field(default_factory=Limits)
    workers: int = 2
    batch_rows: int = 8
    batch_delay_seconds: float = 0.0
    trial: TrialSettings | None = None
    log_url: str | None = None
    log: LogSettings = field(default_factory=LogSettings)
    events_url: str | None = None
    traces: bool = False
    trace_endpoint: str | None = None
    embeddings_a_minute: int = 120
    access_log: bool = False
    drain_seconds: float = 1.0
    stop_seconds: float = 30.0


def serve(options: Options, *, ready: Callable[[dict[str, int]], None]) -> None:
    """Serves until SIGTERM or SIGINT; all requests that were accepted are answered before it returns.

    Args:
        options: see there.
        ready: is told the ports by name once the first answer can be given.

    Raises:
        UsageError: the execution provider is not installed.
        PlatformError: a port is taken.
        MtlopsError: the bundle cannot be served.
    """
    check_provider(options.engine.provider)
    _allow_many_connections()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # waking its threads for a few texts costs more than them
    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]
    try:
        import uvloop
    except ImportError:
        asyncio.run(_Server(options).run(ready))
    else:
        uvloop.run(_Server(options).run(ready))


def _allow_many_connections() -> None:
    """Raises the number of files that may be open, connections among them, as far as the system allows."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    now, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if most == resource.RLIM_INFINITY else min(most, _OPEN_FILES)
    if resource.RLIM_INFINITY != now < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))


class _Http(uvicorn.Server):
    """A uvicorn server that leaves signals to the process's own handlers and resets no connection that it has taken."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Takes what the kernel has accepted for us, stops listening, reads what was sent meanwhile, then stops.

        Closing a socket that has connections in its backlog, or a connection with an unread request, resets them:
        the client would lose a request that it had every reason to take for accepted.
        """
        for sock in sockets or []:
            sock.listen(0)
        await asyncio.sleep(_LINGER_SECONDS)
        for server in self.servers:
            server.close()
        for sock in sockets or []:
            sock.close()
        await asyncio.sleep(_LINGER_SECONDS)
        await super().shutdown(sockets)


class _Server:
    def __init__(self, options: Options) -> None:
        self._options, security = options, options.security
        self._metrics = Metrics()
        self._log = (
            PredictionLog(
                options.log_url, options.log,
                wrote=lambda table, rows: self._metrics.log_rows.labels(table).inc(rows),
                dropped=self._metrics.log_dropped.inc,
            )
            if options.log_url
            else None
        )  # fmt: skip
        self._batcher = Batcher(
            options.limits, threads=options.workers, batch_rows=options.batch_rows,
            delay_seconds=options.batch_delay_seconds, observe=self._metrics.batch,
        )  # fmt: skip
        self._events = (
            EventSender(
                options.events_url, with_requests=options.log.with_text, dropped=self._metrics.events_dropped.inc
            )
            if options.events_url
            else None
        )
        self._tracing = Tracing(options.trace_endpoint) if options.traces else None
        self._service = Service(
            self._batcher,
            options.limits,
            metrics=self._metrics,
            log=self._log,
            events=self._events,
            tracing=self._tracing,
            embeddings_a_minute=options.embeddings_a_minute,
            access_log=options.access_log,
        )
        self._incoming = (
            Incoming(
                lambda: self._service.runtime, options.limits, keep=self._log.add,
                count=lambda outcome: self._metrics.events_taken.labels(outcome).inc(),
            )
            if self._log is not None
            else None
        )  # fmt: skip
        more = {"/v2/events": self._incoming.handle} if self._incoming is not None else {}
        self._rest = Rest(self._service, token=security.token, more=more)
        self._follower: Follower | None = None

    async def run(self, ready: Callable[[dict[str, int]], None]) -> None:
        """Listens, loads, answers, stops."""
        loop, stop = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        ports, options = self._options.ports, self._options
        found: dict[str, int] = {}
        grpc_port = GrpcPort(self._service, token=options.security.token)
        rest = self._http("rest", self._rest.application, ports.host, ports.rest, found, tls=self._tls())
        admin = self._http(
            "admin",
            admin_application(self._service, status=self._status, drain=stop.set, token=options.security.token),
            ports.admin_host, ports.admin, found,
        )  # fmt: skip
        metrics = self._http(
            "metrics", metrics_application(self._metrics, self._batcher), ports.metrics_host, ports.metrics, found
        )
        found["grpc"] = self._bind_grpc(grpc_port)
        https = [rest, admin, metrics]
        tasks = [asyncio.create_task(server.serve(sockets=[sock])) for server, sock in https]
        await grpc_port.start()
        was_ready = False
        try:
            await asyncio.to_thread(self._load)
            ready(found)
            was_ready = True
            await stop.wait()
            await self._drain()
        finally:
            rest[0].should_exit = True
            await grpc_port.stop(grace_seconds=options.stop_seconds)
            await tasks[0]
            await asyncio.to_thread(self._close)
            for server, _ in https:
                server.should_exit = True
            await asyncio.gather(*tasks)
            if was_ready:
                logger.info("stopped: every accepted request was answered")

    async def _drain(self) -> None:
        """Says that it is not ready, goes on answering for a while, and closes connections after their next answer."""
        self._service.is_draining = True
        logger.info("draining seconds=%g waiting_rows=%d", self._options.drain_seconds, self._batcher.waiting_rows)
        await asyncio.sleep(self._options.drain_seconds)

    def _load(self) -> None:
        options = self._options
        if options.bundle is not None:
            runtime = options.engine.runtime(Bundle.open(options.bundle))
            self._service.serve(Serving(runtime))
            logger.info("serving bundle=%s folder=%s", runtime.bundle_id, options.bundle)
            return
        self._follower = Follower(
            Registry(options.registry, verifier=Verifier(options.verify_key) if options.verify_key else None),
            self._service, options.engine,
            metrics=self._metrics, cache=options.cache, poll_seconds=options.poll_seconds, trial=options.trial,
        )  # fmt: skip
        self._follower.start()

    def _close(self) -> None:
        if self._follower is not None:
            self._follower.close()
        self._batcher.close()
        if self._incoming is not None:
            self._incoming.close()
        if self._log is not None:
            self._log.close()
        if self._events is not None:
            self._events.close()
        if self._tracing is not None:
            self._tracing.close()

    def _status(self) -> dict[str, Any]:
        served = self._service.runtime.served if self._service.is_ready else ()
        tasks = {one.task.name: {"bundle": one.bundle_id, "version": one.version} for one in served}
        bundle = self._service.runtime.bundle_id if served else None
        variant = self._service.runtime.variant if served else None
        more = self._follower.status() if self._follower is not None else {}
        return {
            "bundle": bundle,
            "variant": variant,
            "tasks": tasks,
            "waiting_rows": self._batcher.waiting_rows,
            **more,
        }

    def _http(
        self, name: str, application: Application, host: str, port: int, found: dict[str, int],
        *, tls: dict[str, Any] | None = None,
    ) -> tuple[_Http, socket.socket]:  # fmt: skip
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as error:
            raise PlatformError(
                f"{host}:{port}: cannot listen for {name} ({error.strerror}). Choose another."
            ) from None
        found[name] = sock.getsockname()[1]
        config = uvicorn.Config(
            application, http=reading_within(self._options.limits.read_seconds),
            ws="none", lifespan="off", log_config=None, access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS, timeout_graceful_shutdown=int(self._options.stop_seconds) or 1,
            server_header=False, proxy_headers=False, backlog=_BACKLOG, **(tls or {}),
        )  # fmt: skip
        return _Http(config), sock

    def _bind_grpc(self, port: GrpcPort) -> int:
        ports, security = self._options.ports, self._options.security
        host = f"[{ports.host}]" if ":" in ports.host else ports.host
        secure = None
        if security.certificate and security.key:
            secure = credentials(certificate=security.certificate, key=security.key, client_ca=security.client_ca)
        try:
            return port.bind(f"{host}:{ports.grpc}", credentials=secure)
        except RuntimeError:
            raise PlatformError(f"{host}:{ports.grpc}: cannot listen for gRPC. Choose another port.") from None

    def _tls(self) -> dict[str, Any]:
        security = self._options.security
        if security.certificate is None:
            return {}
        for path in filter(None, (security.certificate, security.key, security.client_ca)):
            if not path.is_file():
                raise UsageError(f"{path}: no such file.")
        mutual = {"ssl_ca_certs": str(security.client_ca), "ssl_cert_reqs": ssl.CERT_REQUIRED}
        return {
            "ssl_certfile": str(security.certificate), "ssl_keyfile": str(security.key),
            **(mutual if security.client_ca else {}),
        }  # fmt: skip
