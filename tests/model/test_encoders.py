"""The trunk computes what transformers computes."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from mtlops.errors import ArtefactError
from mtlops.model.adapters.anatomy import Cut
from mtlops.model.encoders import load_trunk
from tests.tiny_encoder import write_encoder


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_encoder(tmp_path_factory.mktemp("encoder"))


def test_agrees_with_transformers(encoder: Path) -> None:
    ids = torch.randint(4, 30, (3, 9), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    expected = AutoModel.from_pretrained(encoder).eval()(input_ids=ids, attention_mask=mask).last_hidden_state
    trunk = load_trunk(encoder)
    last = trunk.layers[-1]
    for cut in Cut:
        ours = last.resume(trunk(ids, mask, depth=len(trunk.layers) - 1, cut=cut), mask, cut=cut)
        assert torch.allclose(ours[mask.bool()], expected[mask.bool()], atol=1e-5), cut


def test_first_token_only_is_the_same_first_token(encoder: Path) -> None:
    layer = load_trunk(encoder).layers[0]
    x = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0]])
    for cut in Cut:
        state = layer.until(cut, x, mask)
        first = layer.resume(state, mask, cut=cut, first_token_only=True)
        assert torch.allclose(first, layer(x, mask)[:, :1], atol=1e-6), cut


def test_nothing_in_the_trunk_can_be_trained(encoder: Path) -> None:
    assert not any(parameter.requires_grad for parameter in load_trunk(encoder).parameters())


def test_other_encoders_and_damage_are_refused(encoder: Path, tmp_path: Path) -> None:
    folder = write_encoder(tmp_path / "e")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    with pytest.raises(ArtefactError, match="model_type is 'gpt2'"):
        load_trunk(folder)
    (folder / "config.json").write_text(json.dumps(config | {"hidden_size": 24}))
    with pytest.raises(ArtefactError, match="does not fit its config.json"):
        load_trunk(folder)
    (folder / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ArtefactError, match="cannot be read"):
        load_trunk(folder)
