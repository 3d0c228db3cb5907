"""From a full window to what is said of it: findings, alarms, estimates, causes."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mtlops import catalog
from mtlops.decoding import Outputs
from mtlops.drift.categories import Categories
from mtlops.drift.causes import diagnose
from mtlops.drift.columns import RIGHT, WRONG, chance_of_right, tenths
from mtlops.drift.detector import DRIFTED, LEVELS, MONTH_SECONDS, OK, Detector, threshold
from mtlops.drift.finding import Settings
from mtlops.drift.mean import Mean
from mtlops.drift.priors import PriorShift, prior_shift
from mtlops.drift.profile import ENCODER, Profile
from mtlops.drift.verdicts import judge
from mtlops.tasks import Task
from mtlops.watch.references import Reference, References
from mtlops.watch.state import State
from mtlops.watch.streams import LABELS, Stream, basis, num_cells

if TYPE_CHECKING:
    from mtlops.params import Drift

VOLUME = "volume"
"""The kind of the cells of `watch.volumes`: how many rows come in."""

_LEAST_KEPT = 20
"""Answers of the reference in a tenth of promises, from which on their share of right ones is used."""

_EXCLUSIVE = ("binary", "multiclass", "ordinal")


@dataclass(frozen=True)
class Moment:
    """Whose evidence grows, and when: a task, the version of its reference, the newest time, in microseconds."""

    name: str
    version: str
    stop: int


@dataclass(frozen=True)
class Judge:
    """Judges windows and keeps the alarms.

    Attributes:
        drift: section `drift` of params.yaml.
        references: what windows are compared with.
        state: keeps the evidence of every cell.
    """

    drift: "Drift"
    references: References
    state: State

    @property
    def threshold(self) -> float:
        """Months of evidence at which a cell alarms, so that all cells together keep the budget."""
        cells = sum(num_cells(reference) for reference in self.references.by_name.values())
        return threshold(cells=cells, false_alarms_per_month=self.drift.false_alarms_per_month)

    def close(self, stream: Stream, *, against: Profile | None = None) -> dict[str, Any]:
        """Returns what is said of a full window, after adding it to the evidence of its cells.

        Args:
            stream: the window.
            against: compare with this instead of the bundle's reference.
        """
        reference = self.references.by_name[stream.name]
        settings, moment = Settings.of(self.drift), _moment(stream)
        findings = (against or basis(reference, stream.source)).compare(stream.profile, settings)
        start = stream.stop if stream.start is None else stream.start
        months = max(0, stream.stop - (start if stream.last is None else stream.last)) / 1e6 / MONTH_SECONDS
        cells = [
            {**cell.to_json(), **self.weigh(moment, cell.kind, cell.p_value, months=months)}
            for cell in judge({stream.name: findings}, settings)
        ]
        if stream.name != ENCODER:
            cells.append(self._data(stream))
        return self._content(stream, cells)

    def close_faulty(self, stream: Stream) -> list[dict[str, Any]]:
        """Returns what is said of a full window of which only the data are judged; nothing while nothing is wrong."""
        if stream.name == ENCODER:
            return []
        before = self.levels(stream.name).get(_data_kind(stream), OK)
        cell = self._data(stream)
        return [] if cell["level"] == before == OK else [self._content(stream, [cell])]

    def _content(self, stream: Stream, cells: Sequence[dict[str, Any]]) -> dict[str, Any]:
        reference = self.references.by_name[stream.name]
        start = stream.stop if stream.start is None else stream.start
        content = {
            "name": stream.name, "source": stream.source, "start": start, "stop": stream.stop, "rows": stream.rows,
            "late_rows": stream.late, "bad_rows": dict(sorted((+stream.faults).items())), "cells": cells,
            "level": max((cell["level"] for cell in cells), key=LEVELS.index),
        }  # fmt: skip
        self._remember_cells(stream, cells)
        if reference.task is not None:
            priors = _priors(reference, stream)
            content["metrics"] = _metrics(reference, stream)
            content["priors"] = None if priors is None else {**vars(priors), "describe": priors.describe()}
            content["diagnosis"] = self._diagnose(stream, priors)
        return content

    def levels(self, name: str) -> dict[str, str]:
        """Returns the level of each kind of a task now; texts that were judged once for all tasks count for each."""
        query = "SELECT name, kind, level FROM detectors WHERE name IN (?, ?) ORDER BY name"
        found: dict[str, str] = {}
        for row in self.state.rows(query, name, ENCODER):
            found[row["kind"]] = max(found.get(row["kind"], OK), row["level"], key=LEVELS.index)
        return found

    def weigh(self, moment: Moment, kind: str, p_value: float | None, *, months: float) -> dict[str, Any]:
        """Returns the cell's detector after this window, or slot; a change of its level is recorded."""
        found = self.state.rows(
            "SELECT value, level, since FROM detectors WHERE name = ? AND kind = ? AND version = ?",
            moment.name, kind, moment.version,
        )  # fmt: skip
        before = Detector(self.threshold, found[0]["value"], found[0]["level"]) if found else Detector(self.threshold)
        after = before.after(p_value, months=months)
        since = found[0]["since"] if found and after.level == before.level else moment.stop
        self._changed(moment, kind, (before.level, after.level))
        return {
            "level": after.level, "evidence": after.value / after.threshold, "value": after.value,
            "since": None if after.level == OK else since,
        }  # fmt: skip

    def remember(self, moment: Moment, kind: str, cell: Mapping[str, Any]) -> None:
        """Keeps the newest cell of a kind, with its detector's value and level."""
        shown = {key: value for key, value in cell.items() if key != "columns"}
        self.state.run(
            "INSERT OR REPLACE INTO detectors VALUES (?, ?, ?, ?, ?, ?, ?)", moment.name, kind, moment.version,
            cell["value"], cell["level"], cell["since"], json.dumps(shown),
        )  # fmt: skip

    def _data(self, stream: Stream) -> dict[str, Any]:
        """Whether too many rows could not be used: a fact, not a test, so it has no share of the budget."""
        total = stream.rows + stream.bad
        share = stream.bad / total if total else 0.0
        level = DRIFTED if share > self.drift.bad_rows_share else OK
        found = self.state.rows(
            "SELECT level, since FROM detectors WHERE name = ? AND kind = ? AND version = ?",
            stream.name, _data_kind(stream), stream.version,
        )  # fmt: skip
        before = found[0]["level"] if found else OK
        self._changed(_moment(stream), "data", (before, level))
        since = found[0]["since"] if found and before == level else stream.stop
        return {
            "kind": "data", "level": level, "score": share / self.drift.bad_rows_share, "p_value": None,
            "since": None if level == OK else since, "value": 0.0, "evidence": 0.0, "rows": total,
            "verdict": "drifted" if level == DRIFTED else "stable", "drifted": sorted(+stream.faults), "columns": {},
        }  # fmt: skip

    def _changed(self, moment: Moment, kind: str, levels: tuple[str, str]) -> None:
        if levels[0] != levels[1]:
            self.state.tell(moment.name, f"{kind}: {levels[0]} -> {levels[1]}", time=moment.stop)

    def _remember_cells(self, stream: Stream, cells: Sequence[Mapping[str, Any]]) -> None:
        for cell in cells:
            self.remember(_moment(stream), _data_kind(stream) if cell["kind"] == "data" else cell["kind"], cell)

    def volume_fault(self, name: str) -> str:
        """Returns what is wrong with the number of a task's rows, in words; empty where nothing is."""
        found = self.state.rows("SELECT cell FROM detectors WHERE name = ? AND kind = ?", name, VOLUME)
        cell: dict[str, Any] = json.loads(found[0]["cell"]) if found else {"level": OK}
        if cell["level"] != DRIFTED:
            return ""
        moved = cell["moved"]
        return f"{moved['current']:,.0f} {moved['part']} where {moved['reference']:,.0f} are usual."

    def volume_diagnosis(self, name: str) -> dict[str, Any] | None:
        """Returns the diagnosis of a task whose rows have stopped or flood in, which no window shows; else None."""
        fault = self.volume_fault(name)
        found = diagnose({"data": DRIFTED}, priors=None, floor=1.0, faults=fault, is_labelled=False) if fault else None
        return None if found is None else found.to_json()

    def _diagnose(self, stream: Stream, priors: PriorShift | None) -> dict[str, Any] | None:
        levels = self.levels(stream.name)
        volume = self.volume_fault(stream.name)
        if DRIFTED in (levels.pop("data-labels", OK), levels.pop(VOLUME, OK), levels.get("data", OK)):
            levels["data"] = DRIFTED
        is_labelled = stream.source == LABELS or bool(self.state.windows(stream.name, source=LABELS, limit=1))
        if is_labelled and stream.source != LABELS:
            newest = self.state.windows(stream.name, source=LABELS, limit=1)[0]
            kept = newest.get("priors")
            priors = PriorShift(kept["reference"], kept["current"], kept["effect"]) if kept else None
        total = stream.rows + stream.bad
        faults = ", ".join(f"{rows} of {total} rows: {what}" for what, rows in sorted((+stream.faults).items()))
        found = diagnose(
            levels, priors=priors, floor=self.drift.effect_floor, is_labelled=is_labelled,
            faults=volume or faults or "Rows of an earlier window could not be used.",
        )  # fmt: skip
        return None if found is None else found.to_json()


def _moment(stream: Stream) -> Moment:
    return Moment(stream.name, stream.version, stream.stop)


def _data_kind(stream: Stream) -> str:
    return "data-labels" if stream.source == LABELS else "data"


def _priors(reference: Reference, stream: Stream) -> PriorShift | None:
    """Shares of the classes in the reference and now; None for traffic, which has no labels."""
    task = reference.task
    part = reference.profile.parts.get("label")
    if task is None or part is None or task.kind not in _EXCLUSIVE or stream.source != LABELS:
        return None
    found = stream.profile.parts["label"].sketch
    return prior_shift(task.classes, reference=_shares(task, part.sketch), current=_shares(task, found))


def _shares(task: Task, sketch: Any) -> NDArray[np.float64]:
    assert isinstance(sketch, Categories)
    counts = np.asarray([sketch.counts.get(name, 0) for name in task.classes], dtype=np.float64)
    shares: NDArray[np.float64] = counts / max(counts.sum(), 1.0)
    return shares


def _metrics(reference: Reference, stream: Stream) -> dict[str, dict[str, float]]:
    """`realised` from labels, or `estimated` from probabilities alone; beside them the `reference`."""
    task = reference.task
    assert task is not None
    outputs = Outputs(**{name: stream.kept.get(name) for name in ("probabilities", "labels", "values")})
    if stream.source == LABELS:
        if "encoded" not in stream.kept:
            return {}
        measure = catalog.load(catalog.KINDS[task.kind].metrics)
        found = measure(task, stream.kept["encoded"], outputs)
        realised = {name: float(value) for name, value in found.items() if np.ndim(value) == 0}
        return {"realised": realised, "reference": {n: v for n, v in reference.metrics.items() if n in realised}}
    estimated = _estimates(task, outputs, reference=reference.profile, current=stream.profile)
    return {"estimated": estimated} if estimated else {}


def _estimates(task: Task, outputs: Outputs, *, reference: Profile, current: Profile) -> dict[str, float]:
    """What calibrated probabilities promise (CBPE), corrected for covariate shift: each answer counts as right as often
    as answers of the reference did that promised as much (`_kept`); macro-F1 from expected counts, uncorrected.

    Source: NannyML's documentation, "Confidence-based Performance Estimation"; Bialek et al. 2024, "Estimating Model
    Performance Under Covariate Shift Without Labels", arXiv:2401.08348, section 4 (differs: weights by what is promised
    alone, which counts keep). Blind to concept shift by construction.
    """
    part = current.parts.get("estimate.accuracy")
    if part is None or not isinstance(part.sketch, Mean) or not part.sketch.rows:
        return {}
    if task.per_word:
        return {"accuracy": float(np.clip(part.sketch.mean, 0.0, 1.0))}
    if outputs.probabilities is None:
        return {}
    found = {"accuracy": float(_kept(task, outputs, reference).mean())}
    if task.kind in _EXCLUSIVE and outputs.labels is not None:
        shares = outputs.probabilities.astype(np.float64)
        chosen = np.eye(len(task.classes))[outputs.labels.astype(np.int64)]
        right = (chosen * shares).sum(axis=0)
        found["macro_f1"] = float((2 * right / np.maximum(chosen.sum(axis=0) + shares.sum(axis=0), 1e-9)).mean())
    return {name: float(np.clip(value, 0.0, 1.0)) for name, value in found.items()}


def _kept(task: Task, outputs: Outputs, reference: Profile) -> NDArray[np.float64]:
    """The chance (N,) that each answer is right, by the reference's answers that promised as much; where these are few,
    its own promise, less what promises were too high by on the whole."""  # noqa: D209
    chances = chance_of_right(task, outputs)
    part = reference.parts.get("quality.calibration")
    counts = part.sketch.counts if part is not None and isinstance(part.sketch, Categories) else {}
    own = chances - _optimism(reference)
    kept = {}
    for promised in set(words := tenths(chances)):
        right, wrong = (counts.get(f"{promised}: {said}", 0) for said in (RIGHT, WRONG))
        if right + wrong >= _LEAST_KEPT:
            kept[promised] = right / (right + wrong)
    return np.asarray([kept.get(word, chance) for word, chance in zip(words, own.tolist(), strict=True)])


def _optimism(reference: Profile) -> float:
    promised, kept = reference.parts.get("estimate.accuracy"), reference.parts.get("quality.correct")
    if promised is None or kept is None:
        return 0.0
    assert isinstance(promised.sketch, Mean) and isinstance(kept.sketch, Categories)
    return promised.sketch.mean - kept.sketch.counts.get("yes", 0) / max(kept.sketch.rows, 1)
