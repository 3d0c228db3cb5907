"""Units of adapters: what their importance is, and what is left without them."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mtlops import catalog
from mtlops.model import multitask
from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.predictor import Backbone
from mtlops.model.pruning import importance, prune, unit_tensors, width
from mtlops.params import Model
from mtlops.tasks import Task
from tests.tiny_encoder import WORDS, write_prepared_encoder

WITH_UNITS = ("pfeiffer", "houlsby", "parallel", "lora", "mam", "masked")
TASK = Task("tone", "multiclass", ("bad", "so", "good"))
ROWS = [f"r{i}" for i in range(40)]
LABELS = np.arange(40) % 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("p")
    write_prepared_encoder(folder / "encoder")
    return folder


def _backbone(folder: Path, adapter: str) -> Backbone:
    model = Model(adapter=adapter, adapter_drop=1, bottleneck=6)
    made = Backbone(folder / "encoder", cache=folder / "cache", model=model, max_tokens=16)
    random = np.random.default_rng(0)
    made.cache.fill(ROWS, [" ".join(random.choice(WORDS, size=random.integers(2, 12))) for _ in ROWS])
    return made


def _served(backbone: Backbone, seed: int = 0) -> Tensors:
    """Tensors as if they had been trained: nothing in them is zero."""
    generator = torch.Generator().manual_seed(seed)
    fresh = backbone.pairs.init(TASK, generator)
    trained = {name: t + 0.3 * torch.randn(t.shape, generator=generator) for name, t in fresh.items()}
    return backbone.pairs.adapter.bank(trained, training=False)


def _gate(tensors: Tensors, name: str, unit: int, value: float) -> Tensors:
    gates = torch.ones(tensors[name].shape[0], 1, dtype=tensors[name].dtype)
    gates[unit] = value
    return {**tensors, name: tensors[name] * gates}


def _row_losses(backbone: Backbone, tensors: Tensors) -> np.ndarray:
    loss = catalog.load(catalog.KINDS[TASK.kind].loss)
    double = multitask.stack([tensors])
    backbone.cache.trunk.double()
    try:
        state, mask = backbone.batch(ROWS)
        logits = multitask.logits(backbone.pairs(state.double(), mask, double), double)
        return loss(logits, torch.from_numpy(LABELS)).numpy()
    finally:
        backbone.cache.trunk.float()


@pytest.mark.parametrize("adapter", WITH_UNITS)
def test_importance_is_the_slope_of_the_loss_along_a_gate(folder: Path, adapter: str) -> None:
    backbone = _backbone(folder, adapter)
    tensors = _served(backbone)
    scores = importance(TASK, tensors, backbone, row_ids=ROWS, labels=LABELS)
    assert set(scores) == set(unit_tensors(tensors))
    exact = {name: tensor.double() for name, tensor in tensors.items()}
    for name in scores:
        for unit in (0, 5):
            higher, lower = (_row_losses(backbone, _gate(exact, name, unit, 1 + e)) for e in (1e-6, -1e-6))
            slope = np.abs((higher - lower) / 2e-6).mean()
            assert scores[name][unit] == pytest.approx(slope, rel=1e-3, abs=1e-6), (name, unit)


@pytest.mark.parametrize("adapter", WITH_UNITS)
def test_without_units_that_do_nothing_every_answer_stays(folder: Path, adapter: str) -> None:
    backbone = _backbone(folder, adapter)
    tensors = _served(backbone)
    for name in unit_tensors(tensors):
        for unit in (1, 4, 5):
            tensors = _gate(tensors, name, unit, 0.0)
    scores = importance(TASK, tensors, backbone, row_ids=ROWS, labels=LABELS)
    pruned = prune(tensors, scores, keep=0.5)
    assert width(tensors) == 6 and width(pruned) == 3
    assert np.abs(backbone.logits(ROWS, pruned) - backbone.logits(ROWS, tensors)).max() < 1e-5
    assert sum(t.numel() for t in pruned.values()) < sum(t.numel() for t in tensors.values())


@pytest.mark.parametrize("adapter", WITH_UNITS)
def test_keeping_all_changes_no_bit_and_at_least_one_stays(folder: Path, adapter: str) -> None:
    backbone = _backbone(folder, adapter)
    tensors = _served(backbone)
    scores = importance(TASK, tensors, backbone, row_ids=ROWS, labels=LABELS)
    whole = prune(tensors, scores, keep=1.0)
    assert all(torch.equal(whole[name], tensor) for name, tensor in tensors.items())
    assert width(prune(tensors, scores, keep=0.01)) == 1


def test_the_least_important_units_go_and_the_others_keep_their_order() -> None:
    tensors = {
        "layers.0.down": torch.arange(8.0).reshape(2, 4), "layers.0.down_bias": torch.arange(4.0),
        "layers.0.up": torch.arange(12.0).reshape(4, 3), "layers.0.up_bias": torch.ones(3), "head.bias": torch.ones(2),
    }  # fmt: skip
    pruned = prune(tensors, {"layers.0.up": np.array([0.2, 0.9, 0.1, 0.5])}, keep=0.5)
    assert pruned["layers.0.down_bias"].tolist() == [1.0, 3.0]
    assert pruned["layers.0.down"].tolist() == [[1.0, 3.0], [5.0, 7.0]]
    assert pruned["layers.0.up"].tolist() == [[3.0, 4.0, 5.0], [9.0, 10.0, 11.0]]
    assert pruned["layers.0.up_bias"].tolist() == [1.0] * 3 and pruned["head.bias"].tolist() == [1.0] * 2
    for share, units in ((0.25, 1), (0.26, 2), (0.75, 3)):
        assert width(prune(tensors, {"layers.0.up": np.ones(4)}, keep=share)) == units


@pytest.mark.parametrize("adapter", [name for name in catalog.ADAPTERS if name not in WITH_UNITS])
def test_other_adapters_have_no_units(folder: Path, adapter: str) -> None:
    if adapter == "fusion":
        assert not unit_tensors({f"layers.1.{part}": torch.zeros(2, 3, 4) for part in ("down", "up", "down_bias")})
        return
    assert width(_served(_backbone(folder, adapter))) == 0


@pytest.mark.parametrize("adapter", WITH_UNITS)
def test_tasks_of_different_width_answer_together_as_alone(folder: Path, adapter: str) -> None:
    backbone = _backbone(folder, adapter)
    wide, other = _served(backbone), _served(backbone, seed=3)
    scores = importance(TASK, other, backbone, row_ids=ROWS, labels=LABELS)
    narrow = prune(other, scores, keep=0.3)
    bank = multitask.pick(multitask.stack([wide, narrow]), torch.tensor([0, 1] * 20))
    with torch.inference_mode():
        together = multitask.logits(backbone.pairs(*backbone.batch(ROWS), bank), bank).numpy()
    alone = np.where((np.arange(40) % 2)[:, None], backbone.logits(ROWS, narrow), backbone.logits(ROWS, wide))
    assert np.abs(together - alone).max() < 1e-5
