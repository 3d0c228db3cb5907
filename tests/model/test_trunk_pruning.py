"""Heads and units of trained layers: what their importance is, and that nothing changes without those that are zero."""

from pathlib import Path

import numpy as np
import pytest
import torch

from mtlops import catalog
from mtlops.export.rows import RowsGraph
from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.predictor import Backbone
from mtlops.model.trunk_pruning import importance, prune, sizes, together
from mtlops.params import Model
from mtlops.tasks import Task
from tests.tiny_encoder import WORDS, write_prepared_encoder

TASKS = (Task("tone", "multiclass", ("bad", "so", "good")), Task("topic", "binary", ("n", "p")))
ROWS = [f"r{i}" for i in range(40)]
HEADS, SIZE = 4, 4
SCHEMES: dict[str, dict[str, object]] = {
    "hard": {"sharing": "hard", "tuned_layers": 2},
    "hard, mean": {"sharing": "hard", "tuned_layers": "all", "tune_embeddings": True, "pooling": "mean"},
    "hierarchical": {"sharing": "hierarchical", "tuned_layers": "all", "depths": {"tone": 1}},
    "l2": {"sharing": "soft"},
    "cross-stitch": {"sharing": "soft", "soft": "cross-stitch", "pooling": "first-last"},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("p")
    for family in ("bert", "mpnet"):
        write_prepared_encoder(folder / family, family=family)
    return folder


def _backbone(folder: Path, scheme: str, family: str = "bert") -> Backbone:
    made = Backbone(
        folder / family, cache=folder / "cache", model=Model(**SCHEMES[scheme]), max_tokens=16,
        tasks=[task.name for task in TASKS],
    )  # fmt: skip
    random = np.random.default_rng(0)
    made.fill(ROWS, [" ".join(random.choice(WORDS, size=random.integers(2, 12))) for _ in ROWS])
    return made


def _trained(backbone: Backbone) -> tuple[Tensors, list[Tensors]]:
    generator = torch.Generator().manual_seed(0)
    start = backbone.sharing.start()
    shared = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in start.items()}
    return shared, [backbone.sharing.init(task, generator) for task in TASKS]


def _labels(task: Task) -> np.ndarray:
    return np.arange(len(ROWS)) % len(task.classes)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_importance_is_the_slope_of_the_loss_at_each_gate(folder: Path, scheme: str) -> None:
    """Against finite differences: the way out of a head or unit is made a little larger and a little smaller."""
    backbone = _backbone(folder, scheme)
    shared, heads = _trained(backbone)
    task, step = TASKS[0], 1e-2
    loss = catalog.load(catalog.KINDS[task.kind].loss)
    found = importance(task, heads[0], backbone, shared=shared, row_ids=ROWS, labels=_labels(task))

    def losses(name: str, columns: slice, factor: float) -> np.ndarray:
        weight = shared[name].clone()
        weight[:, columns] *= factor
        logits = backbone.shared_logits(ROWS, heads[0], shared={**shared, name: weight}, task=task.name)
        return loss(torch.from_numpy(logits).double(), torch.from_numpy(_labels(task))).numpy()

    def slopes(name: str, width: int, num: int) -> np.ndarray:
        parts = [slice(i * width, (i + 1) * width) for i in range(num)]
        steps = [losses(name, part, 1 + step) - losses(name, part, 1 - step) for part in parts]
        return np.asarray([np.abs(change / (2 * step)).mean() for change in steps])

    assert found
    for start, scores in found.items():
        for part, width, of_part in (("attention_output", SIZE, scores.heads), ("output", 1, scores.units)):
            expected = slopes(f"{start}{part}.weight", width, min(len(of_part), 8))
            ratio = of_part[: len(expected)] / of_part[0]
            assert ratio == pytest.approx(expected / expected[0], rel=0.05, abs=0.02), (start, part)
            assert np.linalg.norm(of_part) == pytest.approx(1.0)


@pytest.mark.parametrize("family", ["bert", "mpnet"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_graph_without_zeros_is_the_same_function(folder: Path, scheme: str, family: str) -> None:
    backbone = _backbone(folder, scheme, family)
    shared, heads = _trained(backbone)
    scores = together([
        importance(task, head, backbone, shared=shared, row_ids=ROWS, labels=_labels(task))
        for task, head in zip(TASKS, heads, strict=True)
    ])  # fmt: skip
    pruned = prune(shared, scores, keep=0.5)
    before, after = (sizes(tensors, num_heads=HEADS) for tensors in (shared, pruned))
    assert before.keys() == after.keys() == scores.keys()
    for name in before:
        assert (before[name]["heads"], before[name]["units"]) == (4, 64)
        assert (after[name]["heads"], after[name]["units"]) == (2, 32)
        assert after[name]["parameters"] < 0.6 * before[name]["parameters"]
    whole = RowsGraph(backbone.sharing, shared, heads)
    graph = RowsGraph(backbone.sharing, pruned, heads)
    layer = graph._sharing.trained[-1]
    assert layer.output.weight.shape == (16, 32)
    assert layer.query.weight.shape == ((8, 16) if family == "bert" else (16, 16))  # distances belong to all heads
    assert whole._sharing.trained[-1].output.weight.shape == (16, 64)
    texts = ["a good film", "the moon of the planet was great"]
    ids = [torch.tensor(tokens) for tokens in backbone.tokenizer.ids(texts)]
    for row, (text, tokens) in enumerate(zip(texts, ids, strict=True)):
        arrays = tokens[None], torch.ones(1, len(tokens), dtype=torch.int64)
        for number, task in enumerate(TASKS):
            logits, _ = graph(*arrays, torch.tensor([0]), torch.tensor([number]), torch.tensor([0]))
            expected = backbone.logits_of_texts([text], heads[number], shared=pruned, task=task.name)
            assert np.allclose(logits[:, : len(task.classes)].detach(), expected, atol=1e-5), (row, task.name)


def test_what_matters_least_goes_and_one_of_each_stays(folder: Path) -> None:
    backbone = _backbone(folder, "hard")
    shared, heads = _trained(backbone)
    name = "layers.2."
    scores = importance(TASKS[0], heads[0], backbone, shared=shared, row_ids=ROWS, labels=_labels(TASKS[0]))
    pruned = prune(shared, scores, keep=0.01)
    (kept,) = np.flatnonzero((pruned[f"{name}output.weight"] != 0).any(0).numpy())
    assert kept == scores[name].units.argmax()
    assert sizes(pruned, num_heads=HEADS)[name]["heads"] == 1
    unchanged = [other for other in shared if not other.endswith("output.weight")]
    assert all(torch.equal(shared[other], pruned[other]) for other in unchanged)
