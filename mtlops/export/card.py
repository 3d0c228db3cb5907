"""The model card of a bundle, in Markdown."""

from collections.abc import Mapping
from typing import Any

from mtlops.params import Params


def write_card(params: Params, *, evaluation: Mapping[str, Any], decision: Mapping[str, Any], encoder: Mapping[str, Any]) -> str:
    """Returns the model card: what the bundle is for, how each task does on which rows, and what it was made of."""
    rows = [
        "| task | kind | test rows | metric | value | interval | frozen trunk + regression | verdict |",
        "|---|---|---|---|---|---|---|---|",
        *(_row(name, facts, decision["tasks"][name]["verdict"]) for name, facts in evaluation["tasks"].items()),
    ]
    return "\n".join([
        f"# {params.suite.name}",
        "",
        f"{len(evaluation['tasks'])} tasks on one frozen encoder ({encoder['name']}, {encoder['licence']}), each with its "
        f"own {params.model.adapter} adapter (bottleneck {params.model.bottleneck}, the lowest "
        f"{params.model.adapter_drop} layers without) and head. Texts are cut to {params.encoder.max_tokens} tokens.",
        "",
        "## Quality on held-out rows",
        "",
        *rows,
        "",
        f"Intervals: {params.gates.confidence:.0%} bootstrap over groups. Gate verdict of the whole bundle: "
        f"**{decision['verdict']}**.",
        "",
        "## Data",
        "",
        *(f"- {name}: source `{spec.source}`, classes {', '.join(spec.classes) or 'none'}" for name, spec in params.suite.tasks.items()),
        "",
        "## Limits",
        "",
        "Measured on rows of the same sources as the training rows. Quality on other sources, languages and times is "
        "unknown until it is measured there.",
        "",
    ])  # fmt: skip


def _row(name: str, facts: Mapping[str, Any], verdict: str) -> str:
    primary = facts["primary"]
    value, frozen = facts["metrics"][primary], facts["baselines"]["frozen"][primary]
    return (
        f"| {name} | {facts['kind']} | {facts['rows']['test']} | {primary} | {value['value']:.3f} "
        f"| {value['low']:.3f} to {value['high']:.3f} | {frozen['value']:.3f} | {verdict} |"
    )
