"""Parts of a log merged are one pass over it, to the bit, however many; what does not fit together is refused."""

import json
from datetime import date
from pathlib import Path

import pytest

from monitoring.__main__ import main
from mtlops.bundle import Bundle
from mtlops.errors import ArtefactError, UsageError
from mtlops.files import read_json
from mtlops.params import Drift
from mtlops.watch.engine import Watch
from mtlops.watch.log import PredictionLog
from mtlops.watch.parts import Part, Share, merge_parts, profile_part
from mtlops.watch.references import References
from mtlops.watch.state import State
from tests.watch.logs import MOOD, World, Writer

DAYS = {"since": date(2026, 3, 1), "until": date(2026, 3, 2)}
PARAMS = """
suite:
  name: small
  tasks:
    mood: {kind: multiclass, source: a.csv, label: mood, classes: [bad, fair, good]}
"""


@pytest.fixture(scope="module")
def log(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two writers, three days, one damaged file and one task that moves."""
    folder = tmp_path_factory.mktemp("parts") / "log"
    writers = [Writer(folder, bundle.id, name=name, per_day=300.0) for name in ("w1", "w2")]
    for day in range(3):
        for number, writer in enumerate(writers):
            writer.traffic(World(10 * day + number), 150)
            writer.traffic(World(100 + 10 * day + number, shift=1.0), 150, tasks=[MOOD])
    writers[0].traffic(World(7), 10).write_bytes(b"PAR1 nonsense")
    writers[0].now = writers[1].now
    return folder


def parts(log: Path, bundle: Bundle, folder: Path, *, of: int) -> list[Part]:
    references = References.of_bundle(bundle.folder)
    found = []
    for number in range(1, of + 1):
        profile_part(PredictionLog(str(log)), references, share=Share(number, of), **DAYS).save(folder / str(number))
        found.append(Part.load(folder / str(number)))
    return found


def packed(part: Part) -> dict:
    return {name: stream.pack() for name, stream in part.streams.items()}


@pytest.mark.parametrize("of", [2, 5, 30])
def test_merged_parts_are_a_single_pass_to_the_bit(log: Path, bundle: Bundle, tmp_path: Path, of: int) -> None:
    references = References.of_bundle(bundle.folder)
    whole = profile_part(PredictionLog(str(log)), references, share=Share(1, 1), **DAYS)
    merged = merge_parts(list(reversed(parts(log, bundle, tmp_path, of=of))), references)
    assert packed(merged) == packed(whole) and merged.counts == whole.counts
    assert whole.streams["mood"].rows == 1200 and whole.streams["encoder"].rows == 600 == whole.streams["stars"].rows


def test_a_part_holds_what_the_monitor_would_count(log: Path, bundle: Bundle, tmp_path: Path) -> None:
    references = References.of_bundle(bundle.folder)
    whole = profile_part(PredictionLog(str(log)), references, share=Share(1, 1), since=date.min, until=date.max)
    watch = Watch(Drift(window_rows=10**9, window_minutes=1e9), references, State(":memory:"))
    reader = PredictionLog(str(log))
    watch.catch_up(reader, listed=reader.files())
    open_ = {s.name: s.pack() for s in watch.streams() if s.source == "traffic"}
    assert packed(whole) == open_
    assert len(whole.set_aside) == 1 and "cannot be read as Parquet" in whole.set_aside[0][1]


def test_parts_that_do_not_fit_together_are_refused(log: Path, bundle: Bundle, tmp_path: Path) -> None:
    references = References.of_bundle(bundle.folder)
    first, second = parts(log, bundle, tmp_path, of=2)
    with pytest.raises(UsageError, match="there are: 1/2\\."):
        merge_parts([first], references)
    with pytest.raises(UsageError, match="1/2, 1/2"):
        merge_parts([first, first], references)
    other = Part(second.share, second.bundle, "another", second.streams, second.counts, ())
    with pytest.raises(ArtefactError, match="the log grew between parts"):
        merge_parts([first, other], references)
    with pytest.raises(UsageError, match="--part 3/2: give K/N"):
        Share.parse("3/2")
    (tmp_path / "2/mood.bin").unlink()
    with pytest.raises(ArtefactError, match="mood.bin: cannot be read"):
        Part.load(tmp_path / "2")


def test_the_commands_judge_the_parts_and_write_the_report(
    log: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "params.yaml").write_text(PARAMS)
    own = ["--bundle", str(bundle.folder), "--params", str(tmp_path / "params.yaml"), "--json", "--quiet"]
    for number in (1, 2):
        assert main(["profile", "--log", str(log), "--part", f"{number}/2", "--since", "2026-03-01", "--until",
                     "2026-03-03", "--out", str(tmp_path / f"p{number}"), *own]) == 0  # fmt: skip
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sum(part["rows"] for part in found) == 2 * 3 * 150 * 4
    folders = [str(tmp_path / f"p{number}") for number in (2, 1)]
    assert main(["merge", *folders, "--report", str(tmp_path / "drift.json"), "--exit-code", *own]) == 6
    report = read_json(tmp_path / "drift.json", made_by="merge")
    assert report["tasks"]["mood"]["cells"]["input"]["verdict"] == "drifted"
    assert report["tasks"]["stars"]["cells"]["prediction"]["verdict"] == "stable"
    assert (tmp_path / "drift.html").exists()
    assert main(["profile", "--log", str(log), "--part", "1/2", "--since", "yesterday", "--until", "2026-03-03",
                 "--out", str(tmp_path / "x"), *own]) == 2  # fmt: skip
