"""The whole way, three times: as commands, as DVC stages and as the compiled Kubeflow pipeline."""

import json
import shutil
from pathlib import Path

import pytest

from tests.clones import Clone, make_clone, same_files, set_value
from tests.tiny_suite import Workspace

pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("clone")]

STEPS = ("prepare", "validate", "train", "evaluate", "export")
REPEATABLE = ("reports/validation.json", "reports/evaluation.json", "reports/decision.json")


@pytest.fixture(scope="module")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone in which `mtlops <step>` was run for every step, all in one process to save its imports."""
    clone = make_clone(tmp_path_factory.mktemp("commands") / "mtlops")
    program = f"from mtlops.cli import main; raise SystemExit(max(main([step, '--quiet']) for step in {STEPS}))"
    clone.run("python", "-c", program)
    return clone


@pytest.fixture(scope="module")
def kubeflow(tmp_path_factory: pytest.TempPathFactory) -> tuple[Clone, str]:
    """A clone in which the compiled pipeline was run, and what that printed."""
    clone = make_clone(tmp_path_factory.mktemp("kubeflow") / "mtlops")
    printed = clone.run("python", "-m", "pipelines", "run", "--reason", "it's a test", "--out", "models/candidate")
    return clone, printed


def test_commands_stages_and_pipeline_make_the_same_bundle(
    clone: Clone, commands: Clone, kubeflow: tuple[Clone, str], finished: Workspace
) -> None:
    runs = [clone.folder, commands.folder, kubeflow[0].folder, finished.root]
    bundle = same_files([run / "models/candidate" for run in runs])
    assert {"manifest.json", "model.onnx", "golden.json", "card.md", "trunk/model.safetensors"} <= bundle.keys()


def test_commands_and_stages_make_the_same_files_on_the_way(clone: Clone, commands: Clone) -> None:
    for name in ("data/prepared", "data/encoder", "models/trained"):
        same_files([clone.folder / name, commands.folder / name])
    for name in REPEATABLE:
        assert (clone.folder / name).read_bytes() == (commands.folder / name).read_bytes()


def test_bundle_answers_without_torch(clone: Clone) -> None:
    program = (
        "import sys; from mtlops.cli import main; code = main(['predict', 'the film was great', '--json']);"
        "sys.exit(code or ('torch' in sys.modules and 'torch was imported') or 0)"
    )
    printed = clone.run("python", "-c", program)
    [row] = json.loads(printed.splitlines()[-1])["predictions"]
    assert set(row["tasks"]) == {"mood", "grade", "stars", "about", "topic"}


def test_second_repro_does_nothing(clone: Clone) -> None:
    assert "Running stage" not in clone.run(".venv/bin/dvc", "repro")


def test_dvc_needs_no_activated_environment(clone: Clone) -> None:
    printed = clone.run(
        "env", "-i", "PATH=/usr/bin:/bin", ".venv/bin/dvc", "repro", "--force", "--single-item", "prepare"
    )
    assert "Running stage 'prepare'" in printed


def test_clone_of_the_results_is_verified_without_any_data(clone: Clone, tmp_path: Path) -> None:
    clone.run("git", "clone", "--quiet", ".", str(tmp_path / "fresh"))
    fresh = Clone(tmp_path / "fresh")
    assert not (fresh.folder / "data/prepared").exists()
    assert "Running stage" not in fresh.run("dvc", "repro", "--allow-missing", "--dry")


@pytest.mark.parametrize(
    ("file", "old", "new", "stages"),
    [
        ("params.yaml", "resamples: 100", "resamples: 101", ["evaluate", "export"]),
        ("params.yaml", "golden_rows: 2", "golden_rows: 3", ["export"]),
        ("params.yaml", "epochs: 2", "epochs: 3", ["train", "evaluate", "export"]),
        ("params.yaml", "label: grade", "label: mood", list(STEPS)),
        ("data/sources/reviews.csv", "text,mood", "text,tone", ["prepare"]),
    ],
)
def test_a_change_repeats_only_what_depends_on_it(
    clone: Clone, tmp_path: Path, file: str, old: str, new: str, stages: list[str]
) -> None:
    changed = Clone(tmp_path / "changed")
    shutil.copytree(clone.folder, changed.folder, symlinks=True)
    set_value(changed.folder / file, old, new)
    printed = changed.run(".venv/bin/dvc", "status", "--json")
    assert set(json.loads(printed[printed.index("{") :])) == set(stages)


def test_a_changed_check_repeats_evaluate_and_not_train(clone: Clone, tmp_path: Path) -> None:
    changed = Clone(tmp_path / "changed")
    shutil.copytree(clone.folder, changed.folder, symlinks=True)
    set_value(changed.folder / "data/sources/checks.yaml", "the phone was very good", "the phone was very great")
    printed = changed.run(".venv/bin/dvc", "repro", "evaluate")
    assert [step for step in STEPS if f"Running stage '{step}'" in printed] == ["prepare", "validate", "evaluate"]


def test_experiment_metrics_and_their_difference(clone: Clone, tmp_path: Path) -> None:
    work = Clone(tmp_path / "work")
    shutil.copytree(clone.folder, work.folder, symlinks=True)
    printed = work.run(".venv/bin/dvc", "exp", "run", "--set-param", "export.golden_rows=3", "--name", "more-golden")
    assert "Running stage 'export'" in printed
    assert "Running stage 'train'" not in printed
    difference = json.loads(work.run(".venv/bin/dvc", "metrics", "diff", "--json"))
    assert set(difference) == {"reports/export.json"}
    assert "reports/evaluation.json" in json.loads(work.run(".venv/bin/dvc", "metrics", "show", "--json"))[""]["data"]


def test_plots_show_every_task(clone: Clone) -> None:
    plots = json.loads(clone.run(".venv/bin/dvc", "plots", "show", "--json"))
    assert not plots.get("errors")
    assert len(plots["data"]) == 3
    for [plot] in plots["data"].values():
        rows = plot["content"]["data"]["values"]
        assert {row["task"] for row in rows} == {"mood", "grade", "stars", "about", "topic"}


def test_pipeline_prints_a_table_and_hands_over_the_bundle(kubeflow: tuple[Clone, str]) -> None:
    clone, printed = kubeflow
    table = printed[printed.index("task      state") :].splitlines()
    ran = [line.split()[:2] for line in table[1:-1]]
    assert {name for name, _ in ran} == {*STEPS, "show"}
    assert [name for name, _ in ran].count("show") == 5
    assert {state for _, state in ran} == {"SUCCESS"}
    assert table[-1].startswith("verdict PROMOTE, bundle models/candidate, log ")
    assert (clone.folder / "models/candidate/manifest.json").is_file()


def test_pipeline_takes_unchanged_tasks_from_its_cache(kubeflow: tuple[Clone, str]) -> None:
    clone, _ = kubeflow
    arguments = ("--set", "export.golden_rows=2", "--quiet", "--json", "--out", "models/again")
    run = json.loads(clone.run("python", "-m", "pipelines", "run", *arguments).splitlines()[-1])
    cached = {task["name"] for task in run["tasks"] if task["cached"]}
    assert cached == {"prepare", "validate", "train"}
    same_files([clone.folder / "models/candidate", clone.folder / "models/again"])


def test_pipeline_stops_where_the_data_breaks_a_promise(clone: Clone, tmp_path: Path) -> None:
    broken = Clone(tmp_path / "broken")
    shutil.copytree(clone.folder, broken.folder, symlinks=True)
    reviews = broken.folder / "data/sources/reviews.csv"
    reviews.write_text(reviews.read_text() + "we loved the moon and the planet,splendid,high,4.5,story\n")
    printed = broken.run("python", "-m", "pipelines", "run", "--quiet", "--out", "models/new", code=3)
    assert "pipeline task validate failed" in printed
    assert "splendid" in printed
    assert not (broken.folder / "models/new").exists()
