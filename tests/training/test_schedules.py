"""Rates over steps and over layers, in closed forms and against torch's own schedules."""

from itertools import pairwise

import pytest
import torch

from mtlops import catalog
from mtlops.training.schedules import frozen_names, rate, rates_by_layer, unlayered

NAMES = ["layers.3.up", "layers.4.down", "layers.5.up", "head.weight", "head.bias"]


@pytest.mark.parametrize("name", catalog.SCHEDULES)
def test_every_schedule_rises_to_the_peak_and_never_again(name: str) -> None:
    schedule = catalog.load(catalog.SCHEDULES[name].code)
    rates = [rate(done, total=100, warmup_share=0.1, schedule=schedule) for done in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0 and all(a >= b >= 0 for a, b in pairwise(rates[10:]))
    end = rate(100, total=100, warmup_share=0.1, schedule=schedule)
    assert end == (1.0 if name == "constant" else 0.0)


def test_cosine_is_torch_s() -> None:
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    schedule = catalog.load(catalog.SCHEDULES["cosine"].code)
    for done in range(40):
        ours = rate(done + 1, total=41, warmup_share=0.0, schedule=schedule)
        assert ours == pytest.approx(theirs.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        theirs.step()


def test_a_run_of_one_step_learns() -> None:
    for name in catalog.SCHEDULES:
        assert rate(0, total=1, warmup_share=0.06, schedule=catalog.load(catalog.SCHEDULES[name].code)) == 1.0


def test_each_layer_learns_slower_than_the_one_above() -> None:
    found = rates_by_layer([*NAMES, "word_embeddings.weight", "layers.0.norm.bias"], 0.5)
    assert found == {
        "layers.5.up": 1.0, "layers.4.down": 0.5, "layers.3.up": 0.25, "layers.0.norm.bias": 0.5**5,
        "word_embeddings.weight": 0.5**6, "head.weight": 1.0, "head.bias": 1.0,
    }  # fmt: skip
    assert set(rates_by_layer(NAMES, 1.0).values()) == {1.0}


def test_layers_thaw_from_the_top_one_an_epoch() -> None:
    assert frozen_names(NAMES, epoch=1) == {"layers.3.up", "layers.4.down"}
    assert frozen_names(NAMES, epoch=2) == {"layers.3.up"}
    assert frozen_names(NAMES, epoch=3) == frozen_names(NAMES, epoch=9) == frozenset()


def test_tensors_of_all_layers_at_once_are_told_apart() -> None:
    assert unlayered([*NAMES, "prefix.inner", "embedding_norm.weight"]) == ["prefix.inner"]
