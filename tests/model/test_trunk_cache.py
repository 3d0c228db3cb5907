"""The cache changes nothing: not with its fill order, not when it is damaged, not when it is missing."""

from pathlib import Path

import pytest
import torch

from mtlops.data.tokenisation import Tokenizer, pad
from mtlops.model.adapters.anatomy import Cut
from mtlops.model.encoders import load_trunk
from mtlops.model.multitask import PairModel
from mtlops.model.trunk_cache import TrunkCache
from mtlops.params import Model
from tests.tiny_encoder import WORDS, write_encoder

TEXTS = [" ".join(WORDS[(i * 7 + j) % len(WORDS)] for j in range(1 + i % 19)) for i in range(60)]
ROW_IDS = [f"row{i}" for i in range(len(TEXTS))]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"), hidden=32)


def _cache(
    encoder: Path, folder: Path, *, depth: int = 1, precision: str = "float32", pooling: str = "cls"
) -> TrunkCache:
    trunk, tokenizer = load_trunk(encoder), Tokenizer(encoder / "tokenizer.json", max_tokens=16)
    pairs = PairModel(trunk, Model(adapter_drop=depth, pooling=pooling))
    return TrunkCache(folder, trunk=trunk, pairs=pairs, tokenizer=tokenizer, identity="x", precision=precision)


def test_values_are_the_trunk_s(encoder: Path, tmp_path: Path) -> None:
    cache = _cache(encoder, tmp_path)
    cache.fill(ROW_IDS, TEXTS)
    values, mask = cache.batch(ROW_IDS[:5])
    tokens = Tokenizer(encoder / "tokenizer.json", max_tokens=16).ids(TEXTS[:5])
    ids, expected_mask = map(torch.from_numpy, pad(tokens, pad_id=0))
    trunk = load_trunk(encoder)
    expected = trunk(ids, expected_mask, depth=1, cut=Cut.SUM)
    assert torch.equal(mask, expected_mask)
    assert torch.allclose(values[mask.bool()], expected[mask.bool()], atol=1e-5)
    top = PairModel(trunk, Model(adapter_drop=1)).frozen(expected, expected_mask)
    mean = (top * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert cache.pooled(ROW_IDS[:5]) == pytest.approx(mean.numpy(), abs=1e-5)


def test_the_first_layer_s_mean_stands_in_front_of_a_row_s_tokens(encoder: Path, tmp_path: Path) -> None:
    plain, cache = _cache(encoder, tmp_path), _cache(encoder, tmp_path, pooling="first-last")
    for filled in (plain, cache):
        filled.fill(ROW_IDS, TEXTS)
    (state, mask), (without, _) = cache.batch(ROW_IDS[:5]), plain.batch(ROW_IDS[:5])
    assert torch.equal(state[:, 1:], without)
    assert [cache.length(row_id) for row_id in ROW_IDS[:5]] == mask.sum(1).tolist()
    tokens = Tokenizer(encoder / "tokenizer.json", max_tokens=16).ids(TEXTS[:5])
    ids, _ = map(torch.from_numpy, pad(tokens, pad_id=0))
    first = load_trunk(encoder)(ids, mask, depth=1, cut=Cut.INPUT)
    means = (first * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    assert torch.allclose(state[:, 0], means, atol=1e-5)
    assert (cache.pooled(ROW_IDS) == plain.pooled(ROW_IDS)).all()


def test_bits_do_not_depend_on_what_was_filled_before(encoder: Path, tmp_path: Path) -> None:
    at_once, in_parts = _cache(encoder, tmp_path / "a"), _cache(encoder, tmp_path / "b")
    at_once.fill(ROW_IDS, TEXTS)
    for i in (17, 3, 40):
        in_parts.fill([ROW_IDS[i]], [TEXTS[i]])
    in_parts.fill(ROW_IDS[::-1], TEXTS[::-1])
    assert torch.equal(at_once.batch(ROW_IDS)[0], in_parts.batch(ROW_IDS)[0])
    assert (at_once.pooled(ROW_IDS) == in_parts.pooled(ROW_IDS)).all()


def test_rows_are_computed_once_and_found_again(encoder: Path, tmp_path: Path) -> None:
    first = _cache(encoder, tmp_path)
    first.fill(ROW_IDS, TEXTS)
    again = _cache(encoder, tmp_path)
    again.fill([*ROW_IDS, "new"], [*TEXTS, "a very good film"])
    assert first.rows_computed == len(ROW_IDS) and again.rows_computed == 1
    assert torch.equal(first.batch(ROW_IDS)[0], again.batch(ROW_IDS)[0])


def test_damaged_shard_is_removed_and_computed_again(
    encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    first = _cache(encoder, tmp_path)
    first.fill(ROW_IDS, TEXTS)
    expected = first.batch(ROW_IDS)[0].clone()
    (shard,) = tmp_path.rglob("*.f32")
    raw = bytearray(shard.read_bytes())
    raw[100] ^= 1
    shard.write_bytes(raw)
    again = _cache(encoder, tmp_path)
    again.fill(ROW_IDS, TEXTS)
    assert "damaged cache shard" in caplog.text and again.rows_computed == len(ROW_IDS)
    assert torch.equal(again.batch(ROW_IDS)[0], expected)


def test_values_without_index_do_not_count(encoder: Path, tmp_path: Path) -> None:
    first = _cache(encoder, tmp_path)
    first.fill(ROW_IDS, TEXTS)
    (index,) = first.folder.glob("*.json")
    index.unlink()
    again = _cache(encoder, tmp_path)
    again.fill(ROW_IDS, TEXTS)
    assert again.rows_computed == len(ROW_IDS)


def test_pooled_vectors_are_computed_when_asked_for_and_kept(encoder: Path, tmp_path: Path) -> None:
    cache = _cache(encoder, tmp_path)
    cache.fill(ROW_IDS, TEXTS)
    assert not (cache.folder / "pooled").exists()
    expected = cache.pooled(ROW_IDS[:9])
    again = _cache(encoder, tmp_path)
    again.fill(ROW_IDS, TEXTS)
    files = {path: path.stat().st_mtime_ns for path in (cache.folder / "pooled").iterdir()}
    assert (again.pooled(ROW_IDS[4:9]) == expected[4:]).all()
    assert {path: path.stat().st_mtime_ns for path in (cache.folder / "pooled").iterdir()} == files
    assert (again.pooled(ROW_IDS)[:9] == expected).all(), "a vector depends on its row alone"


def test_float16_is_a_cache_of_its_own_with_near_values(encoder: Path, tmp_path: Path) -> None:
    whole, half = _cache(encoder, tmp_path), _cache(encoder, tmp_path, precision="float16")
    assert whole.folder != half.folder
    whole.fill(ROW_IDS, TEXTS)
    half.fill(ROW_IDS, TEXTS)
    ours, theirs = half.batch(ROW_IDS)[0], whole.batch(ROW_IDS)[0]
    assert ours.dtype == torch.float32 and not torch.equal(ours, theirs)
    assert torch.allclose(ours, theirs, rtol=2**-10, atol=1e-4)


def test_eviction_keeps_what_this_run_asked_for_and_the_rest_is_computed_again(encoder: Path, tmp_path: Path) -> None:
    old = _cache(encoder, tmp_path, depth=0)
    old.fill(ROW_IDS, TEXTS)
    old.pooled(ROW_IDS)
    expected = old.batch(ROW_IDS)[0].clone()
    ours = _cache(encoder, tmp_path)
    ours.fill(ROW_IDS[:20], TEXTS[:20])
    assert ours.evict(limit_bytes=0) > 0
    assert not list(old.folder.rglob("*.json")) and list(ours.folder.glob("*.json"))
    again = _cache(encoder, tmp_path, depth=0)
    again.fill(ROW_IDS, TEXTS)
    assert again.rows_computed == len(ROW_IDS) and torch.equal(again.batch(ROW_IDS)[0], expected)
