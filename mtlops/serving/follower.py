"""What is served: a bundle in a folder, or the registry's champion, which is followed while the server runs.

A new champion on the same trunk is swapped in over the running session: the files of the tasks that changed are
fetched and stacked, a first golden check is made, and the next request is answered by it. The rest of the golden rows
follow at once; if one is not reproduced, the champion before is served again, and the new one is refused until the
registry names another. With another trunk or graph the whole bundle is loaded beside the old one first.
"""

import logging
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mtlops.bundle import Bundle
from mtlops.catalog import REFERENCE_VARIANT
from mtlops.errors import ArtefactError, MtlopsError, PlatformError
from mtlops.registry import Entry, Registry
from mtlops.serving.bank import TASK_FILES, task_version
from mtlops.serving.metrics import Metrics
from mtlops.serving.runtime import Runtime
from mtlops.serving.service import Service, Serving
from mtlops.serving.trials import Trial

logger = logging.getLogger(__name__)

_ROWS_BEFORE = 1
"""Golden rows, the shortest, that are checked before a swap; the others are checked right after it."""

_POLLS_BETWEEN_FULL = 30
"""champion.json is a hint; every so many polls the registry's history is asked."""


@dataclass(frozen=True)
class Engine:
    """How a bundle becomes a runtime.

    Attributes:
        provider: execution provider of ONNX Runtime.
        threads: of one run; 0 lets ONNX Runtime choose.
        variant: of the bundle's graph.
    """

    provider: str = "CPUExecutionProvider"
    threads: int = 0
    variant: str = REFERENCE_VARIANT

    def runtime(self, bundle: Bundle) -> Runtime:
        """Returns a runtime whose golden outputs were reproduced. Raises like `Runtime`."""
        return Runtime(bundle, provider=self.provider, threads=self.threads, variant=self.variant)


@dataclass(frozen=True)
class TrialSettings:
    """A challenger, by its bundle's id, and how it takes part (`trials.Trial`)."""

    challenger: str
    shares: Mapping[str, float] = field(default_factory=dict)
    looks_on: bool = False


class Follower:
    """Follows a registry.

    Args:
        registry: to follow.
        service: that serves what it finds.
        engine: makes runtimes.
        metrics: counts swaps.
        cache: folder of fetched bundles.
        poll_seconds: between two looks at the registry.
        trial: a challenger.
    """

    def __init__(
        self,
        registry: Registry,
        service: Service,
        engine: Engine,
        *,
        metrics: Metrics,
        cache: Path,
        poll_seconds: float,
        trial: TrialSettings | None = None,
    ) -> None:
        self._registry, self._service, self._engine, self._metrics = registry, service, engine, metrics
        self._cache, self._poll_seconds, self._trial = cache, poll_seconds, trial
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="registry", daemon=True)
        self._pointer: bytes | None = None
        self._refused = ""
        self._outcome: dict[str, Any] = {}
        self._unreachable = False

    def start(self) -> None:
        """Serves the champion, and follows it from now on.

        Raises:
            MtlopsError: there is no champion, or it cannot be served.
        """
        self._pointer = self._registry.pointer()
        entry = self._registry.champion()
        if entry is None:
            raise ArtefactError(f"{self._registry.url}: has no champion. Run `mtlops promote`, or use --bundle DIR.")
        runtime = self._engine.runtime(Bundle.open(self._registry.fetch(entry.bundle_id, self._cache)))
        self._service.serve(Serving(runtime, self._make_trial(runtime)))
        logger.info("serving bundle=%s version=%d registry=%s", entry.bundle_id, entry.version, self._registry.url)
        self._thread.start()

    def close(self) -> None:
        """Follows no longer."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()

    def status(self) -> dict[str, Any]:
        """Returns what is served and how the last swap went, as JSON values."""
        return {"registry": self._registry.url, "reachable": not self._unreachable, "last_swap": self._outcome}

    def _follow(self) -> None:
        polls = 0
        while not self._stop.wait(self._poll_seconds):
            polls += 1
            try:
                pointer = self._registry.pointer()
                if pointer != self._pointer or polls % _POLLS_BETWEEN_FULL == 0:
                    self._look(time.perf_counter())
                    self._pointer = pointer
                self._unreachable = False
            except PlatformError as error:
                if not self._unreachable:
                    logger.warning("registry cannot be read, serving on: %s", error)
                self._unreachable = True
            except Exception:
                logger.exception("following the registry failed, serving on")

    def _look(self, started: float) -> None:
        entry = self._registry.champion()
        if entry is None or entry.bundle_id in (self._service.runtime.bundle_id, self._refused):
            return
        before = self._service.serving
        try:
            how = self._change(entry, before, started)
        except PlatformError:
            self._end(entry, "failed", started, "the registry or the disk failed; trying again")
            raise
        except MtlopsError as error:
            self._refused = entry.bundle_id
            went_back = self._service.serving is not before
            self._service.serve(before)
            self._end(
                entry, "returned" if went_back or isinstance(error, _GoldenError) else "failed", started, str(error)
            )
            return
        self._refused = ""
        self._end(entry, how, started, "")

    def _change(self, entry: Entry, before: Serving, started: float) -> str:
        runtime, bundle_id = before.runtime, entry.bundle_id
        described = self._describe(bundle_id)
        if not runtime.can_take(described):
            new = self._engine.runtime(Bundle.open(self._registry.fetch(bundle_id, self._cache)))
            self._service.serve(Serving(new, self._make_trial(new)))
            self._metrics.swap_seconds.observe(time.perf_counter() - started)
            return "reloaded"
        new = runtime.with_bundle(self._fetch_tasks(bundle_id, described, runtime))
        with _golden_errors():
            new.check_golden(slice(_ROWS_BEFORE))
            new.check_unchanged(runtime)
        self._service.serve(Serving(new, self._make_trial(new)))
        self._metrics.swap_seconds.observe(time.perf_counter() - started)
        logger.info("swapped bundle=%s ms=%.1f", bundle_id, (time.perf_counter() - started) * 1000)
        with _golden_errors():
            new.check_golden(slice(_ROWS_BEFORE, None))
        return "swapped"

    def _describe(self, bundle_id: str) -> Bundle:
        """A bundle of which only the manifest is there."""
        return Bundle(self._cache / bundle_id, self._registry.manifest(bundle_id))

    def _fetch_tasks(self, bundle_id: str, described: Bundle, runtime: Runtime) -> Bundle:
        """The bundle with the files of those tasks that the runtime has not got."""
        mine = {(one.task.name, one.version, one.task, one.calibration) for one in runtime.served}
        calibrations, names = described.calibrations, ["golden.json"]
        for task in described.tasks:
            if (task.name, task_version(described, task.name), task, calibrations[task.name]) not in mine:
                names += [f"tasks/{task.name}/{file}" for file in TASK_FILES]
        return self._registry.fetch_files(bundle_id, names, self._cache)

    def _make_trial(self, champion: Runtime) -> Trial | None:
        trial = self._trial
        if trial is None or trial.challenger == champion.bundle_id:
            return None
        described = self._describe(trial.challenger)
        if champion.can_take(described):
            challenger = champion.with_bundle(self._fetch_tasks(trial.challenger, described, champion))
            challenger.check_golden()
        else:
            challenger = self._engine.runtime(Bundle.open(self._registry.fetch(trial.challenger, self._cache)))
        return Trial.of(champion, challenger, shares=trial.shares, looks_on=trial.looks_on)

    def _end(self, entry: Entry, outcome: str, started: float, reason: str) -> None:
        milliseconds = (time.perf_counter() - started) * 1000
        self._metrics.swaps.labels(outcome).inc()
        self._outcome = {
            "outcome": outcome, "bundle": entry.bundle_id, "version": entry.version,
            "milliseconds": round(milliseconds, 1), "reason": reason,
        }  # fmt: skip
        tell = logger.info if outcome in ("swapped", "reloaded") else logger.error
        tell("swap outcome=%s bundle=%s ms=%.1f %s", outcome, entry.bundle_id, milliseconds, reason)


class _GoldenError(ArtefactError):
    """Golden outputs were not reproduced."""


@contextmanager
def _golden_errors() -> Iterator[None]:
    try:
        yield
    except ArtefactError as error:
        raise _GoldenError(str(error)) from None
