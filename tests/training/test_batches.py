"""Every row once an epoch, and each task's path independent of the other tasks."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mtlops.training.batches import batches_per_task, plan_epoch, plan_rounds, skip_each, skip_lowest

_LENGTHS = st.dictionaries(
    st.sampled_from(["a", "b", "c", "d"]), st.lists(st.integers(2, 64), min_size=1, max_size=200), min_size=1
)


def _arrays(lengths: dict[str, list[int]]) -> dict[str, np.ndarray]:
    return {task: np.array(values) for task, values in lengths.items()}


@given(_LENGTHS, st.integers(1, 40), st.integers(1, 5))
def test_every_row_exactly_once(lengths: dict[str, list[int]], size: int, epoch: int) -> None:
    steps = plan_epoch(_arrays(lengths), epoch=epoch, seed=0, batch_size=size)
    for task, values in lengths.items():
        seen = np.concatenate([step.rows[task] for step in steps if task in step.rows])
        assert sorted(seen.tolist()) == list(range(len(values)))
        assert all(len(step.rows[task]) <= size for step in steps if task in step.rows)


@given(_LENGTHS, st.integers(1, 40))
def test_a_task_s_batches_do_not_depend_on_other_tasks(lengths: dict[str, list[int]], size: int) -> None:
    together = plan_epoch(_arrays(lengths), epoch=1, seed=0, batch_size=size)
    for task in lengths:
        alone = plan_epoch(_arrays({task: lengths[task]}), epoch=1, seed=0, batch_size=size)
        assert [s.rows[task].tolist() for s in together if task in s.rows] == [s.rows[task].tolist() for s in alone]


def test_epochs_and_seeds_give_other_orders() -> None:
    lengths = {"a": np.full(100, 10)}

    def order(epoch: int, seed: int) -> list[int]:
        return np.concatenate([s.rows["a"] for s in plan_epoch(lengths, epoch=epoch, seed=seed, batch_size=8)]).tolist()

    assert order(1, 0) == order(1, 0) and order(1, 0) != order(2, 0) and order(1, 0) != order(1, 1)


def test_similar_lengths_share_a_step_and_others_do_not() -> None:
    lengths = {"short": np.full(8, 10), "same": np.full(8, 11), "long": np.full(8, 60)}
    steps = plan_epoch(lengths, epoch=1, seed=0, batch_size=8)
    assert [set(step.rows) for step in steps] == [{"short", "same"}, {"long"}]


def test_only_batches_that_leave_out_the_same_layers_share_a_step() -> None:
    lengths = {task: np.full(400, 10) for task in "abc"}
    steps = plan_epoch(lengths, epoch=1, seed=0, batch_size=8, skip=skip_lowest(range(3)))
    assert {step.skipped for step in steps} == {frozenset(), frozenset({0}), frozenset({0, 1})}
    assert {len(step.rows) for step in steps} == {1, 2, 3}
    for task in lengths:
        alone = plan_epoch({task: lengths[task]}, epoch=1, seed=0, batch_size=8, skip=skip_lowest(range(3)))
        of_task = [s for s in steps if task in s.rows]
        assert sorted((s.rows[task][0], sorted(s.skipped)) for s in of_task) == sorted(
            (s.rows[task][0], sorted(s.skipped)) for s in alone
        )


def test_each_layer_is_left_out_at_its_rate() -> None:
    random, rule = np.random.default_rng(0), skip_each(range(4), 0.25)
    draws = [rule(random) for _ in range(4000)]
    for layer in range(4):
        assert abs(sum(layer in draw for draw in draws) / 4000 - 0.25) < 0.03


@given(_LENGTHS, st.integers(1, 40))
def test_rounds_take_every_row_once_and_a_task_at_most_once_a_round(lengths: dict[str, list[int]], size: int) -> None:
    rounds = plan_rounds(_arrays(lengths), epoch=1, seed=0, batch_size=size)
    assert len(rounds) == max(-(-len(values) // size) for values in lengths.values())
    for task, values in lengths.items():
        seen = np.concatenate([rows[task] for rows in rounds if task in rows])
        assert sorted(seen.tolist()) == list(range(len(values)))


def test_temperature_takes_small_tasks_oftener_in_as_many_batches() -> None:
    rows = {"large": 6400, "middle": 1600, "small": 100}
    assert batches_per_task(rows, 10, 1.0) == {"large": 640, "middle": 160, "small": 10}
    root = batches_per_task(rows, 10, 2.0)
    assert root["large"] / root["middle"] == pytest.approx(2, rel=0.02)
    assert root["large"] / root["small"] == pytest.approx(8, rel=0.02)
    assert sum(root.values()) == pytest.approx(810, abs=2)
    assert max(batches_per_task(rows, 10, 1e6).values()) - min(batches_per_task(rows, 10, 1e6).values()) <= 1


def test_a_small_task_goes_through_its_rows_again_and_a_large_one_through_others_each_epoch() -> None:
    lengths = {"large": np.full(640, 8), "small": np.full(40, 8)}
    seen = []
    for epoch in (1, 2):
        rounds = plan_rounds(lengths, epoch=epoch, seed=0, batch_size=10, temperature=1e6)
        small = np.concatenate([rows["small"] for rows in rounds if "small" in rows])
        assert len(small) == 340 and set(np.bincount(small)) == {8, 9}
        seen.append(frozenset(np.concatenate([rows["large"] for rows in rounds if "large" in rows]).tolist()))
    assert len(seen[0]) == len(seen[1]) == 340 and seen[0] != seen[1]
