"""The number of a task's rows: a fault of the data where they stop or flood in, whatever the passes."""

from datetime import timedelta
from pathlib import Path

from mtlops.bundle import Bundle
from mtlops.params import Drift, Trigger
from mtlops.watch.engine import Watch
from mtlops.watch.log import PredictionLog
from mtlops.watch.references import References
from mtlops.watch.requests import request_training
from mtlops.watch.state import State
from mtlops.watch.summary import summarise
from tests.watch.logs import MOOD, STARS, World, Writer

DRIFT = Drift(window_rows=500)


def opened(bundle: Bundle, state: State | None = None) -> Watch:
    return Watch(DRIFT, References.of_bundle(bundle.folder), state or State(":memory:"))


def catch_up(watch: Watch, log: Path, *, clock: int | None = None) -> None:
    reader = PredictionLog(str(log))
    watch.catch_up(reader, listed=reader.files(), clock=clock)


def volumes(watch: Watch) -> list[tuple]:
    found = watch.state.rows("SELECT name, level, cell FROM detectors WHERE kind = 'volume' ORDER BY name")
    return [tuple(row) for row in found]


def levels(watch: Watch) -> dict[str, str]:
    return {name: level for name, level, _ in volumes(watch)}


def write(writer: Writer, world: World, *, days: int, tasks=(MOOD, STARS)) -> None:
    for _ in range(days):
        writer.traffic(world, round(timedelta(days=1) / writer.gap), tasks=tasks)


def test_a_task_that_falls_silent_is_a_data_fault_and_is_not_trained(bundle: Bundle, tmp_path: Path) -> None:
    writer, world = Writer(tmp_path, bundle.id, per_day=960.0), World(1)
    write(writer, world, days=5)
    watch = opened(bundle)
    catch_up(watch, tmp_path)
    assert levels(watch) == {"mood": "ok", "stars": "ok"}
    write(writer, world, days=1, tasks=(MOOD,))
    catch_up(watch, tmp_path)
    assert levels(watch) == {"mood": "ok", "stars": "drifted"}
    stars = summarise(watch, log="log")["tasks"]["stars"]
    assert stars["level"] == "drifted" and not stars["diagnosis"]["retraining_helps"]
    assert stars["diagnosis"]["causes"][0]["cause"] == "data fault"
    assert "0 rows in 60 minutes where 40 are usual." in stars["diagnosis"]["causes"][0]["because"]
    with watch.state.transaction():
        assert request_training(watch.state, watch.references, trigger=Trigger(), log="log") is None
    write(writer, world, days=1)
    catch_up(watch, tmp_path)
    assert levels(watch) == {"mood": "ok", "stars": "ok"}


def test_a_flood_is_a_data_fault(bundle: Bundle, tmp_path: Path) -> None:
    writer, world = Writer(tmp_path, bundle.id, per_day=480.0), World(1)
    write(writer, world, days=12, tasks=(MOOD,))
    writer.gap /= 12
    writer.traffic(world, 1500, tasks=(MOOD,))
    watch = opened(bundle)
    catch_up(watch, tmp_path)
    assert levels(watch) == {"mood": "drifted"}
    cause = summarise(watch, log="log")["tasks"]["mood"]["diagnosis"]["causes"][0]
    assert cause["cause"] == "data fault" and "rows in 60 minutes where 20 are usual." in cause["because"]


def test_a_clock_shows_that_all_tasks_have_fallen_silent(bundle: Bundle, tmp_path: Path) -> None:
    writer, world = Writer(tmp_path, bundle.id, per_day=480.0), World(1)
    write(writer, world, days=12)
    now = int(writer.now.timestamp() * 1e6)
    watch = opened(bundle)
    catch_up(watch, tmp_path, clock=now + 3_600_000_000)
    assert levels(watch) == {"mood": "ok", "stars": "ok"}
    catch_up(watch, tmp_path, clock=now + 9 * 3_600_000_000)
    assert levels(watch) == {"mood": "drifted", "stars": "drifted"}
    archived = opened(bundle)
    catch_up(archived, tmp_path, clock=now + 90 * 24 * 3_600_000_000)
    assert levels(archived) == {"mood": "ok", "stars": "ok"}


def test_verdicts_do_not_depend_on_passes_or_restarts(bundle: Bundle, tmp_path: Path) -> None:
    log, state = tmp_path / "log", tmp_path / "state.sqlite"
    writer, world = Writer(log, bundle.id, per_day=240.0), World(3)
    for day in range(6):
        write(writer, world, days=1, tasks=(MOOD,) if day == 5 else (MOOD, STARS))
        watch = opened(bundle, State(state))
        catch_up(watch, log)
        watch.state.close()
    watch, fresh = opened(bundle, State(state)), opened(bundle)
    catch_up(fresh, log)
    assert volumes(watch) == volumes(fresh) and levels(fresh)["stars"] == "drifted"
    query = "SELECT name, content FROM volumes ORDER BY name"
    assert [tuple(r) for r in watch.state.rows(query)] == [tuple(r) for r in fresh.state.rows(query)]
    watch.state.close()


def test_after_a_gap_of_more_than_a_month_the_rhythm_is_learnt_anew(bundle: Bundle, tmp_path: Path) -> None:
    writer, world = Writer(tmp_path, bundle.id, per_day=240.0), World(1)
    write(writer, world, days=4)
    writer.now += timedelta(days=4000)
    write(writer, world, days=1)
    watch = opened(bundle)
    catch_up(watch, tmp_path)
    assert levels(watch) == {"mood": "ok", "stars": "ok"}
    assert any("learnt anew" in event["text"] for event in watch.state.events())


def test_a_state_of_the_version_before_is_taken_over(bundle: Bundle, tmp_path: Path) -> None:
    path = tmp_path / "state.sqlite"
    old = State(path)
    for table in ("volumes", "phases", "told", "outbox"):
        old.run(f"DROP TABLE {table}")
    old.run("PRAGMA user_version = 1")
    old.close()
    watch = opened(bundle, State(path))
    write(Writer(tmp_path / "log", bundle.id, per_day=240.0), World(1), days=4)
    catch_up(watch, tmp_path / "log")
    assert set(levels(watch)) == {"mood", "stars"}
    watch.state.close()
