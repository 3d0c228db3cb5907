"""monitor: one pass over what is new in the prediction log; verdicts into reports/drift.json."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlops.drift.detector import OK
from mtlops.errors import ArtefactError, UsageError
from mtlops.params import Params
from mtlops.registry import Registry
from mtlops.report import write_report
from mtlops.storage import Folder, open_storage
from mtlops.watch.engine import Watch, first_day
from mtlops.watch.log import PredictionLog
from mtlops.watch.references import References
from mtlops.watch.requests import request_training
from mtlops.watch.state import State
from mtlops.watch.summary import summarise

STATE = "monitoring.sqlite"
"""Name of the monitor's memory beside the bundles of a registry in a folder."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Monitored:
    """What a pass found.

    Attributes:
        level: the worst of all tasks: `ok`, `suspected` or `drifted`.
        levels: of each task, and of `encoder`.
        files: files of the log that were read.
        rows: rows in them.
        quarantined: files that could not be read.
        windows: windows that were closed.
        request: id of the request to retrain that was made, or None.
    """

    level: str
    levels: dict[str, str]
    files: int
    rows: int
    quarantined: int
    windows: int
    request: str | None


class Monitor:
    """A monitor at work: its state is open, and no other can have it.

    Args:
        params: of the suite.
        log: URL of the prediction log.
        registry: URL of the registry whose champion's references are used; empty with `bundle`.
        bundle: folder of a bundle to use instead of a registry's champion.
        state: file of the monitor's memory; None for the one beside the registry.

    Raises:
        UsageError: neither registry nor bundle, or no place for the state.
        ArtefactError: there is no champion yet, or its bundle has no references.
        PlatformError: the storage does not answer, or another monitor is at work.
    """

    def __init__(
        self, params: Params, *, log: str, registry: str = "", bundle: Path | None = None, state: Path | None = None
    ) -> None:
        if not registry and bundle is None:
            raise UsageError("monitor: needs a registry or a bundle to compare with. Give --registry or --bundle.")
        self._params, self._bundle = params, bundle
        self._registry = Registry(registry) if bundle is None else None
        self.log = PredictionLog(log)
        path = state or state_path(registry)
        self._cache = path.parent / "bundles-of-monitor"
        references = self._references()
        self.state = State(path)
        try:
            self.watch = Watch(params.drift, references, self.state)
        except BaseException:
            self.state.close()
            raise
        self._is_first = True

    def close(self) -> None:
        """Lets go of the state."""
        self.state.close()

    def once(self, *, clock: float | None = None) -> tuple[Monitored, dict[str, Any]]:
        """Reads what is new; returns what was found and the report.

        Args:
            clock: Unix time now, where the log is being written: it shows that rows have stopped.

        Raises:
            ArtefactError: the champion's bundle is damaged.
            PlatformError: log, registry or state cannot be reached; what was done before is kept.
        """
        since = None if self._is_first else first_day(self.state)
        # Files first: the champion asked for afterwards is at least as new as any of them.
        listed = self.log.files(since=since)
        references = self._references() if self._has_moved() else self.watch.references
        if references.bundle_id != self.watch.references.bundle_id:
            logger.info("champion=%s: references are those of this bundle now", references.bundle_id)
            self.watch = Watch(self._params.drift, references, self.state)
        now = None if clock is None else int(clock * 1e6)
        progress = self.watch.catch_up(self.log, listed=listed, clock=now)
        self._is_first = False
        with self.state.transaction():
            sources = {name: task.source for name, task in self._params.suite.tasks.items()}
            request = request_training(
                self.state, references, trigger=self._params.trigger, log=self.log.url, sources=sources
            )
            report = summarise(self.watch, log=self.log.url)
        if progress.files:
            logger.info(
                "level=%s files=%d rows=%d windows=%d set_aside=%d",
                report["level"], progress.files, progress.rows, len(progress.windows), progress.quarantined,
            )  # fmt: skip
        levels = {name: task["level"] for name, task in report["tasks"].items()}
        done = Monitored(report["level"], levels, progress.files, progress.rows, progress.quarantined,
                         len(progress.windows), request["id"] if request else None)  # fmt: skip
        return done, report

    def _has_moved(self) -> bool:
        if self._registry is None:
            return False
        entry = self._registry.champion()
        return entry is not None and entry.bundle_id != self.watch.references.bundle_id

    def _references(self) -> References:
        if self._registry is None:
            assert self._bundle is not None
            return References.of_bundle(self._bundle)
        found = References.of_champion(self._registry, cache=self._cache)
        if found is None:
            raise ArtefactError(f"{self._registry.url}: has no champion yet. Run `mtlops promote`, or give --bundle.")
        return found


def monitor(
    params: Params,
    *,
    log: str,
    registry: str = "",
    bundle: Path | None = None,
    state: Path | None = None,
    report: Path = Path("reports/drift.json"),
) -> Monitored:
    """Makes one pass over what is new in the log and writes the report. Arguments and errors as `Monitor`."""
    watcher = Monitor(params, log=log, registry=registry, bundle=bundle, state=state)
    try:
        done, payload = watcher.once()
    finally:
        watcher.close()
    write_report(report, payload)
    if done.level != OK:
        logger.warning("level=%s: %s says why", done.level, report)
    return done


def state_path(registry: str) -> Path:
    """Returns where the state lies when nothing is said: beside the bundles of a registry in a folder.

    Raises:
        UsageError: the registry is no folder; SQLite needs a local one.
    """
    storage = open_storage(registry) if registry else None
    if isinstance(storage, Folder):
        return storage.path / STATE
    raise UsageError("monitor: needs --state FILE on a local disk: the registry is not a folder of this machine.")
