"""validate: prepared splits and windows in, a report of kept and broken promises out."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from mtlops.data.prepared import (
    SPLITS,
    Manifest,
    count_part,
    read_labelled,
    read_manifest,
    read_split,
    read_window,
    windows_of,
)
from mtlops.errors import ArtefactError, DataError
from mtlops.params import Params
from mtlops.report import write_report
from mtlops.validation.checks import Check
from mtlops.validation.evidence import Fact, label_space_fact, normalisation_fact
from mtlops.validation.examination import examine
from mtlops.validation.parts import LoadedPart

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Validated:
    """What the step found.

    Attributes:
        passed: whether no check of severity `error` failed; always true when the step returns.
        num_checks: checks that were run.
        num_warnings: checks of severity `warning` that failed.
        report: path of the report.
    """

    passed: bool
    num_checks: int
    num_warnings: int
    report: str


def validate(
    params: Params, *, prepared: Path = Path("data/prepared"), report: Path = Path("reports/validation.json")
) -> Validated:
    """Checks the prepared data of every task and writes the report, whatever it says.

    Raises:
        DataError: a check of severity `error` failed; the report is written by then.
        ArtefactError: prepared data is missing, damaged, or made for other tasks.
        PlatformError: the report cannot be written.
    """
    manifest = read_manifest(prepared)
    parts = _parts(params, prepared, manifest)
    checks = examine(parts, facts=_manifest_facts(params, prepared, manifest), min_words=params.data.min_words)
    write_report(report, _report(params, checks, manifest))
    warnings = [check for check in checks if check.severity == "warning" and not check.passed]
    for check in warnings:
        logger.warning("%s", check.message)
    _stop_if_broken(checks, report)
    return Validated(passed=True, num_checks=len(checks), num_warnings=len(warnings), report=str(report))


def _parts(params: Params, prepared: Path, manifest: Manifest) -> Iterator[LoadedPart]:
    labelled = _labelled_since(prepared, manifest)
    for task in params.tasks():
        for split in SPLITS:
            table = read_split(prepared, task.name, split)
            entry = manifest["tasks"][task.name]["splits"][split]
            if windows_of(manifest, task.name):
                # The hash of each file was checked as it was read; what is counted is their sum.
                entry = {**entry, **count_part(table, task)}
            yield LoadedPart(task, split, table, entry)
        for name, window in params.data.windows.items():
            if task.name in window.tasks:
                table = read_window(prepared, name, task.name)
                entry = manifest["windows"][name]["tasks"][task.name]
                if labelled is not None and window.share is None:
                    table = table.filter(pc.invert(pc.is_in(table["row_id"], value_set=labelled)))
                    entry = {**entry, **count_part(table, task)}
                    if not table.num_rows:
                        continue
                yield LoadedPart(task, f"windows/{name}", table, entry, is_apart=window.share is not None)


def _labelled_since(prepared: Path, manifest: Manifest) -> pa.Array | None:
    """Ids of the rows of labelled windows: production rows among them are set aside no longer. None without any."""
    tables = [
        read_labelled(prepared, name, task, split)["row_id"]
        for name, entry in manifest.get("labelled", {}).items()
        for task in entry["tasks"]
        for split in SPLITS
    ]
    return pa.concat_arrays([chunk for column in tables for chunk in column.chunks]) if tables else None


def _manifest_facts(params: Params, prepared: Path, manifest: Manifest) -> Iterator[Fact]:
    yield normalisation_fact(manifest["fingerprint"]["normalisation"])
    for task in params.tasks():
        entry = manifest["tasks"].get(task.name)
        if entry is None:
            raise ArtefactError(f"{prepared}: holds no task {task.name!r}. Run `mtlops prepare` with this params.yaml.")
        yield label_space_fact(task, kind=entry["kind"], classes=entry["classes"])


def _report(params: Params, checks: Sequence[Check], manifest: Manifest) -> dict[str, Any]:
    return {
        "schema_version": 1,
        "passed": not any(check.is_broken for check in checks),
        "checks": [asdict(check) for check in checks],
        "data": {
            "suite": params.suite.name,
            "data_as_of": manifest["data_as_of"],
            "fingerprint": manifest["fingerprint"],
            "rows_set_aside": manifest["rows_set_aside"],
            "tasks": {task.name: _counts(manifest, task.name) for task in params.tasks()},
        },
    }


def _counts(manifest: Manifest, task: str) -> dict[str, Any]:
    entry = manifest["tasks"][task]
    windows = {name: window["tasks"] for name, window in manifest["windows"].items()}
    parts = entry["splits"] | {f"windows/{name}": parts[task] for name, parts in windows.items() if task in parts}
    for name in windows_of(manifest, task):
        admitted = manifest["labelled"][name]["tasks"][task]
        parts |= {f"labelled/{name}/{split}": part for split, part in admitted.items()}
    counts = {name: {"rows": part["rows"], "label_counts": part["label_counts"]} for name, part in parts.items()}
    return {"kind": entry["kind"], "source": entry["source"], "parts": counts}


def _stop_if_broken(checks: Sequence[Check], report: Path) -> None:
    broken = [check for check in checks if check.is_broken]
    if broken:
        more = f"{len(broken)} broken promises, all" if len(broken) > 1 else "More"
        raise DataError(f"{broken[0].message} {more} in {report}.")
