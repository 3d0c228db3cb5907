"""The trunk computes what transformers computes, for every family of encoders."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM

from mtlops.data.families import FAMILIES, TrunkConfig
from mtlops.errors import ArtefactError
from mtlops.model.adapters.anatomy import Cut
from mtlops.model.encoders import Trunk, load_trunk, save_trunk
from tests.tiny_encoder import make_config, make_tokenizer, write_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def _inputs(family: str = "bert") -> tuple[Tensor, Tensor]:
    """Three rows, one padded as the family pads, one that holds the padding token itself."""
    pad = 1 if FAMILIES[family].counts_from_padding else 0
    ids = torch.randint(4, 30, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:], ids[1, 5:], ids[2, 4] = 0, pad, pad
    return ids, mask


def _shake(folder: Path) -> None:
    """Makes norms and biases random: at their usual start of 1 and 0 a forgotten one would go unseen."""
    generator = torch.Generator().manual_seed(1)
    tensors = load_file(folder / "model.safetensors")
    save_file(
        {n: t + torch.randn(t.shape, generator=generator) * 0.1 for n, t in tensors.items()},
        folder / "model.safetensors",
    )


def _last(trunk: Trunk, ids: Tensor, mask: Tensor, *, cut: Cut = Cut.INPUT) -> Tensor:
    last = trunk.blocks[-1]
    return last.resume(trunk(ids, mask, depth=len(trunk.blocks) - 1, cut=cut), mask, cut=cut)


@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_transformers(tmp_path: Path, family: str) -> None:
    folder = write_encoder(tmp_path, family=family)
    _shake(folder)
    ids, mask = _inputs(family)
    expected = AutoModel.from_pretrained(folder).eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    trunk = load_trunk(folder)
    for cut in Cut:
        ours = _last(trunk, ids, mask, cut=cut)
        assert torch.allclose(ours[mask.bool()], expected[mask.bool()], atol=1e-5), cut


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpoint_with_a_head_is_read_without_it(
    tmp_path: Path, family: str, caplog: pytest.LogCaptureFixture
) -> None:
    model = AutoModelForMaskedLM.from_config(make_config(family)).eval()
    model.save_pretrained(tmp_path)
    ids, mask = _inputs(family)
    expected = model.base_model(input_ids=ids, attention_mask=mask).last_hidden_state
    with caplog.at_level(logging.DEBUG, logger="mtlops"):
        trunk = load_trunk(tmp_path)
    assert "left out tensors=" in caplog.text
    assert torch.allclose(_last(trunk, ids, mask)[mask.bool()], expected[mask.bool()], atol=1e-5)


@pytest.mark.parametrize("activation", ["gelu_new", "relu"])
def test_other_activations_agree(tmp_path: Path, activation: str) -> None:
    model = AutoModel.from_config(make_config("bert", hidden_act=activation)).eval()
    model.save_pretrained(tmp_path)
    ids, mask = _inputs()
    expected = model(input_ids=ids, attention_mask=mask).last_hidden_state
    assert torch.allclose(_last(load_trunk(tmp_path), ids, mask)[mask.bool()], expected[mask.bool()], atol=1e-5)


def test_old_names_of_norms_are_known(encoder: Path, tmp_path: Path) -> None:
    """Checkpoints from TensorFlow, bert-base-uncased among them, say gamma and beta."""
    folder = write_encoder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    old = {n.replace("Norm.weight", "Norm.gamma").replace("Norm.bias", "Norm.beta"): t for n, t in tensors.items()}
    assert old.keys() != tensors.keys()
    save_file(old, folder / "model.safetensors")
    new = load_trunk(encoder).state_dict()
    assert all(torch.equal(tensor, new[name]) for name, tensor in load_trunk(folder).state_dict().items())


@pytest.mark.parametrize("family", ["bert", "roberta"])
def test_padding_beyond_the_last_position_changes_nothing(tmp_path: Path, family: str) -> None:
    trunk = load_trunk(write_encoder(tmp_path, family=family))
    longest = trunk.config.max_tokens
    ids = torch.randint(4, 30, (1, longest), generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(ids, (0, 7), value=3)
    mask = (torch.arange(longest + 7) < longest).long()[None]
    ours, wider = _last(trunk, ids, torch.ones_like(ids)), _last(trunk, padded, mask)
    assert torch.allclose(ours, wider[:, :longest], atol=1e-6)


def test_roberta_has_positions_for_two_tokens_less() -> None:
    config = TrunkConfig.parse(make_config("roberta").to_dict(), where="config.json")
    assert (config.max_position_embeddings, config.max_tokens) == (66, 64)


def test_tokenizer_of_the_tests_pads_as_its_family_does() -> None:
    assert make_tokenizer("bert").token_to_id("[PAD]") == 0 and make_tokenizer("roberta").token_to_id("<pad>") == 1


@pytest.mark.parametrize("family", ["bert", "mpnet"])
def test_first_token_only_is_the_same_first_token(tmp_path: Path, family: str) -> None:
    layer = load_trunk(write_encoder(tmp_path, family=family)).layers[0]
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    for cut in Cut:
        state = layer.until(cut, x, mask)
        first = layer.resume(state, mask, cut=cut, first_token_only=True)
        assert torch.allclose(first, layer(x, mask)[:, :1], atol=1e-6), cut


def test_the_file_stays_as_it_is_when_weights_are_trained_or_it_is_replaced(encoder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "encoder"
    shutil.copytree(encoder, folder)
    path, before = folder / "model.safetensors", (folder / "model.safetensors").read_bytes()
    trunk = load_trunk(folder)
    kept = trunk.blocks[0].query.weight.clone()
    with torch.no_grad():
        trunk.blocks[0].query.weight += 1.0
    assert path.read_bytes() == before
    save_trunk(trunk, path)
    assert torch.equal(load_trunk(folder).blocks[0].query.weight, kept + 1.0)
    assert torch.equal(trunk.blocks[0].query.weight, kept + 1.0)


def test_nothing_in_the_trunk_can_be_trained(encoder: Path) -> None:
    assert not any(parameter.requires_grad for parameter in load_trunk(encoder).parameters())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "gpt2"}, "model_type is 'gpt2', which cannot be a trunk"),
        ({"model_type": "deberta-v2"}, "model_type is 'deberta-v2', which cannot be a trunk"),
        ({"model_type": None}, "model_type is None"),
        ({"hidden_act": "silu"}, "activation 'silu' is not known"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key'; only absolute"),
        ({"is_decoder": True}, "is_decoder is True; only encoders"),
        ({"num_attention_heads": 5}, "5 attention heads do not divide the hidden size 16"),
        ({"hidden_size": "16"}, "hidden_size is '16'; a number is needed"),
        ({"num_hidden_layers": 0}, "num_hidden_layers is 0; a whole number of at least 1"),
        ({"layer_norm_eps": None}, "layer_norm_eps is None; a number is needed"),
        ({"hidden_size": 24}, "does not fit its config.json: word_embeddings.* has shape .*, .* is expected"),
        ({"num_hidden_layers": 2}, "does not fit its config.json: 3 layers, 2 are expected"),
    ],
)
def test_an_encoder_that_cannot_be_a_trunk_is_refused(tmp_path: Path, change: dict[str, object], message: str) -> None:
    folder = write_encoder(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ArtefactError, match=message.replace("word_embeddings", r"embeddings\.word_embeddings")):
        load_trunk(folder)


def test_a_missing_tensor_is_named(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    tensors = load_file(folder / "model.safetensors")
    del tensors["encoder.layer.1.output.dense.bias"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(ArtefactError, match=r"has no tensor encoder\.layer\.1\.output\.dense\.bias"):
        load_trunk(folder)


def test_damage_is_an_artefact_error(tmp_path: Path) -> None:
    folder = write_encoder(tmp_path)
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_trunk(folder)
    (folder / "config.json").unlink()
    with pytest.raises(ArtefactError, match="config.json: cannot be read"):
        load_trunk(folder)
