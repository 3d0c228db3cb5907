"""The model card of a bundle, in Markdown."""

from collections.abc import Mapping
from typing import Any

from mtlops import catalog
from mtlops.params import Params

_LIMITS = (
    "Measured on rows of the same sources as the training rows. Quality on other sources, languages and times is "
    "unknown until it is measured there."
)


def write_card(
    params: Params, *, evaluation: Mapping[str, Any], decision: Mapping[str, Any], encoder: Mapping[str, Any]
) -> str:
    """Returns the model card: what the bundle is for, how each task does on which rows, and what it was made of."""
    sections = [
        f"# {params.suite.name}",
        _what_it_is(params, encoder),
        "## Quality on held-out rows",
        _quality(evaluation, decision),
        f"Intervals: {params.gates.confidence:.0%} bootstrap over groups. The gate says: **{decision['verdict']}**.",
        "## Data",
        "\n".join(
            f"- {name}: source `{spec.source}`, classes {', '.join(spec.classes) or 'none'}"
            for name, spec in params.suite.tasks.items()
        ),
        "## Limits",
        _LIMITS,
    ]
    return "\n\n".join(sections) + "\n"


def _what_it_is(params: Params, encoder: Mapping[str, Any]) -> str:
    model = params.model
    if model.sharing != "adapters":
        return (
            f"{len(params.suite.tasks)} tasks on one encoder ({encoder['name']}, licence {encoder['licence']}). "
            f"Sharing: {model.sharing}, {catalog.SHARING[model.sharing].summary}. "
            f"Texts are cut to {params.encoder.max_tokens} tokens."
        )
    return (
        f"{len(params.suite.tasks)} tasks on one frozen encoder ({encoder['name']}, licence {encoder['licence']}). "
        f"Each task has its own {model.adapter} adapters (none in the lowest {model.adapter_drop} layers) and head. "
        f"Texts are cut to {params.encoder.max_tokens} tokens."
    )


def _quality(evaluation: Mapping[str, Any], decision: Mapping[str, Any]) -> str:
    rows = [
        "| task | kind | test rows | metric | value | interval | frozen trunk + linear model | verdict |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, facts in evaluation["tasks"].items():
        value, frozen = (m[facts["primary"]] for m in (facts["metrics"], facts["baselines"]["frozen"]))
        rows.append(
            f"| {name} | {facts['kind']} | {facts['rows']['test']} | {facts['primary']} | {value['value']:.3f} "
            f"| {value['low']:.3f} to {value['high']:.3f} | {frozen['value']:.3f} "
            f"| {decision['tasks'][name]['verdict']} |"
        )
    return "\n".join(rows)
