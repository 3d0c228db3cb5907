"""Mixtures of old and new rows: stated sizes, the same bytes, tests apart."""

from pathlib import Path

import pytest

from mtlops.data.mixing import mix_splits
from mtlops.data.prepared import read_split
from mtlops.files import sha256_tree
from mtlops.steps.admit import admit
from tests.tiny_suite import Workspace
from tests.tiny_window import write_window


@pytest.fixture(scope="module")
def prepared(finished: Workspace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished project's splits with a labelled window."""
    root = tmp_path_factory.mktemp("mixing")
    admit(finished.params(), rows=write_window(root / "shift.jsonl"), tasks=["topic"], windows=root / "windows",
          **finished.paths("prepared"), out=root / "prepared")  # fmt: skip
    return root / "prepared"


def _rows(folder: Path, split: str) -> set[str]:
    table = read_split(folder, "topic", split)
    assert len(set(table["row_id"].to_pylist())) == table.num_rows
    return set(table["row_id"].to_pylist())


@pytest.mark.parametrize("mix, share", [("all", None), (0.5, 0.5), (0.0, 0.0), (1000.0, None)])
def test_old_rows_are_mixed_in_as_asked(prepared: Path, tmp_path: Path, mix: float, share: float | None) -> None:
    mixed = mix_splits(prepared, windows={"topic": "shift"}, mix=mix, seed=0, cache=tmp_path)
    old, new = read_split(prepared, "topic", "train", without="shift"), _rows(mixed.window, "train")
    wanted = old.num_rows if share is None else round(share * len(new))
    assert new <= _rows(mixed.known, "train")
    assert len(_rows(mixed.known, "train") - new) == wanted


@pytest.mark.parametrize("mix, fewest, wanted", [(0.1, 7, 7), (0.0, 7, 0), (0.1, 10_000, None)])
def test_a_small_window_is_mixed_with_a_fewest_number_of_old_rows(
    prepared: Path, tmp_path: Path, mix: float, fewest: int, wanted: int | None
) -> None:
    mixed = mix_splits(prepared, windows={"topic": "shift"}, mix=mix, fewest=fewest, seed=0, cache=tmp_path)
    old = read_split(prepared, "topic", "train", without="shift").num_rows
    assert len(_rows(mixed.known, "train") - _rows(mixed.window, "train")) == (old if wanted is None else wanted)


def test_known_tests_hold_no_row_of_the_window_and_validation_holds_all(prepared: Path, tmp_path: Path) -> None:
    mixed = mix_splits(prepared, windows={"topic": "shift"}, mix=1.0, seed=0, cache=tmp_path)
    assert _rows(mixed.known, "test") == set(
        read_split(prepared, "topic", "test", without="shift")["row_id"].to_pylist()
    )
    assert not _rows(mixed.known, "test") & _rows(mixed.window, "test")
    assert _rows(mixed.known, "valid") == set(read_split(prepared, "topic", "valid")["row_id"].to_pylist())


def test_the_same_request_gives_the_same_bytes_once(prepared: Path, tmp_path: Path) -> None:
    made = [mix_splits(prepared, windows={"topic": "shift"}, mix=0.5, seed=0, cache=tmp_path / n) for n in "ab"]
    assert sha256_tree(made[0].known.parent) == sha256_tree(made[1].known.parent)
    again = mix_splits(prepared, windows={"topic": "shift"}, mix=0.5, seed=0, cache=tmp_path / "a")
    other = mix_splits(prepared, windows={"topic": "shift"}, mix=0.5, seed=1, cache=tmp_path / "a")
    assert again == made[0]
    assert other.known != again.known
    assert _rows(other.known, "train") != _rows(again.known, "train")


def test_without_a_window_all_rows_are_old_and_new(prepared: Path, tmp_path: Path) -> None:
    mixed = mix_splits(prepared, windows={"mood": None}, mix=1.0, seed=0, cache=tmp_path)
    for split in ("train", "valid", "test"):
        assert read_split(mixed.known, "mood", split).equals(read_split(prepared, "mood", split))
        assert read_split(mixed.window, "mood", split).equals(read_split(prepared, "mood", split))
