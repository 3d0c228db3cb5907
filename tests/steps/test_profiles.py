"""Drift of the test rows in evaluation.json, and the references in the bundle, on real runs."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from random import Random

import pyarrow as pa
import pytest

from mtlops.bundle import Bundle
from mtlops.data.prepared import SPLITS, read_manifest, read_split, write_part
from mtlops.decoding import Outputs
from mtlops.drift.profile import ENCODER, Profile
from mtlops.errors import ArtefactError, DataError
from mtlops.files import read_json, write_json
from mtlops.model.predictor import Predictor
from mtlops.serving.champion import Champion
from mtlops.steps.profiles import REFERENCE, Profiler, measure_drift, write_references
from tests.tiny_suite import Workspace


@pytest.fixture(scope="module")
def champion(finished: Workspace) -> Champion:
    bundle = Bundle.open(finished.bundle)
    return Champion(bundle, "memory://", threads=1)


@pytest.fixture(scope="module")
def large(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    """The same project with enough rows to see drift, drawn alike for all splits, and references made of them."""
    root = tmp_path_factory.mktemp("large")
    shutil.copytree(finished.root, root, dirs_exist_ok=True)
    work, prepared = Workspace(root), root / "data/prepared"
    manifest = read_manifest(prepared)
    for task in work.params().tasks():
        rows = pa.concat_tables([read_split(prepared, task.name, split) for split in SPLITS])
        for split, part in manifest["tasks"][task.name]["splits"].items():
            table = _drawn(rows, 12 * part["rows"], name=f"{task.name}-{split}")
            manifest["tasks"][task.name]["splits"][split] = write_part(prepared, part["path"], table, task=task)
    write_json(prepared / "manifest.json", manifest)
    shutil.rmtree(work.bundle / REFERENCE)
    write_references(profiler(work), work.bundle / REFERENCE)
    return work


def _drawn(table: pa.Table, num_rows: int, *, name: str) -> pa.Table:
    random = Random(name)
    words = "the of was fine great battery moon game law year this".split()
    rows = [
        {**row, "row_id": f"{name}-{k}", "group": f"{name}-{k}", "text": f"{row['text']} {random.choice(words)}"}
        for k, row in enumerate(random.choices(table.to_pylist(), k=num_rows))
    ]
    return pa.Table.from_pylist(rows, schema=table.schema)


def profiler(work: Workspace, *overrides: str) -> Profiler:
    paths = work.paths("prepared", "encoder", "trained", "cache")
    predictor = Predictor(paths["trained"], paths["encoder"], cache=paths["cache"])
    return Profiler.open(work.params(*overrides), prepared=paths["prepared"], predictor=predictor)


def with_bundle(champion: Champion, folder: Path) -> Champion:
    """The same model over a bundle whose references were replaced; its manifest is not made again."""
    return replace(champion, bundle=Bundle(folder, champion.bundle.manifest))


def answers(champion: Champion, found: Profiler) -> dict[str, Outputs]:
    return champion.answers({task.name: found.rows(task, "test")["text"].to_pylist() for task in found.tasks})


def test_the_bundle_holds_a_reference_of_each_task_bound_to_its_trunk(finished: Workspace) -> None:
    bundle = Bundle.open(finished.bundle)
    names = sorted(path.name for path in (bundle.folder / REFERENCE).iterdir())
    assert names == sorted([ENCODER, *bundle.manifest["tasks"]])
    assert f"{REFERENCE}/mood/profile.json" in bundle.manifest["files"]
    trunk = bundle.embedding_digest
    prepared = read_manifest(finished.root / "data/prepared")["tasks"]["mood"]["splits"]
    rows = {split: part["rows"] for split, part in prepared.items()}
    parts = Profile.load(bundle.folder / REFERENCE / "mood", trunk=trunk).parts
    assert {part.kind for part in parts.values()} == {
        "input",
        "embedding",
        "prediction",
        "estimate",
        "label",
        "quality",
    }
    for name, part in parts.items():
        held_out = part.kind in ("prediction", "estimate", "quality")
        assert part.sketch.rows == rows["valid"] + rows["test"] + (0 if held_out else rows["train"]), name
    everything = Profile.load(bundle.folder / REFERENCE / ENCODER, trunk=trunk)
    assert {part.kind for part in everything.parts.values()} == {"input", "embedding"}
    with pytest.raises(ArtefactError, match="belongs to encoder"):
        Profile.load(bundle.folder / REFERENCE / "mood", trunk="0" * 64)


def test_references_are_the_same_bytes_when_made_again(finished: Workspace, tmp_path: Path) -> None:
    write_references(profiler(finished), tmp_path)
    for path in sorted(tmp_path.rglob("profile.*")):
        assert path.read_bytes() == (finished.bundle / REFERENCE / path.relative_to(tmp_path)).read_bytes()


def test_evaluation_says_how_the_test_rows_differ_from_the_training_rows(finished: Workspace) -> None:
    content = read_json(finished.root / "reports/evaluation.json", made_by="mtlops evaluate")
    for name, task in content["tasks"].items():
        cells = {cell["kind"]: cell for cell in task["drift"]["train"]}
        assert list(cells) == ["input", "embedding", "label"], name
        for cell in cells.values():
            assert cell["verdict"] in ("drifted", "stable", "insufficient data")
            assert cell["rows"] == task["rows"]["test"]
        assert task["drift"]["reference"] == []


def test_the_champions_answers_are_compared_with_its_own_reference(large: Workspace, champion: Champion) -> None:
    found, opponent = profiler(large), with_bundle(champion, large.bundle)
    drift = measure_drift(found, champion=opponent, answers=answers(opponent, found))
    for name, cells in drift.items():
        verdicts = {cell["kind"]: cell["verdict"] for cell in cells["reference"]}
        assert verdicts.keys() - {"estimate"} == {"input", "embedding", "prediction", "label", "quality"}, name
        assert "drifted" not in verdicts.values(), name
    assert all(cell["verdict"] == "stable" for cell in drift["mood"]["reference"])
    json.dumps(drift, allow_nan=False)


def test_planted_drift_is_found_for_its_task_and_kind_only(large: Workspace, champion: Champion) -> None:
    found, opponent = profiler(large), with_bundle(champion, large.bundle)
    planted = answers(opponent, found)
    surer = planted["mood"].probabilities[:, ::-1]
    planted["mood"] = Outputs(probabilities=surer, labels=surer.argmax(axis=1))
    drift = measure_drift(found, champion=opponent, answers=planted)
    alarms = {(t, c["kind"]) for t, cells in drift.items() for c in cells["reference"] if c["verdict"] == "drifted"}
    assert ("mood", "prediction") in alarms and alarms <= {
        ("mood", "prediction"),
        ("mood", "estimate"),
        ("mood", "quality"),
    }
    cell = next(cell for cell in drift["mood"]["reference"] if cell["kind"] == "prediction")
    assert cell["score"] > 1 and cell["p_adjusted"] < 0.05 and "prediction.probability.good" in cell["drifted"]


def test_a_champion_without_references_or_with_other_classes_is_compared_as_far_as_it_goes(
    finished: Workspace, champion: Champion, tmp_path: Path
) -> None:
    folder = tmp_path / "bundle"
    shutil.copytree(finished.bundle, folder)
    shutil.rmtree(folder / REFERENCE / "mood")
    found = profiler(finished, "suite.tasks.topic.classes=[sport, law, space]")
    drift = measure_drift(found, champion=with_bundle(champion, folder), answers={})
    assert drift["mood"]["reference"] == []
    assert [cell["kind"] for cell in drift["topic"]["reference"]] == ["input", "embedding"]
    manifest = {k: v for k, v in champion.bundle.manifest.items() if k not in ("embedding", "graph")}
    earlier = replace(champion, bundle=Bundle(finished.bundle, manifest))
    assert measure_drift(found, champion=earlier, answers={})["topic"]["reference"] == []


def test_columns_of_the_user_are_watched_or_refused(finished: Workspace, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"drift\.columns\.nowhere: no task has such a column"):
        write_references(profiler(finished, "drift.columns={nowhere: numeric}"), tmp_path)
    write_references(profiler(finished, "drift.columns={source: categorical}"), tmp_path)
    facts = read_json(tmp_path / "mood/profile.json", made_by="")
    assert facts["columns"]["column.source"]["kind"] == "input"
