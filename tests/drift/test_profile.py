"""Profiles on disk: bytes, refusals, merging."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mtlops.drift.columns import Column
from mtlops.drift.profile import Profile
from mtlops.errors import ArtefactError
from tests.drift.test_sketches import SETTINGS, sample

TRUNK = "a" * 64


def columns(num_rows: int, *, seed: int) -> dict[str, Column]:
    return {
        "words": Column("input", "numeric", sample("numeric", num_rows, seed=seed)),
        "country": Column("input", "categorical", sample("categorical", num_rows, seed=seed)),
        "embedding": Column("embedding", "embedding", sample("embedding", num_rows, seed=seed)),
    }


@pytest.fixture(scope="module")
def reference() -> Profile:
    return Profile.fit("mood", columns(600, seed=0), trunk=TRUNK, settings=SETTINGS)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_same_rows_give_the_same_bytes_and_read_back(reference: Profile, tmp_path: Path) -> None:
    reference.save(tmp_path / "a")
    Profile.fit("mood", columns(600, seed=0), trunk=TRUNK, settings=SETTINGS).save(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert list(files(tmp_path / "a")) == ["profile.json", "profile.safetensors"]
    again = Profile.load(tmp_path / "a", trunk=TRUNK)
    again.save(tmp_path / "c")
    assert files(tmp_path / "c") == files(tmp_path / "a")


def test_partitions_merge_to_the_profile_of_all_rows(reference: Profile, tmp_path: Path) -> None:
    parts = [reference.of(columns(rows, seed=seed)) for seed, rows in ((1, 200), (2, 1), (3, 700))]
    (parts[0] + parts[1] + parts[2]).save(tmp_path / "a")
    (parts[2] + (parts[0] + parts[1])).save(tmp_path / "b")
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert {part.sketch.rows for part in (parts[0] + parts[1] + parts[2]).parts.values()} == {901}


def test_findings_come_by_kind_and_survive_the_disk(reference: Profile, tmp_path: Path) -> None:
    reference.save(tmp_path)
    current = columns(900, seed=4)
    findings = reference.compare(reference.of(current), SETTINGS)
    assert {kind: list(found) for kind, found in findings.items()} == {
        "input": ["words", "country"], "embedding": ["embedding"],
    }  # fmt: skip
    stored = Profile.load(tmp_path, trunk=TRUNK)
    assert stored.compare(stored.of(current), SETTINGS) == findings


def test_a_missing_column_is_insufficient_data_and_a_strange_one_is_left_out(reference: Profile) -> None:
    current = columns(300, seed=4)
    strange = {"words": current["words"], "other": current["words"]}
    findings = reference.compare(reference.of(strange), SETTINGS)
    assert findings["input"]["words"].p_value is not None
    assert findings["input"]["country"].reason == "0 rows, 50 are needed"
    assert "other" not in findings["input"]


def test_another_encoder_is_refused(reference: Profile, tmp_path: Path) -> None:
    reference.save(tmp_path)
    with pytest.raises(ArtefactError, match="belongs to encoder aaaaaaaaaaaaaaaa, the rows were read by bbbbbbbbbbbb"):
        Profile.load(tmp_path, trunk="b" * 64)
    other = Profile.fit("mood", columns(600, seed=0), trunk="b" * 64, settings=SETTINGS)
    for act in (reference.__add__, lambda profile: reference.compare(profile, SETTINGS)):
        with pytest.raises(ArtefactError, match="not comparable") as error:
            act(other)
        assert error.value.exit_code == 4


def test_a_profile_of_another_reference_is_refused(reference: Profile) -> None:
    other = Profile.fit("mood", columns(600, seed=9), trunk=TRUNK, settings=SETTINGS)
    with pytest.raises(ArtefactError, match="column 'words' was counted against another reference"):
        reference.compare(other, SETTINGS)
    with pytest.raises(ArtefactError, match="column 'embedding'"):
        _ = reference + reference.without("embedding")


def test_damage_is_an_artefact_error(reference: Profile, tmp_path: Path) -> None:
    reference.save(tmp_path)
    facts = json.loads((tmp_path / "profile.json").read_text())
    arrays = (tmp_path / "profile.safetensors").read_bytes()
    (tmp_path / "profile.safetensors").write_bytes(arrays[:100])
    with pytest.raises(ArtefactError, match=r"profile\.safetensors: cannot be read"):
        Profile.load(tmp_path, trunk=TRUNK)
    (tmp_path / "profile.safetensors").write_bytes(arrays)
    for change, message in (({"schema_version": 9}, "schema_version 9"), (None, "is not valid JSON")):
        (tmp_path / "profile.json").write_text("{" if change is None else json.dumps(facts | change))
        with pytest.raises(ArtefactError, match=message):
            Profile.load(tmp_path, trunk=TRUNK)


def test_profiles_of_tasks_share_the_encoders_scale(reference: Profile) -> None:
    rows = {"embedding": columns(600, seed=7)["embedding"]}
    task = Profile.fit("topic", rows, trunk=TRUNK, settings=SETTINGS, like=reference)
    assert task.parts["embedding"].sketch.same_shape(reference.parts["embedding"].sketch)
    scaled = {"embedding": Column("embedding", "embedding", np.asarray(rows["embedding"].values) * 9)}
    alone = Profile.fit("topic", scaled, trunk=TRUNK, settings=SETTINGS)
    assert not alone.parts["embedding"].sketch.same_shape(reference.parts["embedding"].sketch)


def test_the_core_imports_in_half_a_cpu_second_without_heavy_packages() -> None:
    program = """
import sys, time
import mtlops.drift.profile, mtlops.drift.columns, mtlops.drift.verdicts
import mtlops.drift.histogram, mtlops.drift.categories, mtlops.drift.embeddings
print(time.process_time(), *{name.partition(".")[0] for name in sys.modules})
"""
    done = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in "ab"]
    seconds, *modules = min(done, key=lambda run: float(run.stdout.split()[0])).stdout.split()
    assert float(seconds) < 0.5
    assert not {"torch", "pandas", "sklearn", "onnxruntime", "pydantic", "great_expectations"} & set(modules)
