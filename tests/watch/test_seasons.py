"""Weekends that differ from weekdays: no alarm once that is known, an alarm when both are others than they were."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest

from mtlops.bundle import Bundle
from mtlops.params import Drift
from mtlops.watch.engine import Watch
from mtlops.watch.log import PredictionLog
from mtlops.watch.references import References
from mtlops.watch.state import State
from mtlops.watch.summary import summarise
from tests.watch.logs import STARS, WIDTH, World, Writer, write_bundle

WEEKEND = 0.9
DRIFT = Drift(window_rows=1000, season="weekly", season_hours=24)
PER_DAY = 160.0


class AllWeek(World):
    """Rows of weekdays and weekends, mixed: what a model of such a service was trained on."""

    def texts(self, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
        shift = np.where(self.rng.random(rows) < 2 / 7, WEEKEND, 0.0)
        statistics = {
            "characters": self.rng.normal(100 + 20 * shift, 20, rows),
            "words": self.rng.poisson(12, rows) * 1.0,
        }
        return statistics, (self.rng.normal(size=(rows, WIDTH)) + shift[:, None]).astype(np.float32)


@pytest.fixture(scope="module")
def weekly(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("weekly") / "bundle", tasks=[STARS], world=AllWeek(0))


def write(writer: Writer, *, days: int, seed: int, shift: float = 0.0) -> None:
    for day in range(days):
        weekend = WEEKEND if writer.now.weekday() >= 5 else 0.0
        writer.traffic(World(1000 * seed + day, shift=weekend + shift), int(PER_DAY), tasks=[STARS])


def opened(bundle: Bundle, state: State | None = None, *, drift: Drift = DRIFT) -> Watch:
    return Watch(drift, References.of_bundle(bundle.folder), state or State(":memory:"))


def catch_up(watch: Watch, log: Path) -> list[dict]:
    reader = PredictionLog(str(log))
    return watch.catch_up(reader, listed=reader.files()).windows


def level(watch: Watch) -> str:
    return summarise(watch, log="log")["tasks"]["encoder"]["level"]


def alarms(watch: Watch) -> list[str]:
    return [event["text"] for event in watch.state.events(500) if event["text"].endswith("-> drifted")]


@pytest.fixture(scope="module")
def five_weeks(weekly: Bundle, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Writer]:
    log = tmp_path_factory.mktemp("five") / "log"
    writer = Writer(log, weekly.id, per_day=PER_DAY)
    write(writer, days=35, seed=1)
    return log, writer


def test_a_weekly_rhythm_is_silent_with_its_season_and_alarms_without(
    weekly: Bundle, five_weeks: tuple[Path, Writer]
) -> None:
    log, _ = five_weeks
    without = opened(weekly, drift=Drift(window_rows=1000, window_minutes=1440))
    catch_up(without, log)
    assert alarms(without) and any("embedding" in text for text in alarms(without))
    watch = opened(weekly)
    windows = catch_up(watch, log)
    assert alarms(watch) == [] and level(watch) == "ok"
    whole = [w for w in windows if w["reference"] == "bundle, weekly" and w["name"] == "encoder"]
    by_phase = [w for w in windows if w["reference"] != "bundle, weekly" and w["name"] == "encoder"]
    # Two weeks are learnt; from the third on each day is judged against the same day of the weeks before.
    assert len(whole) == 2 and len(by_phase) == 5 * 7 - 14 - 1
    assert by_phase[0]["reference"] == "2 seasons of Sun 00-24 h UTC"
    assert {w["rows"] for w in by_phase} == {int(PER_DAY)}
    cells = {cell["kind"]: cell for cell in by_phase[-1]["cells"]}
    assert cells["input"]["verdict"] == cells["embedding"]["verdict"] == "stable"


def test_a_real_shift_alarms_in_its_phase_and_is_not_learnt(weekly: Bundle, five_weeks: tuple[Path, Writer]) -> None:
    log, writer = five_weeks
    state = State(":memory:")
    watch = opened(weekly, state)
    catch_up(watch, log)
    learnt = "SELECT phase, cycles FROM phases WHERE name = 'encoder' AND is_learnt = 1 ORDER BY phase"
    before = [tuple(row) for row in state.rows(learnt)]
    later = Writer(log.parent / "later", weekly.id, per_day=PER_DAY, name="w2")
    later.now = writer.now
    write(later, days=6, seed=2, shift=WEEKEND)
    catch_up(watch, log.parent / "later")
    assert any("embedding" in text for text in alarms(watch)) and level(watch) == "drifted"
    # The open window of the day before was still as ever; none of the days with the shift was learnt.
    grown = [now for now in state.rows(learnt) if tuple(now) not in before]
    assert len(grown) <= 1


def test_while_it_learns_a_window_is_a_whole_season_and_one_that_alarms_is_not_learnt(
    weekly: Bundle, tmp_path: Path
) -> None:
    writer = Writer(tmp_path, weekly.id, per_day=PER_DAY)
    write(writer, days=16, seed=3, shift=1.2)
    watch = opened(weekly)
    windows = [w for w in catch_up(watch, tmp_path) if w["name"] == "encoder"]
    assert [w["rows"] for w in windows] == [7 * int(PER_DAY)] * 2
    assert level(watch) == "drifted"
    assert not watch.state.rows("SELECT 1 FROM phases WHERE is_learnt = 1 AND name = 'encoder'")
    warnings = summarise(watch, log="log")["warnings"]
    assert "encoder: 0 of 2 seasons learnt (weekly); until then a window is a whole season." in warnings


def test_nothing_depends_on_passes_or_restarts(weekly: Bundle, tmp_path: Path) -> None:
    log, path = tmp_path / "log", tmp_path / "state.sqlite"
    writer = Writer(log, weekly.id, per_day=PER_DAY)
    for part in range(5):
        write(writer, days=5, seed=10 + part)
        watch = opened(weekly, State(path))
        catch_up(watch, log)
        watch.state.close()
    watch, fresh = opened(weekly, State(path)), opened(weekly)
    catch_up(fresh, log)
    for query in (
        "SELECT * FROM phases ORDER BY name, is_learnt, phase",
        "SELECT * FROM windows ORDER BY id",
        "SELECT * FROM streams ORDER BY name, source",
        "SELECT * FROM detectors ORDER BY name, kind",
    ):
        assert [tuple(r) for r in watch.state.rows(query)] == [tuple(r) for r in fresh.state.rows(query)], query
    watch.state.close()


def test_labels_are_judged_in_whole_seasons(weekly: Bundle, tmp_path: Path) -> None:
    writer = Writer(tmp_path, weekly.id, per_day=PER_DAY)
    for part in range(3):
        write(writer, days=5, seed=20 + part)
        writer.feedback(tasks=[STARS])
    watch = opened(weekly)
    catch_up(watch, tmp_path)
    window = watch.state.windows("stars", source="labels", limit=5)
    assert len(window) == 2
    assert all(w["stop"] - w["start"] >= timedelta(days=7).total_seconds() * 0.99e6 for w in window)


def test_rows_that_cannot_be_used_are_said_while_it_learns(weekly: Bundle, tmp_path: Path) -> None:
    def spoil(entries: list) -> None:
        for entry in entries[::4]:
            entry["value"] = None

    writer = Writer(tmp_path, weekly.id, per_day=PER_DAY)
    writer.now = datetime(2026, 3, 2, tzinfo=UTC)
    for day in range(3):
        writer.traffic(World(day), int(PER_DAY), tasks=[STARS], change=spoil if day == 0 else None)
    watch = opened(weekly)
    first, second = (w for w in catch_up(watch, tmp_path) if w["name"] == "stars")
    assert (first["level"], second["level"]) == ("drifted", "ok")
    assert first["diagnosis"]["causes"][0]["cause"] == "data fault"
