"""Shards are found again, checked, and evicted when they were not used for longest."""

import os
from pathlib import Path

import numpy as np
import pytest

from mtlops.model.shards import Shards, evict

ROWS = {f"row{i}": np.arange(12, dtype=np.float32).reshape(3, 4) + 100 * i + 0.1 for i in range(4)}


def _write(folder: Path, *names: str, dtype: str = "float32") -> Shards:
    shards = Shards(folder, width=4, dtype=dtype)
    for name in names:
        shards.write([(name, 3)], [ROWS[name]])
    return shards


def _age(shards: Shards, name: str, seconds: float) -> Path:
    """Makes the shard of a row look as if it was last used at `seconds`; returns its index file."""
    (index,) = shards.touch([name])
    os.utime(index, (seconds, seconds))
    return index


def test_rows_are_found_again_by_another_reader(tmp_path: Path) -> None:
    _write(tmp_path, "row0", "row1")
    again = Shards(tmp_path, width=4)
    assert "row0" in again and "row2" not in again
    assert again.length("row1") == 3
    assert (again.lines("row1") == ROWS["row1"]).all()


def test_float16_takes_half_the_space_and_rounds_to_11_bits(tmp_path: Path) -> None:
    whole, half = _write(tmp_path / "a", "row2"), _write(tmp_path / "b", "row2", dtype="float16")
    (large,), (small,) = tmp_path.glob("a/*.f32"), tmp_path.glob("b/*.f16")
    assert small.stat().st_size * 2 == large.stat().st_size
    assert half.lines("row2").astype(np.float32) == pytest.approx(whole.lines("row2"), rel=2**-11)
    assert not (half.lines("row2") == whole.lines("row2")).all()


def test_what_was_not_used_for_longest_goes_first(tmp_path: Path) -> None:
    shards = _write(tmp_path / "trunk-a", "row0", "row1", "row2")
    for name, seconds in (("row0", 300), ("row1", 100), ("row2", 200)):
        _age(shards, name, seconds)
    one = sum(path.stat().st_size for path in (tmp_path / "trunk-a").iterdir()) / 3
    removed = evict([tmp_path / "trunk-a"], limit_bytes=1.5 * one, keep=())
    assert removed == pytest.approx(2 * one, rel=0.1)
    left = Shards(tmp_path / "trunk-a", width=4)
    assert "row0" in left and "row1" not in left and "row2" not in left
    assert (shards.lines("row1") == ROWS["row1"]).all(), "who has it open goes on reading it"


def test_what_is_kept_stays_and_is_said_to_be_too_large(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shards = _write(tmp_path, "row0", "row1")
    keep = {_age(shards, "row0", 100)}
    _age(shards, "row1", 200)
    evict([tmp_path], limit_bytes=0, keep=keep)
    left = Shards(tmp_path, width=4)
    assert "row0" in left and "row1" not in left
    assert "more than train.cache_gb allows" in caplog.text


def test_nothing_goes_while_it_fits(tmp_path: Path) -> None:
    _write(tmp_path, "row0", "row1")
    assert evict([tmp_path], limit_bytes=1e6, keep=()) == 0
    assert len(list(tmp_path.iterdir())) == 4


def test_touch_outlives_an_eviction_by_another_process(tmp_path: Path) -> None:
    shards = _write(tmp_path, "row0")
    evict([tmp_path], limit_bytes=0, keep=())
    assert len(shards.touch(["row0"])) == 1


def test_a_shard_that_changed_since_this_process_checked_it_is_checked_again(tmp_path: Path) -> None:
    """Every step of an update opens the same shards; only the first compares their checksums."""
    _write(tmp_path, "row0")
    assert "row0" in Shards(tmp_path, width=4)
    (values,) = tmp_path.glob("*.f32")
    values.write_bytes(bytes(values.stat().st_size))
    os.utime(values, ns=(0, 0))  # Another time than before, on a clock as coarse as can be.
    assert "row0" not in Shards(tmp_path, width=4)


def test_only_shards_that_somebody_asks_for_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write(tmp_path, "row0", "row1")
    shards = Shards(tmp_path, width=4)
    places = {row: next(iter(shards.touch([row]))).with_suffix(".f32") for row in ("row0", "row1")}
    for path in places.values():
        path.write_bytes(bytes(path.stat().st_size))
        os.utime(path, ns=(0, 0))
    assert "row0" not in shards
    assert str(places["row0"]) in caplog.text and str(places["row1"]) not in caplog.text
    assert not places["row0"].exists() and places["row1"].exists()
    shards.write([("row0", 3)], [ROWS["row0"]])
    assert "row0" in shards and (shards.lines("row0") == ROWS["row0"]).all()
    assert "row1" not in shards


def test_a_shard_evicted_before_it_was_asked_for_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _write(tmp_path, "row0")
    shards = Shards(tmp_path, width=4)
    evict([tmp_path], limit_bytes=0, keep=())
    assert "row0" not in shards
    assert "damaged" not in caplog.text
