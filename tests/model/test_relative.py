"""What MPNet's attention adds for distances: ranges as transformers has them, one table for all layers."""

from pathlib import Path

import pytest
import torch
from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

from mtlops.model.encoders import load_trunk
from mtlops.model.relative import RelativeBias
from mtlops.model.sharing.anatomy import make
from mtlops.params import Model
from tests.tiny_encoder import make_config, write_encoder


def test_every_distance_is_in_the_range_that_transformers_puts_it_in() -> None:
    ours, theirs = RelativeBias(4), MPNetEncoder(make_config("mpnet"))
    with torch.no_grad():
        theirs.relative_attention_bias.weight.copy_(ours.weight)
    expected = theirs.compute_position_bias(torch.zeros(1, 300, 16))
    assert torch.equal(ours(300, 300), expected)
    assert torch.equal(ours(1, 300), expected[:, :, :1])


@pytest.mark.parametrize("sharing", [{"sharing": "hard", "tuned_layers": "all", "tune_embeddings": True},
                                     {"sharing": "soft"}])  # fmt: skip
def test_it_stays_as_it_is_where_layers_are_trained(tmp_path: Path, sharing: dict[str, object]) -> None:
    trunk = load_trunk(write_encoder(tmp_path, family="mpnet"))
    made = make(trunk, Model(**sharing), ["a", "b"])
    assert not any("relative_bias" in name for name in made.start())
    ids = torch.randint(4, 30, (2, 20), generator=torch.Generator().manual_seed(0))
    mask, before = torch.ones_like(ids), trunk.relative_bias.weight.clone()
    folded, rest = made.folded(made.start())
    vectors = [folded.vectors(folded.state(folded.trunk, ids, mask), mask, rest, torch.tensor(folded.exits))]
    with torch.no_grad():
        folded.trunk.relative_bias.weight.zero_()
        for layer in folded.copies:
            layer._relative[0].weight.zero_()
    vectors.append(folded.vectors(folded.state(folded.trunk, ids, mask), mask, rest, torch.tensor(folded.exits)))
    assert not torch.allclose(*vectors, atol=1e-3)
    assert sharing["sharing"] == "soft" or torch.equal(trunk.relative_bias.weight, before)
