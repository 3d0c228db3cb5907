"""Every row once, whatever happens; windows, alarms and causes that follow from the rows alone."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mtlops.bundle import Bundle
from mtlops.params import Drift
from mtlops.watch.engine import Watch
from mtlops.watch.log import PredictionLog
from mtlops.watch.references import References
from mtlops.watch.state import State
from tests.watch.logs import MOOD, STARS, TASKS, World, Writer, write_bundle

DRIFT = Drift(window_rows=500, audit_rows=200)


def opened(bundle: Bundle, state: State | None = None, *, drift: Drift = DRIFT) -> Watch:
    return Watch(drift, References.of_bundle(bundle.folder), state or State(":memory:"))


def catch_up(watch: Watch, log: Path):
    reader = PredictionLog(str(log))
    return watch.catch_up(reader, listed=reader.files())


def levels(watch: Watch, name: str) -> dict[str, str]:
    found = watch.state.rows("SELECT kind, level FROM detectors WHERE name = ?", name)
    return {row["kind"]: row["level"] for row in found}


def windows(watch: Watch) -> list[tuple]:
    query = "SELECT name, source, start, stop, rows, content FROM windows ORDER BY id"
    return [tuple(row) for row in watch.state.rows(query)]


def test_traffic_like_the_reference_gives_no_alarm(bundle: Bundle, tmp_path: Path) -> None:
    writer = Writer(tmp_path, bundle.id)
    world = World(1)
    for _ in range(6):
        writer.traffic(world, 500)
        writer.feedback()
    watch = opened(bundle)
    progress = catch_up(watch, tmp_path)
    assert (progress.files, progress.rows) == (12, 2 * 6 * 500 * 3)
    counts = watch.state.counts()
    assert counts["rows"] == counts["labels"] == counts["labels_joined"] == 9000
    # Whole requests are judged once: the encoder has the texts, the tasks have the answers.
    assert counts["windows.traffic"] == 4 * 6 and counts["windows.labels"] == 3 * 15
    for name in ("encoder", "mood", "stars", "tags"):
        assert set(levels(watch, name).values()) == {"ok"}, name
    assert set(levels(watch, "encoder")) == {"embedding", "input"}
    realised = watch.state.windows("mood", source="labels", limit=1)[0]["metrics"]["realised"]["accuracy"]
    estimated = watch.state.windows("mood", source="traffic", limit=1)[0]["metrics"]["estimated"]["accuracy"]
    assert abs(realised - estimated) < 0.12 and realised > 0.6


def test_rows_asked_for_some_tasks_are_compared_with_what_those_tasks_know(bundle: Bundle, tmp_path: Path) -> None:
    writer = Writer(tmp_path, bundle.id)
    writer.traffic(World(1, shift=1.0), 1000, tasks=[MOOD])
    watch = opened(bundle)
    catch_up(watch, tmp_path)
    assert levels(watch, "encoder") == {} and levels(watch, "stars") == {}
    assert levels(watch, "mood")["input"] == "drifted"
    assert levels(watch, "mood")["prediction"] == "ok"
    causes = watch.state.windows("mood", source="traffic", limit=1)[0]["diagnosis"]["causes"]
    assert [found["cause"] for found in causes] == ["covariate shift"]


def test_prior_shift_is_named(bundle: Bundle, tmp_path: Path) -> None:
    writer = Writer(tmp_path, bundle.id)
    world = World(1, shares=(0.8, 0.1, 0.1))
    for _ in range(4):
        writer.traffic(world, 500, tasks=[MOOD])
        writer.feedback()
    watch = opened(bundle)
    catch_up(watch, tmp_path)
    assert levels(watch, "mood")["label"] == levels(watch, "mood")["prediction"] == "drifted"
    diagnosis = watch.state.windows("mood", source="labels", limit=1)[0]["diagnosis"]
    assert [found["cause"] for found in diagnosis["causes"]] == ["prior shift"]
    assert "by labels: bad from" in diagnosis["causes"][0]["because"] and diagnosis["retraining_helps"]


def test_concept_shift_is_seen_by_labels_alone_and_named(bundle: Bundle, tmp_path: Path) -> None:
    writer = Writer(tmp_path, bundle.id)
    world = World(1, concept=0.35)
    for _ in range(5):
        writer.traffic(world, 500, tasks=[MOOD])
        writer.feedback()
    watch = opened(bundle)
    catch_up(watch, tmp_path)
    found = levels(watch, "mood")
    assert found["quality"] == "drifted"
    assert {found[kind] for kind in ("input", "embedding", "prediction", "estimate")} == {"ok"}
    diagnosis = watch.state.windows("mood", source="labels", limit=1)[0]["diagnosis"]
    assert [cause["cause"] for cause in diagnosis["causes"]] == ["concept shift"]
    assert "no estimate without labels can see this" in diagnosis["causes"][0]["because"]


@pytest.mark.parametrize("grouping", [(1,), (3, 1, 2), (6,)])
def test_windows_do_not_depend_on_passes_or_restarts(bundle: Bundle, tmp_path: Path, grouping: Sequence[int]) -> None:
    log, state = tmp_path / "log", tmp_path / "state.sqlite"
    writer, world = Writer(log, bundle.id), World(3)
    passes = list(grouping)
    for k in range(6):
        writer.traffic(world, 130)
        if k == passes[0] - 1 and len(passes) > 1:
            passes = [passes[0] + passes[1], *passes[2:]]
            watch = opened(bundle, State(state))
            catch_up(watch, log)
            watch.state.close()
    watch = opened(bundle, State(state))
    catch_up(watch, log)
    catch_up(watch, log)
    fresh = opened(bundle)
    catch_up(fresh, log)
    assert windows(watch) == windows(fresh) and len(windows(fresh)) == 4
    assert {(s.name, s.source): s.pack() for s in watch.streams()} == {
        (s.name, s.source): s.pack() for s in fresh.streams()
    }
    watch.state.close()


def test_a_file_that_comes_late_is_read_and_its_rows_are_counted_as_late(bundle: Bundle, tmp_path: Path) -> None:
    early, late, world = Writer(tmp_path, bundle.id), Writer(tmp_path, bundle.id, name="w2"), World(1)
    held = late.traffic(world, 100)
    content = held.read_bytes()
    held.unlink()
    early.traffic(world, 500)
    watch = opened(bundle)
    catch_up(watch, tmp_path)
    held.write_bytes(content)
    early.traffic(world, 450)
    assert catch_up(watch, tmp_path).files == 2
    assert watch.state.counts()["rows"] == 3 * 1050
    newest = watch.state.windows("mood", source="traffic", limit=1)[0]
    assert (newest["rows"], newest["late_rows"]) == (500, 100)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "cannot be read as Parquet"),
        (lambda path: path.write_bytes(b""), "cannot be read as Parquet"),
        (lambda path: path.write_bytes(b"PAR1 nonsense PAR1"), "cannot be read as Parquet"),
    ],
)
def test_a_damaged_file_is_set_aside_and_reported(bundle: Bundle, tmp_path: Path, damage, reason: str) -> None:
    writer, world = Writer(tmp_path, bundle.id), World(1)
    writer.traffic(world, 100)
    bad = writer.traffic(world, 100)
    writer.traffic(world, 100)
    damage(bad)
    watch = opened(bundle)
    progress = catch_up(watch, tmp_path)
    assert (progress.files, progress.quarantined, progress.rows) == (3, 1, 600)
    row = watch.state.rows("SELECT name, reason FROM files WHERE reason IS NOT NULL")[0]
    assert bad.name in row["name"] and reason in row["reason"]
    assert any("set aside" in event["text"] for event in watch.state.events())
    assert catch_up(watch, tmp_path).files == 0


def test_a_file_damaged_half_way_counts_as_if_it_had_not_been_begun(bundle: Bundle, tmp_path: Path) -> None:
    counts, found = [], []
    for folder in (tmp_path / "without", tmp_path / "with"):
        writer, world = Writer(folder, bundle.id), World(1)
        writer.traffic(world, 400)
        after = World(2)
        if folder.name == "with":
            _break_the_end(Writer(folder, bundle.id, name="w0").traffic(World(3), 3000))
        writer.traffic(after, 400)
        watch = opened(bundle)
        progress = catch_up(watch, folder)
        found.append(windows(watch))
        counts.append((progress.rows, progress.quarantined, watch.state.counts()))
    (rows, none, before), (same_rows, one, now) = counts
    assert (rows, none) == (same_rows, 0) and one == 1 and before == now and found[0] == found[1]
    assert "cannot be read as Parquet" in watch.state.rows("SELECT reason FROM files WHERE reason IS NOT NULL")[0][0]


def _break_the_end(path: Path) -> None:
    """Damages the last of a file's row groups: the first ones can still be read."""
    pq.write_table(pq.read_table(path), path, row_group_size=4500, compression="zstd")
    last = pq.ParquetFile(path).metadata.row_group(1).column(0)
    start = last.dictionary_page_offset or last.data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 200] = bytes(200)
    path.write_bytes(content)


def test_a_number_that_a_writer_left_out_is_reported_when_it_stays_away(bundle: Bundle, tmp_path: Path) -> None:
    writer, world = Writer(tmp_path, bundle.id), World(1)
    writer.traffic(world, 50)
    writer.skip()
    writer.skip()
    writer.traffic(world, 50)
    watch = opened(bundle)
    catch_up(watch, tmp_path)
    assert watch.state.fact("lost_files") == [{"kind": "predictions", "writer": "w1", "from": 1, "to": 2}]
    assert "predictions 1 to 2 of writer w1 are missing" in [event["text"] for event in watch.state.events()]


def test_rows_that_cannot_be_used_are_a_data_fault_that_training_does_not_mend(bundle: Bundle, tmp_path: Path) -> None:
    def spoil(entries: list) -> None:
        for entry in entries[: len(entries) // 5]:
            if entry["task"] == "mood":
                entry["probabilities"] = [0.5, float("nan"), 0.5]
            if entry["task"] == "stars":
                entry["value"] = None

    writer = Writer(tmp_path, bundle.id)
    writer.traffic(World(1), 700, tasks=[MOOD, STARS], change=spoil)
    watch = opened(bundle)
    catch_up(watch, tmp_path)
    for name, what in (("mood", "probabilities that are none"), ("stars", "no value")):
        window = watch.state.windows(name, source="traffic", limit=1)[0]
        assert window["bad_rows"] == {what: 125} and window["rows"] == 500
        assert levels(watch, name)["data"] == "drifted"
        assert not window["diagnosis"]["retraining_helps"]
        assert window["diagnosis"]["causes"][0]["cause"] == "data fault"


def test_labels_wait_for_their_answers_and_unknown_ones_are_counted(bundle: Bundle, tmp_path: Path) -> None:
    def spoil(entries: list) -> None:
        entries[0]["label"] = ["excellent"]
        entries[1]["request_id"] = "nobody"

    writer, world = Writer(tmp_path, bundle.id), World(1)
    answers = writer.traffic(world, 100, tasks=[MOOD])
    content = answers.read_bytes()
    answers.unlink()
    writer.feedback(change=spoil)
    watch = opened(bundle)
    catch_up(watch, tmp_path)
    assert watch.state.counts().get("labels_joined", 0) == 0
    answers.write_bytes(content)
    catch_up(watch, tmp_path)
    stream = next(s for s in watch.streams() if (s.name, s.source) == ("mood", "labels"))
    assert stream.rows == 98 and dict(stream.faults) == {"a label that the task does not have": 1}
    assert watch.state.rows("SELECT request FROM waiting")[0]["request"] == "nobody"


def test_other_bundles_and_roles_are_counted_and_not_judged(bundle: Bundle, tmp_path: Path) -> None:
    def spoil(entries: list) -> None:
        for entry in entries[:30]:
            entry["bundle_id"] = "another"
        for entry in entries[30:60]:
            entry["role"] = "shadow"

    writer = Writer(tmp_path, bundle.id)
    writer.traffic(World(1), 100, tasks=[MOOD], change=spoil)
    watch = opened(bundle)
    catch_up(watch, tmp_path)
    counts = watch.state.counts()
    assert (counts["rows_of_other_bundles"], counts["rows_of_other_roles"]) == (30, 30)
    assert next(s.rows for s in watch.streams() if s.name == "mood") == 40


def test_a_new_champion_starts_the_changed_task_anew_and_keeps_the_others(bundle: Bundle, tmp_path: Path) -> None:
    state = State(tmp_path / "state.sqlite")
    writer = Writer(tmp_path / "log", bundle.id)
    writer.traffic(World(1, shift=1.0), 700, tasks=[MOOD])
    writer.traffic(World(1, shift=1.0), 700, tasks=[STARS])
    watch = opened(bundle, state)
    catch_up(watch, tmp_path / "log")
    assert levels(watch, "mood")["input"] == levels(watch, "stars")["input"] == "drifted"
    other = write_bundle(tmp_path / "other")
    head = other.folder / "tasks/mood/head.safetensors"
    head.write_bytes(b"retrained")
    from mtlops.bundle import write_manifest

    manifest = {k: v for k, v in other.manifest.items() if k not in ("files", "schema_version")}
    write_manifest(other.folder, manifest)
    after = opened(Bundle.open(other.folder), state)
    assert levels(after, "mood") == {} and levels(after, "stars")["input"] == "drifted"
    assert any(e["name"] == "mood" and "alarms start anew" in e["text"] for e in state.events())
    assert not any(e["name"] == "stars" and "anew" in e["text"] for e in state.events())
    state.close()


def test_a_window_also_ends_by_time(bundle: Bundle, tmp_path: Path) -> None:
    writer = Writer(tmp_path, bundle.id, per_day=100.0)
    writer.traffic(World(1), 450, tasks=TASKS)
    watch = opened(bundle, drift=Drift(window_rows=10_000, window_minutes=24 * 60))
    catch_up(watch, tmp_path)
    rows = [w["rows"] for w in watch.state.windows("mood", source="traffic", limit=10)]
    assert rows == [100, 100, 100, 100]


def test_names_are_forgotten_after_weeks_and_what_is_older_is_reported(bundle: Bundle, tmp_path: Path) -> None:
    writer = Writer(tmp_path, bundle.id, per_day=25.0)
    for _ in range(4):
        writer.traffic(World(1), 50, tasks=[MOOD])
    watch = opened(bundle, drift=Drift(feedback_days=1.0))
    assert catch_up(watch, tmp_path).files == 4
    kept = [row["sequence"] for row in watch.state.rows("SELECT sequence FROM files")]
    assert kept == [2, 3]
    assert catch_up(watch, tmp_path).files == 0 and watch.state.fact("forgotten_files") == 0
    Writer(tmp_path, bundle.id, name="w9").traffic(World(1), 5, tasks=[MOOD])
    assert catch_up(watch, tmp_path).files == 0 and watch.state.fact("forgotten_files") == 1
    assert watch.state.counts()["rows"] == 200 and not watch.state.fact("lost_files")
