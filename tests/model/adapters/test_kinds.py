"""Each adapter against transformers' BERT with the published formula written into its modules by hand."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import relu, silu
from transformers import AutoModel, BertModel

from mtlops import catalog
from mtlops.model import multitask
from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.adapters.fusion import Fusion, keep_sources
from mtlops.model.adapters.masked import Masked
from mtlops.model.encoders import Trunk, load_trunk
from mtlops.model.multitask import PairModel
from mtlops.params import Model
from mtlops.tasks import Task
from tests.tiny_encoder import write_encoder

DROP = 1
TASK = Task("a", "binary", ("n", "p"))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


class _AfterDense(nn.Module):
    """Stands for a BertSelfOutput or BertOutput: `formula(dense(h), x)` goes into its norm."""

    def __init__(self, block: nn.Module, formula: Callable[[Tensor, Tensor, nn.Module], Tensor]) -> None:
        super().__init__()
        self.block, self.formula = block, formula

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        norm = self.block.LayerNorm
        return norm(self.formula(self.block.dense(hidden), x, norm))


class _Prefixed(nn.Module):
    """Stands for a BertSelfAttention: softmax(q [P_K; K]^T / sqrt d) [P_V; V], head by head."""

    def __init__(self, attention: nn.Module, key: Tensor, value: Tensor, mask: Tensor) -> None:
        super().__init__()
        self.attention, self.first_key, self.first_value, self.mask = attention, key, value, mask

    def forward(self, x: Tensor, *_: object, **__: object) -> tuple[Tensor, None]:
        heads, rows = self.attention.num_attention_heads, []
        for row, mask in zip(x, self.mask, strict=True):
            query, key, value = (getattr(self.attention, name)(row) for name in ("query", "key", "value"))
            key, value = torch.cat([self.first_key, key[mask]]), torch.cat([self.first_value, value[mask]])
            of_heads = zip(query.chunk(heads, -1), key.chunk(heads, -1), value.chunk(heads, -1), strict=True)
            rows.append(
                torch.cat([torch.softmax(q @ k.T / k.shape[1] ** 0.5, dim=-1) @ v for q, k, v in of_heads], dim=-1)
            )
        return torch.stack(rows), None


def _pfeiffer(layer: nn.Module, at: Tensors) -> None:
    layer.output = _AfterDense(
        layer.output, lambda f, x, norm: f + _up(relu(norm(f + x) @ at["down"] + at["down_bias"]), at) + x
    )


def _houlsby(layer: nn.Module, at: Tensors) -> None:
    first = {name.removeprefix("attention_"): t for name, t in at.items() if name.startswith("attention_")}
    for block, name, part in ((layer.attention, "output", first), (layer, "output", at)):
        formula = lambda f, x, norm, part=part: f + _up(silu(f @ part["down"] + part["down_bias"]), part) + x  # noqa: E731
        setattr(block, name, _AfterDense(getattr(block, name), formula))


def _parallel(layer: nn.Module, at: Tensors) -> None:
    layer.output = _AfterDense(
        layer.output, lambda f, x, norm: f + 4.0 * _up(relu(x @ at["down"] + at["down_bias"]), at) + x
    )


def _lora(layer: nn.Module, at: Tensors) -> None:
    for name in ("query", "value"):
        getattr(layer.attention.self, name).weight.data += (at[f"{name}_a"] @ at[f"{name}_b"]).T


def _ia3(layer: nn.Module, at: Tensors) -> None:
    attention = layer.attention.self
    for module, factor in ((attention.key, "key"), (attention.value, "value"), (layer.intermediate.dense, "expand")):
        module.weight.data *= at[factor][:, None]
        module.bias.data *= at[factor]


def _prefix(layer: nn.Module, at: Tensors) -> None:
    layer.attention.self = _Prefixed(layer.attention.self, at["prefix_key"], at["prefix_value"], _inputs()[1].bool())


def _mam(layer: nn.Module, at: Tensors) -> None:
    _prefix(layer, at)
    _parallel(layer, at)


def _fusion(layer: nn.Module, at: Tensors) -> None:
    def formula(f: Tensor, x: Tensor, norm: nn.Module) -> Tensor:
        z = norm(f + x)
        sources = zip(at["down"], at["down_bias"], at["up"], at["up_bias"], strict=True)
        u = [relu(z @ d + d_bias) @ up + up_bias for d, d_bias, up, up_bias in sources]
        query = z @ at["query"] + at["query_bias"]
        scores = [(query * (u_k @ at["key"] + at["key_bias"])).sum(-1) for u_k in u]
        weights = torch.softmax(torch.stack(scores, dim=-1), dim=-1)
        return f + sum(weights[..., k, None] * (u_k @ at["value"]) for k, u_k in enumerate(u)) + x

    layer.output = _AfterDense(layer.output, formula)


PUBLISHED = {
    "pfeiffer": _pfeiffer, "houlsby": _houlsby, "parallel": _parallel, "lora": _lora, "prefix": _prefix, "ia3": _ia3,
    "mam": _mam, "masked": _pfeiffer, "fusion": _fusion,
}  # fmt: skip


def _up(z: Tensor, at: Tensors) -> Tensor:
    return z @ at["up"] + at["up_bias"]


def _inputs() -> tuple[Tensor, Tensor]:
    ids = torch.randint(4, 30, (3, 9), generator=torch.Generator().manual_seed(1))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return ids * mask, mask


def _trained(model: PairModel, seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    fresh = model.init(TASK, generator)
    return {n: t + torch.randn(t.shape, generator=generator) * 0.2 for n, t in fresh.items()}


@pytest.mark.parametrize("adapter", catalog.ADAPTERS)
def test_agrees_with_the_published_formula(encoder: Path, adapter: str) -> None:
    ids, mask = _inputs()
    trunk = load_trunk(encoder)
    model = PairModel(trunk, Model(adapter=adapter, pooling="cls", adapter_drop=DROP, prefix_length=3))
    if isinstance(model.adapter, Fusion):
        model.adapter.listen_to([_trained(_pfeiffer_model(trunk), seed) for seed in range(3)], names=["a", "b", "c"])
    tensors = model.adapter.bank(_trained(model), training=False)
    ours = model(trunk(ids, mask, depth=DROP, cut=model.cut), mask, multitask.stack([tensors]))
    bert: BertModel = AutoModel.from_pretrained(encoder, attn_implementation="eager").eval()
    for index, layer in enumerate(bert.encoder.layer):
        if index >= DROP:
            prefix = f"layers.{index}."
            PUBLISHED[adapter](layer, {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
    with torch.no_grad():
        expected = bert(input_ids=ids, attention_mask=mask).last_hidden_state[:, 0]
    assert torch.allclose(ours, expected, atol=1e-5)


def _pfeiffer_model(trunk: Trunk) -> PairModel:
    return PairModel(trunk, Model(adapter="pfeiffer", adapter_drop=DROP))


def test_fusion_pulls_its_value_matrix_to_the_identity_and_keeps_the_most_important_sources(encoder: Path) -> None:
    ids, mask = _inputs()
    trunk = load_trunk(encoder)
    model = PairModel(trunk, Model(adapter="fusion", adapter_drop=DROP))
    assert isinstance(model.adapter, Fusion)
    model.adapter.listen_to([_trained(_pfeiffer_model(trunk), seed) for seed in range(3)], names=["a", "b", "c"])
    fresh, trained = model.init(TASK, torch.Generator().manual_seed(0)), _trained(model)
    state = trunk(ids, mask, depth=DROP, cut=model.cut)
    for tensors, layer in ((fresh, 1), (trained, 2)):
        penalties: list[Tensor] = []
        bank = multitask.stack([model.adapter.bank(tensors, training=True)])
        with model.adapter.watched() as seen:
            model(state, mask, bank, penalties=penalties)
        expected = 0.01 * (tensors[f"layers.{layer}.value"] - torch.eye(16)).square().sum()
        assert torch.allclose(penalties[layer - DROP], expected.expand(3))
        assert all(torch.allclose(w.sum(1), torch.ones(3)) for weights in seen.values() for w in weights)
    served = model.adapter.bank(trained, training=False)
    kept = keep_sources(served, {1: [0, 2], 2: [1, 2]})
    assert torch.equal(kept["layers.1.up"], served["layers.1.up"][[0, 2]])
    assert torch.equal(kept["layers.2.down_bias"], served["layers.2.down_bias"][[1, 2]])
    assert torch.equal(kept["layers.2.query"], served["layers.2.query"])


def test_prefix_comes_out_of_the_network(encoder: Path) -> None:
    model = PairModel(load_trunk(encoder), Model(adapter="prefix", adapter_drop=DROP, prefix_length=3))
    trained = _trained(model)
    bank = model.adapter.bank(trained, training=True)
    inner = torch.tanh(trained["prefix.vectors"] @ trained["prefix.inner"] + trained["prefix.inner_bias"])
    outer = (inner @ trained["prefix.outer"] + trained["prefix.outer_bias"]).reshape(3, 2, 2, 16)
    for layer in (1, 2):
        for role, name in enumerate(("prefix_key", "prefix_value")):
            assert torch.allclose(bank[f"layers.{layer}.{name}"], outer[:, layer - 1, role])
    assert not any(name.startswith("prefix.") for name in bank)


def test_masked_units_add_nothing_and_their_prediction_costs(encoder: Path) -> None:
    """a~ = a * (1 - m), h = U a~, the head sees the mean of h over tokens; written out for one layer."""
    ids, mask = _inputs()
    trunk = load_trunk(encoder)
    model = PairModel(trunk, Model(adapter="masked", adapter_drop=2, bottleneck=4, mask_rate=0.5, mask_weight=0.3))
    trained = _trained(model)
    noise = model.adapter.noise(len(ids), torch.Generator().manual_seed(0))
    m = noise["layers.2.mask"]
    penalties: list[Tensor] = []
    state = trunk(ids, mask, depth=2, cut=model.cut)
    pooled = model(state, mask, multitask.stack([trained]) | noise, penalties=penalties)
    at = {name.removeprefix("layers.2."): t for name, t in trained.items()}
    norm, first = trunk.blocks[2].norm, state[:, 0]
    h = (relu(norm(first) @ at["down"] + at["down_bias"]) * (1 - m)) @ at["up"]
    assert torch.allclose(pooled, norm(first + h + at["up_bias"]), atol=1e-5)
    guess = torch.sigmoid(h @ at["mask_head"] + at["mask_head_bias"])
    expected = -(m * guess.log() + (1 - m) * (1 - guess).log()).mean(dim=1)
    assert torch.allclose(penalties[0], 0.3 * expected, atol=1e-5)


def test_masked_is_served_without_its_head_and_scaled_as_in_training(encoder: Path) -> None:
    model = PairModel(load_trunk(encoder), Model(adapter="masked", adapter_drop=DROP, mask_rate=0.25))
    assert isinstance(model.adapter, Masked)
    trained = _trained(model)
    served = model.adapter.bank(trained, training=False)
    assert not any("mask" in name for name in served)
    assert torch.equal(served["layers.1.up"], trained["layers.1.up"] * 0.75)
    assert torch.equal(served["layers.1.up_bias"], trained["layers.1.up_bias"])


@pytest.mark.parametrize(
    ("adapter", "expected"),
    [
        ("pfeiffer", 2 * 16 * 1 + 1 + 16),
        ("houlsby", 2 * (2 * 16 * 1 + 1 + 16)),
        ("parallel", 2 * 16 * 8 + 8 + 16),
        ("lora", 2 * 2 * 16 * 8),
        ("prefix", 2 * 30 * 16),
        ("ia3", 2 * 16 + 64),
        ("mam", 2 * 30 * 16 + 2 * 16 * 8 + 8 + 16),
        ("masked", 2 * 16 * 1 + 1 + 16),
        ("fusion", 3 * 16 * 16 + 2 * 16 + 3 * (2 * 16 * 1 + 1 + 16)),
    ],
)
def test_sizes_at_the_kind_s_own_settings(encoder: Path, adapter: str, expected: int) -> None:
    """Reduction 16 for bottlenecks in series, 2 for parallel ones, rank 8, 30 positions (hidden 16, one layer)."""
    model = PairModel(load_trunk(encoder), Model(adapter=adapter, adapter_drop=2))
    if isinstance(model.adapter, Fusion):
        model.adapter.listen_to([_trained(_pfeiffer_model(load_trunk(encoder)))] * 3, names=["a", "b", "c"])
    served = model.adapter.bank(model.init(TASK, torch.Generator()), training=False)
    assert sum(t.numel() for name, t in served.items() if name.startswith("layers.")) == expected
