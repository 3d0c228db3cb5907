"""The command line: exit codes, one-line messages, JSON on stdout."""

import inspect
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from mtlops.catalog import load
from mtlops.cli import STEPS, main
from tests.tiny_suite import Workspace, make_workspace


@pytest.mark.parametrize("name", STEPS)
def test_options_are_the_step_s_path_arguments(name: str) -> None:
    arguments = inspect.signature(load(STEPS[name].code)).parameters
    paths = [p for p, argument in arguments.items() if argument.annotation is Path and p != "base"]
    assert list(STEPS[name].paths) == paths


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["trian"], 2, "unknown command 'trian'. Did you mean 'train'?"),
        (["train", "--params", "nothing.yaml"], 2, "nothing.yaml: not found."),
        (["train", "--set", "train.epoch=1"], 2, "train.epoch: unknown key. Did you mean 'epochs'?"),
        (["train", "--tasks", "mod"], 2, "--tasks: no task 'mod'. Did you mean 'mood'?"),
        (["train", "--set", "train.device=cuda"], 2, "train.device: 'cuda', but torch sees no GPU here."),
        (["train"], 4, "data/encoder/encoder.json: not found. Run `mtlops prepare` first."),
        (["evaluate"], 4, "models/trained/model.json: not found. Run `mtlops train` first."),
        (["export"], 4, "models/trained/model.json: not found. Run `mtlops train` first."),
        (["predict", "x"], 4, "models/candidate/manifest.json: not found. Run `mtlops export` first."),
        (["diff", "a", "b"], 4, "a/manifest.json: not found."),
    ],
)
def test_a_mistake_is_one_line_and_an_exit_code(
    arguments: list[str],
    code: int,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    make_workspace(tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == code
    printed = capsys.readouterr()
    last = printed.err.splitlines()[-1]
    assert last.startswith("mtlops: error: ") and message in last and "Traceback" not in printed.err
    assert printed.out == ""


def test_predict_prints_json(finished: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "a film", "b", "--bundle", str(finished.bundle), "--tasks", "mood,stars", "--json"]) == 0
    value = json.loads(capsys.readouterr().out)
    assert [row["text"] for row in value["predictions"]] == ["a film", "b"]
    assert set(value["predictions"][0]["tasks"]) == {"mood", "stars"}
    assert 1 <= value["predictions"][0]["tasks"]["stars"]["value"] <= 5


def test_predict_reads_lines(finished: Workspace) -> None:
    command = [sys.executable, "-m", "mtlops", "predict", "--bundle", str(finished.bundle)]
    done = subprocess.run(command, input="one\ntwo\n", capture_output=True, text=True, check=True)
    assert [line for line in done.stdout.splitlines() if not line.startswith(" ")] == ["one", "two"]


def test_diff_of_a_bundle_with_itself(finished: Workspace, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diff", str(finished.bundle), str(finished.bundle)]) == 0
    assert "changed" not in capsys.readouterr().out


def test_verdict_becomes_an_exit_code_only_when_asked(
    finished: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(finished.root)
    arguments = ["evaluate", "--set", "gates.floor={mood: 1.1}", "--json"]
    arguments += ["--report", str(tmp_path / "evaluation.json"), "--decision", str(tmp_path / "decision.json")]
    assert main(arguments) == 0
    assert json.loads(capsys.readouterr().out)["verdict"] == "REJECT"
    assert main([*arguments, "--exit-code"]) == 6


@pytest.mark.slow
def test_interrupt_is_130_and_leaves_no_output(tmp_path: Path, finished: Workspace) -> None:
    command = [sys.executable, "-m", "mtlops", "train", "--set", "train.epochs=5000", "--set", "train.patience=5000"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [*command, "--out", str(tmp_path / "trained"), "--report", str(tmp_path / "r.json")],
        cwd=finished.root, env=environment, stderr=subprocess.PIPE, text=True,
        # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # noqa: PLW1509 - one thread
    ) as process:  # fmt: skip
        assert process.stderr is not None
        assert any("epoch=1" in line for line in process.stderr)
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=60) == 130
        finally:
            process.kill()
        assert "interrupted" in process.stderr.read()
    assert not (tmp_path / "trained").exists() and not (tmp_path / "r.json").exists()


def test_serve_refuses_an_unknown_provider_before_it_looks_for_a_champion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["serve", "--provider", "quda"]) == 2
    assert "execution provider 'quda' is not installed. Choose one of: " in capsys.readouterr().err
