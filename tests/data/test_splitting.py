import logging

import numpy as np
import pytest

from mtlops.data.grouping import connect
from mtlops.data.rows import NO_TIME
from mtlops.data.splitting import TEST, TRAIN, VALID, Evidence, assign
from mtlops.params import Data


def split(groups, *, times=None, splits=None, labels=None, sources=None, data=None):
    """Returns the split of each row; row i has text i."""
    names = [f"{row:05d}" for row in range(len(groups))]
    components = connect(names, keys=names, groups=groups)
    evidence = Evidence(
        source=np.asarray(sources or [0] * len(groups)),
        times=np.asarray([NO_TIME if time is None else time for time in times or [None] * len(groups)]),
        splits=splits or [None] * len(groups),
        labels=labels or {"t": ["x"] * len(groups)},
    )
    return assign(components, evidence, data=data or Data())[components.of_row]


def test_shares_are_about_as_asked_and_the_seed_matters():
    found = split([None] * 4000)
    assert np.bincount(found) / 4000 == pytest.approx([0.7, 0.1, 0.2], abs=0.02)
    assert (found != split([None] * 4000, data=Data(seed=1))).any()


def test_a_component_keeps_its_side_when_rows_come_and_go():
    assert (split([None] * 900)[:500] == split([None] * 500)).all()


def test_a_split_that_the_source_gives_stays_and_a_missing_one_is_cut_from_train():
    given = ["train"] * 400 + ["test"] * 100
    found = split([None] * 500, splits=given)
    assert (found[400:] == TEST).all()
    assert set(found[:400].tolist()) == {TRAIN, VALID}
    assert (found == VALID).sum() == pytest.approx(50, abs=20)
    assert set(split([None] * 400, splits=["train"] * 400).tolist()) == {TRAIN, VALID, TEST}


def test_a_group_that_is_told_two_splits_goes_to_the_later_one():
    given = ["train", "test", "valid", "train"] * 10
    groups = ["a", "a", "b", "b"] * 10
    assert set(split(groups, splits=given)[2:4].tolist()) == {VALID}
    assert set(split(groups, splits=given)[:2].tolist()) == {TEST}


def test_the_newest_components_are_tested_on_and_the_next_newest_validate():
    found = split([None] * 100, times=list(range(100)))
    assert found.tolist() == [TRAIN] * 70 + [VALID] * 10 + [TEST] * 20


def test_a_group_goes_by_its_newest_row():
    groups = [f"g{row % 50}" for row in range(100)]
    found = split(groups, times=list(range(100)))
    assert (found[:50] == found[50:]).all()
    assert set(found[90:].tolist()) == {TEST}


def test_time_is_looked_at_within_a_source():
    found = split([None] * 200, times=list(range(200)), sources=[0] * 100 + [1] * 100)
    assert (found[:100] == found[100:]).all()


def test_a_giant_component_is_trained_on():
    for seed in range(8):
        found = split(["giant"] * 60 + [None] * 60, data=Data(seed=seed))
        assert set(found[:60].tolist()) == {TRAIN}


@pytest.mark.parametrize("size", [3, 4, 10])
def test_a_handful_of_rows_still_fills_every_split(size):
    for seed in range(8):
        assert set(split([None] * size, data=Data(seed=seed)).tolist()) == {TRAIN, VALID, TEST}


def test_every_split_has_every_class_with_enough_rows():
    labels = {
        "t": ["rare" if row < 20 else "usual" for row in range(600)],
        "u": [("rare",) if row % 29 == 0 else () for row in range(600)],
    }
    groups = [f"g{row // 5}" if row < 20 else None for row in range(600)]
    for seed in range(8):
        found = split(groups, labels=labels, data=Data(seed=seed))
        for task, values in labels.items():
            for code in (TRAIN, VALID, TEST):
                assert any("rare" in values[row] for row in np.flatnonzero(found == code)), (task, code)


def test_a_class_in_one_group_is_said_to_be_missing_elsewhere(caplog):
    labels = {"t": ["rare"] * 30 + ["usual"] * 300}
    with caplog.at_level(logging.WARNING):
        found = split(["one"] * 30 + [None] * 300, labels=labels)
    assert len(set(found[:30].tolist())) == 1
    assert "task=t class='rare' split=test has no row" in caplog.text
