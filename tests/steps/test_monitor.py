"""The step `monitor`: the champion's references, the log, one pass; and the component that runs it."""

import json
import shutil
from pathlib import Path

import pytest
from kfp import dsl

from components.monitor import monitor as component
from mtlops.errors import ArtefactError, PlatformError, UsageError
from mtlops.params import parse_params
from mtlops.registry import Registry
from mtlops.steps.monitor import STATE, Monitor, monitor
from tests.watch.logs import MOOD, World, Writer, write_bundle
from tests.watch.test_kills import PARAMS


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    """A registry whose champion is a bundle of references."""
    bundle = write_bundle(tmp_path / "bundle")
    registry = Registry(tmp_path / "registry")
    registry.publish(bundle.folder)
    registry.promote(bundle.id, expect=None, by="test", reason="first")
    return registry


def write_log(tmp_path: Path, registry: Registry, *, shift: float = 0.0, rows: int = 250) -> str:
    champion = registry.champion()
    assert champion is not None
    writer = Writer(tmp_path / "log", champion.bundle_id, name=f"w{champion.version}")
    writer.traffic(World(1, shift=shift), rows, tasks=[MOOD])
    return str(tmp_path / "log")


def test_a_pass_reads_the_champion_and_remembers_beside_it(registry: Registry, tmp_path: Path) -> None:
    log = write_log(tmp_path, registry, shift=1.5)
    found = monitor(parse_params(PARAMS), log=log, registry=registry.url, report=tmp_path / "drift.json")
    assert (found.level, found.levels["mood"], found.levels["stars"]) == ("drifted", "drifted", "ok")
    assert (found.files, found.rows, found.windows) == (1, 250, 1) and found.request is None
    assert (Path(registry.url) / STATE).exists()
    again = monitor(parse_params(PARAMS), log=log, registry=registry.url, report=tmp_path / "drift.json")
    assert (again.files, again.level) == (0, "drifted")


def test_a_promotion_between_two_passes_changes_the_reference(registry: Registry, tmp_path: Path) -> None:
    log = write_log(tmp_path, registry, shift=1.5)
    watcher = Monitor(parse_params(PARAMS), log=log, registry=registry.url)
    assert watcher.once()[0].levels["mood"] == "drifted"
    bundle = write_bundle(tmp_path / "other", seed=9)
    before = registry.champion()
    registry.publish(bundle.folder)
    registry.promote(bundle.id, expect=before.bundle_id, by="test", reason="second")
    write_log(tmp_path, registry)
    done, report = watcher.once()
    watcher.close()
    assert report["bundle"] == bundle.id and done.levels["mood"] == "ok" and done.rows == 250
    assert any("alarms start anew" in event["text"] for event in report["events"])
    assert report["log"]["counts"].get("rows_of_other_bundles", 0) == 0


def test_what_cannot_be_is_said(registry: Registry, tmp_path: Path) -> None:
    params = parse_params(PARAMS)
    with pytest.raises(UsageError, match="needs a registry or a bundle"):
        Monitor(params, log="log")
    with pytest.raises(UsageError, match="needs --state FILE on a local disk"):
        Monitor(params, log="log", registry="memory://registry")
    held = Monitor(params, log="log", registry=registry.url)
    with pytest.raises(PlatformError, match="another monitor is at work"):
        Monitor(params, log="log", registry=registry.url)
    held.close()
    (Path(registry.url) / STATE).write_bytes(b"this is no database, and long enough to be one" * 40)
    with pytest.raises(ArtefactError, match="is no state of a monitor"):
        Monitor(params, log="log", registry=registry.url)


def test_references_of_a_registry_that_is_no_folder(registry: Registry, tmp_path: Path) -> None:
    import fsspec

    system = fsspec.filesystem("memory")
    system.put(registry.url, "/monitored", recursive=True)
    log = write_log(tmp_path, registry, shift=1.5)
    found = monitor(
        parse_params(PARAMS), log=log, registry="memory://monitored", state=tmp_path / "s.sqlite",
        report=tmp_path / "drift.json",
    )  # fmt: skip
    system.rm("/monitored", recursive=True)
    assert found.levels["mood"] == "drifted"


def test_the_component_runs_the_step(registry: Registry, tmp_path: Path) -> None:
    log = write_log(tmp_path, registry, shift=1.5)
    reports, page = (dsl.Artifact(name=name, uri=str(tmp_path / "kfp" / name)) for name in ("reports", "page"))
    Path(page.path).parent.mkdir()
    component.python_func(
        reports=reports, page=page, level=str(tmp_path / "level"), params=PARAMS, log=log, registry=registry.url,
        state=str(tmp_path / "component.sqlite"),
    )  # fmt: skip
    assert (tmp_path / "level").read_text() == "drifted"
    assert "covariate shift" in Path(page.path).read_text()
    monitor(parse_params(PARAMS), log=log, registry=registry.url, report=tmp_path / "cli/drift.json")
    same = json.loads((tmp_path / "cli/drift.json").read_text())
    assert json.loads((Path(reports.path) / "drift.json").read_text()) == same
    shutil.rmtree(tmp_path / "kfp")
