"""profile-log, merge-log: a log in parts, each profiled by itself; together one window, judged and reported."""

import logging
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from mtlops.errors import ArtefactError, UsageError
from mtlops.params import Params
from mtlops.registry import Registry
from mtlops.report import write_report
from mtlops.watch.log import PredictionLog
from mtlops.watch.parts import Part, Share, facts_of, judge_part, merge_parts, profile_part
from mtlops.watch.references import References
from mtlops.watch.summary import summarise

logger = logging.getLogger(__name__)


def profile_log(
    *, log: str, part: str, since: str, until: str, out: Path, registry: str = "", bundle: Path | None = None
) -> dict[str, Any]:
    """Profiles a part of a log into a folder; returns the part's facts.

    Args:
        log: URL of the prediction log.
        part: `K/N`.
        since: first day, YYYY-MM-DD, UTC.
        until: last day, one that has ended.
        out: folder to write.
        registry: URL of the registry whose champion's references are used; empty with `bundle`.
        bundle: folder of a bundle instead.

    Raises:
        UsageError: part or days are none.
        ArtefactError: there is no champion, or its bundle has no references.
        PlatformError: log or registry cannot be reached.
    """
    share, first, last = Share.parse(part), _day(since, "since"), _day(until, "until")
    references = _references(registry, bundle, cache=out.parent)
    found = profile_part(PredictionLog(log), references, share=share, since=first, until=last)
    found.save(out)
    logger.info("part=%s files=%d rows=%d", share, found.counts["files"], found.counts["rows"])
    return facts_of(found)


def merge_log(
    params: Params, *, parts: Sequence[Path], log: str = "", registry: str = "", bundle: Path | None = None,
    report: Path = Path("reports/drift.json"),
) -> dict[str, Any]:  # fmt: skip
    """Judges the parts of a log as one window and writes the report, which is returned.

    Args:
        params: of the suite.
        parts: folders that `profile_log` wrote, in any order.
        log: what was read, for people.
        registry: as of the parts.
        bundle: as of the parts.
        report: file to write.

    Raises:
        UsageError: a part is missing or there twice.
        ArtefactError: a part is damaged, or they do not fit together.
    """
    references = _references(registry, bundle, cache=report.parent)
    whole = merge_parts([Part.load(folder) for folder in parts], references)
    watch = judge_part(whole, references, drift=params.drift)
    with watch.state.transaction():
        payload = summarise(watch, log=log)
    watch.state.close()
    write_report(report, payload)
    return payload


def _references(registry: str, bundle: Path | None, *, cache: Path) -> References:
    if bundle is not None:
        return References.of_bundle(bundle)
    if not registry:
        raise UsageError("needs a registry or a bundle to compare with. Give --registry or --bundle.")
    found = References.of_champion(Registry(registry), cache=cache / "bundles-of-monitor")
    if found is None:
        raise ArtefactError(f"{registry}: has no champion yet. Run `mtlops promote`, or give --bundle.")
    return found


def _day(text: str, name: str) -> date:
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise UsageError(f"--{name} {text}: give a day as YYYY-MM-DD.") from None
