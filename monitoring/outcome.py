"""What came of a scenario: quality before and after on rows that nobody labelled, and what did not change."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monitoring.scenarios import Rows, Scenario
from mtlops import catalog
from mtlops.bundle import Bundle, diff
from mtlops.data.prepared import read_split
from mtlops.decoding import decode
from mtlops.params import Params
from mtlops.registry import Registry
from mtlops.serving.runtime import Runtime

HELD_OUT = 600
"""Further rows of the last phase's kind, and as many known ones, on which old and new champion are compared."""


def measure_gains(
    scenario: Scenario, params: Params, *, rows: Rows, before: Bundle, after: Bundle, prepared: Path
) -> dict[str, dict[str, Any]]:
    """Returns by task its primary metric before and after, on new rows (`new`) and on known test rows (`known`)."""
    sources = {name: source.rows for source in scenario.phases[-1].traffic for name in source.tasks}
    found = {}
    for name in scenario.expect.tasks:
        rest = rows.rest(sources[name])
        labelled = [pair for pair in zip(rest.texts, rest.labels[name], strict=True) if pair[1] is not None][:HELD_OUT]
        test = read_split(prepared, name, "test")
        some = np.unique(np.linspace(0, test.num_rows - 1, HELD_OUT).astype(int))
        data = {
            "new": ([text for text, _ in labelled], [label for _, label in labelled]),
            "known": (test["text"].take(some).to_pylist(), test["label"].take(some).to_pylist()),
        }
        kind = next(task.kind for task in params.tasks() if task.name == name)
        found[name] = {"metric": catalog.KINDS[kind].primary} | {
            which: [_score(params, bundle, name, *pair) for bundle in (before, after)] for which, pair in data.items()
        }
    return found


def _score(params: Params, bundle: Bundle, name: str, texts: Sequence[str], labels: Sequence[Any]) -> float:
    task = next(task for task in params.tasks() if task.name == name)
    logits = Runtime(bundle).logits(texts, name)
    kind = catalog.KINDS[task.kind]
    found = catalog.load(kind.metrics)(task, task.encode(labels), decode(task, logits, bundle.calibrations[name]))
    return float(found[kind.primary])


def identical_parts(before: Bundle, after: Bundle) -> list[str]:
    """Returns the tasks, and the trunk, whose files and golden outputs are the same to the bit."""
    parts = diff(before, after)
    return [name for name, part in parts.items() if (part.files, part.outputs) == ("identical", "identical")]


def equal_answers(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the tasks whose answers to the same requests are the same to the last digit."""
    pairs = [(a["predictions"][0]["tasks"], b["predictions"][0]["tasks"]) for a, b in zip(before, after, strict=True)]
    return [name for name in pairs[0][0] if all(a[name] == b[name] for a, b in pairs)]


def added_bytes(registry: Registry, bundle_id: str) -> tuple[int, int]:
    """Returns the bytes that a bundle added to the registry, and its size."""
    found = next(found for found in registry.bundles() if found.id == bundle_id)
    return found.added_bytes, found.bytes
