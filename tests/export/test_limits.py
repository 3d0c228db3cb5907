"""Limits of an exported bundle, at their edges, and in the report of a real export."""

from pathlib import Path
from typing import Any

import pytest

from mtlops.export.limits import check_limits
from mtlops.files import read_json
from mtlops.params import Gates
from mtlops.steps.export import export
from tests.tiny_suite import Workspace

FOUND = {"latency_ms": 12.0, "num_bytes": 90_000_000, "max_error": 1e-5, "tolerance": 1e-4, "golden_rows": 8}


@pytest.mark.parametrize(
    "limits, found, broken",
    [
        ({}, {}, None),
        ({"max_latency_ms": 12.0, "max_bundle_mb": 90.0}, {}, None),
        ({"max_latency_ms": 11.9}, {}, "one text takes 12.0 ms here, gates.max_latency_ms allows 11.9."),
        ({"max_bundle_mb": 89.9}, {}, "the bundle has 90.0 MB, gates.max_bundle_mb allows 89.9."),
        ({}, {"max_error": 2e-4}, "ONNX Runtime and PyTorch differ by 2.0e-04 (export.tolerance 0.0001)."),
    ],
)
def test_a_broken_limit_is_named(limits: dict[str, Any], found: dict[str, Any], broken: str | None) -> None:
    result = check_limits(Gates(**limits), **FOUND | found)
    assert result.passed == (broken is None)
    if broken:
        assert result.reasons == (broken,)
    else:
        assert len(result.reasons) == 4


@pytest.mark.slow
def test_export_writes_what_promote_asks_for(finished: Workspace, tmp_path: Path) -> None:
    usual = read_json(finished.root / "reports/export.json", made_by="")
    assert usual["limits"]["passed"]
    assert "gates.max_bundle_mb sets no limit." in usual["limits"]["reasons"][-1]
    export(
        finished.params("gates.max_bundle_mb=0.001"), out=tmp_path / "bundle", report=tmp_path / "export.json",
        **finished.paths("prepared", "encoder", "trained", "cache", "evaluation", "decision"),
    )  # fmt: skip
    limits = read_json(tmp_path / "export.json", made_by="")["limits"]
    assert not limits["passed"]
    (reason,) = limits["reasons"]
    assert reason.endswith("gates.max_bundle_mb allows 0.001.")
