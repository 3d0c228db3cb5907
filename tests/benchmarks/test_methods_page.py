"""The page of methods shows what was measured, and the published cost of AdapterDrop."""

from pathlib import Path

import pytest

from mtlops.files import write_json
from tests.benchmarks.methods import METHODS
from tests.benchmarks.methods_page import part, relative_cost, spread


def test_cost_is_the_published_one() -> None:
    assert 1 - relative_cost(5, layers=12, tasks=8) == pytest.approx(0.393, abs=5e-4)  # Rücklé et al. 2021, table 2
    assert relative_cost(0) == 1


def test_spread_needs_two_values() -> None:
    assert spread([0.5]) == "0.500"
    assert spread([0.5, 0.7]) == "0.600 ± 0.141"


def test_a_page_of_what_is_there(tmp_path: Path) -> None:
    write_json(tmp_path / "about.json", {"rows": 8, "train": 4, "valid": 2, "test": 2, "epochs": 1, "batch_size": 2,
                                         "noise": 0.1, "set": ["train.precision=auto"]})  # fmt: skip
    for number, (method, seed, f1) in enumerate(
        [("pfeiffer, n = 0", 0, 0.8), ("pfeiffer, n = 3", 0, 0.7), ("pfeiffer, n = 3", 1, 0.78), ("lora", 0, 0.9)]
    ):
        write_json(tmp_path / f"{number}-{seed}.json", {
            "method": method, "seed": seed, "group": METHODS[method].group, "f1": {"tone": f1, "topic": f1},
            "fill_seconds": 3.0, "fill_rows": 6, "train_seconds": 2.0, "peak_mb": 100.0, "trunk_parameters": 1000,
            "own_parameters": 10, "shared_parameters": 0, "bytes_per_task": 4000.0, "shared_bytes": 0, "serve_ms": 5.0,
            "encoder_ms": 4.0,
        })  # fmt: skip
    lines = part(tmp_path, methods=["lora", "ia3", "robust"])
    assert "Not measured yet: ia3; robust." in lines
    assert any("--rows 8 --seeds 0,1 --set train.precision=auto`" in line for line in lines)
    assert "| pfeiffer, n = 3 | 2 | 0.740 ± 0.057 | 0.740 ± 0.057 | 0.740 ± 0.057 | -6.0 |" in lines
    assert "| lora | 1 | 0.900 | 0.900 | 0.900 | +10.0 |" in lines
    assert any(line.startswith("| lora | 10 | 1.00 | 4 | 2 |") for line in lines)
    assert any(line.startswith("| 3 | 0.740 ± 0.057 |  | 0.57 |") for line in lines)
