"""Running a compiled pipeline here: what it shows, what it keeps, what it refuses to believe."""

import io
import os
import re
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import NamedTuple

import pytest
from kfp import compiler, dsl

from mtlops.errors import ArtefactError, DataError, PlatformError
from pipelines.local import copy_bundle, run_pipeline, table


@dsl.component(base_image="python:3", install_kfp_package=False)
def make(bundle: dsl.Output[dsl.Model], text: str) -> str:
    import logging
    import os
    from pathlib import Path

    from mtlops.errors import DataError

    logging.getLogger("mtlops").info("rows=%s", text)
    if text == "bad":
        raise DataError("rows.csv:3: a cell is missing.")
    if text == "crash":
        raise ZeroDivisionError("division by zero")
    if text in ("die", "vanish"):
        os._exit(9 if text == "die" else 0)
    if text != "nothing":
        Path(bundle.path).mkdir(parents=True)
        (Path(bundle.path) / "manifest.json").write_text(text)
    return text


@dsl.component(base_image="python:3", install_kfp_package=False)
def read(bundle: dsl.Input[dsl.Model]) -> str:
    from pathlib import Path

    return (Path(bundle.path) / "manifest.json").read_text()


class Outputs(NamedTuple):
    bundle: dsl.Model


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    @dsl.pipeline(name="small")
    def pipeline(text: str) -> Outputs:
        made = make(text=text)
        read(bundle=made.outputs["bundle"]).set_caching_options(False)
        return Outputs(bundle=made.outputs["bundle"])

    path = tmp_path_factory.mktemp("compiled") / "small.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    return path


def test_run_keeps_outputs_log_and_progress(compiled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    echo = io.StringIO()
    run = run_pipeline(compiled, {"text": "one"}, workspace=tmp_path, echo=echo)
    assert [(task.name, task.state, task.cached) for task in run.tasks] == [
        ("make", "SUCCESS", False),
        ("read", "SUCCESS", False),
    ]
    assert "make: started\n  rows=one\nmake: SUCCESS after" in echo.getvalue()
    assert "rows=one" in run.log.read_text()
    assert "rows=one" in Path(run.tasks[0].log).read_text()
    assert "rows=one" not in Path(run.tasks[1].log).read_text()
    assert capsys.readouterr().out == ""
    rows = table(run).splitlines()
    assert rows[0].split() == ["task", "state", "seconds", "cached", "outputs"]
    assert re.fullmatch(r"make\s+SUCCESS\s+\d+\.\d\s+no\s+bundle", rows[1])


def test_second_run_takes_cached_outputs_but_not_of_other_values(compiled: Path, tmp_path: Path) -> None:
    for text, cached in (("one", False), ("one", True), ("two", False)):
        run = run_pipeline(compiled, {"text": text}, workspace=tmp_path)
        assert [task.cached for task in run.tasks] == [cached, False]
        copy_bundle(run, tmp_path / "bundle")
        assert (tmp_path / "bundle/manifest.json").read_text() == text


@pytest.mark.parametrize("text", ["one", "crash"])
def test_it_leaves_no_temporary_files(
    compiled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    """kfp.local and each of its tasks make folders of their own and forget them: a loop would fill the disk."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)
    (tmp_path / "tmp").mkdir()
    with nullcontext() if text == "one" else pytest.raises(PlatformError):
        run_pipeline(compiled, {"text": text}, workspace=tmp_path / "runs")
    assert list((tmp_path / "tmp").iterdir()) == []
    assert tempfile.gettempdir() == os.environ["TMPDIR"] == str(tmp_path / "tmp")


def test_failed_task_is_named_with_its_reason_and_log(compiled: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        run_pipeline(compiled, {"text": "bad"}, workspace=tmp_path)
    said = str(caught.value)
    assert said.startswith("pipeline task make failed (rows.csv:3: a cell is missing.). Its log: ")
    log = Path(said.rpartition(": ")[2])
    assert log.name == "01-make.txt"
    assert "Traceback" in log.read_text()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("crash", "ZeroDivisionError: division by zero"),
        ("die", "it gave no reason; it may have been killed, or have run out of memory"),
        ("vanish", "it disappeared before it wrote its result"),
    ],
)
def test_every_way_to_fail_is_a_failure(compiled: Path, tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(PlatformError, match=rf"pipeline task make failed \({reason}\)\. Its log: .*/logs/01-make\.txt"):
        run_pipeline(compiled, {"text": text}, workspace=tmp_path)


def test_success_without_the_promised_output_is_not_believed(tmp_path: Path) -> None:
    @dsl.pipeline(name="empty")
    def pipeline(text: str) -> Outputs:
        return Outputs(bundle=make(text=text).outputs["bundle"])

    path = tmp_path / "empty.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    with pytest.raises(PlatformError, match="task make left no output 'bundle'"):
        run_pipeline(path, {"text": "nothing"}, workspace=tmp_path)


def test_missing_pipeline_is_said(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="python -m pipelines compile"):
        run_pipeline(tmp_path / "training.yaml", {}, workspace=tmp_path)
