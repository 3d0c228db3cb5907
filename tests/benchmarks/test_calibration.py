"""The calibration table goes on where it was stopped, and every draw is that of its own seed."""

import json
from pathlib import Path

import pytest

from tests.benchmarks import calibration
from tests.benchmarks.calibration import Cell


def test_a_run_that_was_stopped_goes_on_and_gives_the_same_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "KEPT", tmp_path / "kept.json")
    monkeypatch.setattr(calibration, "_BATCH_SECONDS", 0.0)
    seen: list[int] = []

    def draw(seed: int) -> list[float]:
        seen.append(seed)
        return [float(seed)]

    cells = [Cell("a", 3, draw), Cell("b", 1, draw)]
    kept: dict[str, list[list[float]]] = {}
    assert calibration._fill(cells, kept, seconds=0.0) == 1.0 and not seen
    kept = {"a": [[0.0]]}
    monkeypatch.setattr(calibration, "_BATCH_SECONDS", 10.0)
    assert calibration._fill(cells, kept, seconds=10.0) == 0.0
    assert kept == {"a": [[0.0], [1.0], [2.0]], "b": [[0.0]]} == json.loads((tmp_path / "kept.json").read_text())
    assert sorted(seen) == [0, 1, 2]


def test_alarms_of_null_draws_are_those_of_their_seed() -> None:
    cell = next(cell for cell in calibration.null_cells() if cell.key == "null/2 categories/100")
    assert [cell.draw(seed) for seed in range(20)] == [cell.draw(seed) for seed in range(20)]
    assert sum(cell.draw(seed)[1] for seed in range(50)) <= 3
