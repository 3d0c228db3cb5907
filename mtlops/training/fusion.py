"""The second stage of AdapterFusion: what each task listens to, and how little of it would do."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mtlops.model.adapters.anatomy import Tensors
from mtlops.model.adapters.fusion import Fusion, keep_sources
from mtlops.model.predictor import Backbone
from mtlops.training.learner import Learner


@dataclass(frozen=True)
class Fused:
    """One task's fusion as it is served.

    Attributes:
        tensors: with the sources that are kept.
        report: by layer, the share of attention that each source gets on the validation rows and the sources that
            are kept; the primary metric before and after the others are removed.
    """

    tensors: Tensors
    report: dict[str, Any]


def prepare_second_stage(backbone: Backbone, first: Mapping[str, Learner]) -> None:
    """Makes the best adapters of a first stage the sources of a second one."""
    _fusion(backbone).listen_to([learner.best for learner in first.values()], names=list(first))


def prune(learner: Learner, backbone: Backbone, tensors: Tensors) -> Fused:
    """Returns a task's fusion with the `model.fusion_keep` most important sources of each layer; 0 keeps all.

    A source's importance is its share of attention, averaged over the tokens of a text and over validation rows.

    Source: Rücklé et al. 2021, "AdapterDrop", section 4 ("Pruning AdapterFusion"), arXiv:2010.11918.
    """
    fusion, valid = _fusion(backbone), learner.valid
    with fusion.watched() as seen:
        before = learner.primary_value(backbone.logits(valid.row_ids, tensors, words=valid.words))
    shares = {layer: torch.cat(weights).mean(0).tolist() for layer, weights in seen.items()}
    keep = fusion.model.fusion_keep or len(fusion.names)
    kept = {layer: sorted(sorted(range(len(s)), key=lambda k: -s[k])[:keep]) for layer, s in shares.items()}
    pruned = keep_sources(tensors, kept)
    report = {
        "layers": {
            str(layer): {
                "shares": {name: round(share, 6) for name, share in zip(fusion.names, of_layer, strict=True)},
                "kept": [fusion.names[k] for k in kept[layer]],
            }
            for layer, of_layer in shares.items()
        },
        "value_with_all": before,
        "value_with_kept": learner.primary_value(backbone.logits(valid.row_ids, pruned, words=valid.words)),
    }
    return Fused(pruned, report)


def _fusion(backbone: Backbone) -> Fusion:
    fusion = backbone.pairs.adapter
    assert isinstance(fusion, Fusion)
    return fusion
