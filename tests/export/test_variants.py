"""Graphs in other number formats: near the float graph, with the same bank, the same bytes each time."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from mtlops import catalog
from mtlops.errors import ArtefactError
from mtlops.export import quantisation
from mtlops.export.external import BANK
from mtlops.export.graph import PairsGraph, write_onnx
from mtlops.export.quantisation import calibrate, read_ranges, write_static
from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.adapters.fusion import Fusion
from mtlops.model.encoders import load_trunk
from mtlops.model.multitask import PairModel
from mtlops.params import Model
from mtlops.tasks import Task
from tests.tiny_encoder import write_encoder

TASKS = (Task("mood", "multiclass", ("bad", "fair", "good")), Task("stars", "regression", range=(1.0, 5.0)))
CASES = [
    pytest.param(adapter, drop, marks=[pytest.mark.slow] if (adapter, drop) != ("pfeiffer", 2) else [])
    for adapter in ("pfeiffer", "lora", "prefix", "fusion")
    for drop in (0, 2)
]
NEAR = {"int8": 0.5, "int8-dynamic": 0.5, "fp16": 0.02}
"""Largest error, in standard deviations of the logits."""

Feeds = dict[str, NDArray[np.int64]]


def feeds(*lengths: int, seed: int = 0) -> Feeds:
    """A batch of texts of these lengths, each asked for both tasks and its embedding."""
    random, rows = np.random.default_rng(seed), len(lengths)
    mask = (np.arange(max(lengths)) < np.asarray(lengths)[:, None]).astype(np.int64)
    return {
        "input_ids": random.integers(4, 30, mask.shape) * mask,
        "attention_mask": mask,
        "pair_row": np.tile(np.arange(rows), 2),
        "pair_task": np.repeat(np.arange(2), rows),
        "embed_row": np.arange(rows),
    }


def passes() -> Iterator[Feeds]:
    """Rows without padding to take ranges from."""
    for seed in range(24):
        yield feeds(3 + seed % 14, seed=100 + seed)


def make_graph(folder: Path, adapter: str, *, drop: int, seed: int = 0) -> PairsGraph:
    """A model of two tasks with random adapters and heads."""
    trunk = load_trunk(folder)
    pairs = PairModel(trunk, Model(adapter=adapter, adapter_drop=drop, prefix_length=3, bottleneck=4))
    if isinstance(pairs.adapter, Fusion):
        single = PairModel(trunk, Model(adapter="pfeiffer", adapter_drop=drop, bottleneck=4))
        pairs.adapter.listen_to([_shaken(single, TASKS[0], n) for n in range(2)], names=["a", "b"])
    tensors = [pairs.adapter.bank(_shaken(pairs, task, seed + n), training=False) for n, task in enumerate(TASKS)]
    return PairsGraph(trunk, pairs, tasks=tensors, embedding="last")


def _shaken(pairs: PairModel, task: Task, seed: int) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {n: t + torch.randn(t.shape, generator=generator) * 0.2 for n, t in pairs.init(task, generator).items()}


def bank_of(graph: PairsGraph) -> dict[str, Any]:
    """Adapters and heads as a server gives them."""
    return {f"{BANK}{name}": tensor.detach().numpy() for name, tensor in graph.bank.named_parameters()}


def banks_in(path: Path) -> dict[str, Any]:
    """The same, from a graph's file."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in tensors if tensor.name.startswith(BANK)}


def answer(path: Path, inputs: Feeds, bank: dict[str, Any] | None = None) -> list[NDArray[np.float32]]:
    """Logits and embeddings."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    found: list[NDArray[np.float32]] = session.run(["logits", "embedding"], {**inputs, **(bank or {})})
    return found


@pytest.fixture(scope="module")
def graphs(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`model.onnx` of a model, and of one with the same trunk and other adapters."""
    found = {}
    for name, seed in (("mine", 0), ("other", 50)):
        found[name] = tmp_path_factory.mktemp(name) / "model.onnx"
        write_onnx(make_graph(encoder, "pfeiffer", drop=1, seed=seed), found[name], opset=20)
    return found


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Large enough for its table and matrices to lie beside the graph."""
    return write_encoder(tmp_path_factory.mktemp("encoder"), hidden=64)


@pytest.mark.parametrize(("adapter", "drop"), CASES)
def test_every_variant_is_near_the_float_graph_and_takes_another_bank(
    encoder: Path, tmp_path: Path, adapter: str, drop: int
) -> None:
    mine, other = (make_graph(encoder, adapter, drop=drop, seed=seed) for seed in (0, 50))
    write_onnx(mine, tmp_path / "model.onnx", opset=20)
    inputs = feeds(9, 5, 7)
    full = answer(tmp_path / "model.onnx", inputs)
    swapped = answer(tmp_path / "model.onnx", inputs, bank_of(other))
    assert np.abs(full[0] - swapped[0]).max() > 0.1
    for name, variant in catalog.VARIANTS.items():
        path = tmp_path / f"model.{name}.onnx"
        catalog.load(variant.code)(tmp_path / "model.onnx", path, passes=passes(), like=None)
        for found, expected in ((answer(path, inputs), full), (answer(path, inputs, bank_of(other)), swapped)):
            for ours, theirs in zip(found, expected, strict=True):
                assert 0 < np.abs(ours - theirs).max() < NEAR[name] * theirs.std(), name


def test_static_integers_answer_a_row_alone_and_among_others_alike(graphs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.int8.onnx"
    write_static(graphs["mine"], path, passes=passes())
    together = feeds(9, 5, 7)
    logits = answer(path, together)[0]
    for row, length in enumerate((9, 5, 7)):
        alone = feeds(length)
        alone["input_ids"] = together["input_ids"][row : row + 1, :length]
        assert answer(path, alone)[0].tobytes() == logits[[row, row + 3]].tobytes()


def test_the_trunk_computes_in_integers_and_its_file_is_a_quarter(graphs: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "model.int8.onnx"
    write_static(graphs["mine"], path, passes=passes())
    proto = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    floats = [t.name for t in tensors.values() if t.data_type == t.FLOAT and len(t.dims) == 2 and BANK not in t.name]
    assert not [name for name in floats if np.prod(tensors[name].dims) >= 1 << 14]
    full, ours = (Path(f"{file}.data").stat().st_size for file in (graphs["mine"], path))
    assert ours < 0.3 * full
    assert not [n for n in proto.graph.node if n.op_type == "Transpose" and n.input[0] in tensors]


def test_the_same_graph_gives_the_same_bytes_and_a_parent_gives_its_ranges(
    graphs: dict[str, Path], tmp_path: Path
) -> None:
    first, again, update = (tmp_path / f"{name}.onnx" for name in ("first", "again", "update"))
    write_static(graphs["mine"], first, passes=passes())
    write_static(graphs["mine"], again, passes=passes())
    assert Path(f"{again}.data").read_bytes() == Path(f"{first}.data").read_bytes()
    assert again.read_bytes() == first.read_bytes().replace(b"first.onnx.data", b"again.onnx.data")
    write_static(graphs["other"], update, passes=iter(()), like=first)
    assert read_ranges(update) == read_ranges(first) == calibrate(graphs["mine"], passes())
    assert Path(f"{update}.data").read_bytes() == Path(f"{first}.data").read_bytes()
    inputs, bank = feeds(9, 5), banks_in(graphs["other"])
    assert answer(update, inputs)[0].tobytes() == answer(first, inputs, bank)[0].tobytes()


def test_ranges_of_another_graph_are_refused(encoder: Path, graphs: dict[str, Path], tmp_path: Path) -> None:
    write_onnx(make_graph(encoder, "pfeiffer", drop=2), tmp_path / "model.onnx", opset=20)
    write_static(tmp_path / "model.onnx", tmp_path / "model.int8.onnx", passes=passes())
    with pytest.raises(ArtefactError, match="it is of another graph"):
        write_static(graphs["mine"], tmp_path / "b.onnx", passes=passes(), like=tmp_path / "model.int8.onnx")


def test_values_that_meet_the_same_weights_are_levelled_alike(graphs: dict[str, Path]) -> None:
    ranges = calibrate(graphs["mine"], passes())
    products = quantisation._products(onnx.load(graphs["mine"], load_external_data=False))
    by_weight: dict[str, set[tuple[float, ...]]] = {}
    for product in products:
        by_weight.setdefault(product.weight, set()).add(ranges[product.value].factors)
    assert {len(factors) for factors in by_weight.values()} == {1}
    assert len({product.value for product in products}) > len(set().union(*by_weight.values()))


@pytest.mark.slow
def test_large_columns_leave_levels_to_the_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_encoder(tmp_path / "encoder", hidden=64)
    weights = load_file(folder / "model.safetensors")
    for name, tensor in weights.items():
        if name.endswith("LayerNorm.weight"):
            tensor[5] *= 30
    save_file(weights, folder / "model.safetensors")
    source = tmp_path / "model.onnx"
    write_onnx(make_graph(folder, "pfeiffer", drop=1), source, opset=20)
    errors = {}
    for strength in (quantisation.LEVELLING, 0.0):
        monkeypatch.setattr(quantisation, "LEVELLING", strength)
        write_static(source, source.with_name("int8.onnx"), passes=passes())
        pairs = [(answer(source.with_name("int8.onnx"), inputs)[0], answer(source, inputs)[0]) for inputs in passes()]
        errors[strength] = float(np.mean([np.abs(ours - theirs).mean() for ours, theirs in pairs]))
    assert errors.pop(0.0) * 0.7 > min(errors.values())
