"""The committed pipeline, run here with a registry: it promotes when, and only when, the gate says so."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from mtlops.bundle import Bundle
from mtlops.registry import Registry
from pipelines.compiling import COMPILED
from pipelines.local import Run, run_pipeline
from pipelines.requests import read_request
from tests.clones import ROOT
from tests.tiny_suite import Workspace, make_workspace

pytestmark = pytest.mark.e2e


class Runs:
    """Runs of the pipeline in one workspace, with one registry."""

    def __init__(self, work: Workspace) -> None:
        self._work = work
        self.registry = work.root / "registry"

    def run(self, *overrides: str, reason: str = "it's a test") -> tuple[Run, bool]:
        """Returns the run, and whether its promotion ran."""
        request = read_request(
            self._work.params_file, overrides=overrides, reason=reason, registry=str(self.registry),
            data_repo=str(self._work.root), tasks="topic",
        )  # fmt: skip
        run = run_pipeline(ROOT / COMPILED, request.arguments(), workspace=self._work.root / "runs")
        assert {task.state for task in run.tasks} == {"SUCCESS"}
        assert {"evaluate", "export"} <= {task.name for task in run.tasks}
        return run, "promote" in {task.name for task in run.tasks}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    with pytest.MonkeyPatch.context() as patch:
        work = make_workspace(tmp_path_factory.mktemp("promotion"))
        patch.setenv("MTLOPS_WORK", str(work.root / "work"))
        patch.setenv("PYTHONPATH", str(ROOT))
        yield Runs(work)


def test_promotion_runs_when_and_only_when_the_verdict_is_promote(runs: Runs) -> None:
    run, promoted = runs.run("gates.floor={topic: 1.1}")
    assert (run.outputs["verdict"], promoted) == ("REJECT", False)
    assert not runs.registry.exists()

    run, promoted = runs.run(reason="the first one")
    bundle = Bundle.open(Path(run.outputs["bundle"].path))
    assert (run.outputs["verdict"], promoted) == ("PROMOTE", True)
    [entry] = Registry(runs.registry).history()
    assert (entry.bundle_id, entry.reason, entry.previous) == (bundle.id, "the first one", None)

    run, promoted = runs.run()
    assert (run.outputs["verdict"], promoted) == ("HOLD", False)
    reports = next(run.log.parent.glob("*/evaluate/reports"))
    decision = json.loads((reports / "decision.json").read_text(encoding="utf-8"))
    assert decision["champion"] == bundle.id
    assert len(Registry(runs.registry).history()) == 1
