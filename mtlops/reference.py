"""The reference of params.yaml in Markdown, made from the same classes that read the file."""

from collections.abc import Iterator, Mapping
from typing import Any

from mtlops import catalog
from mtlops.params import Params

_TABLES: Mapping[str, Mapping[str, catalog.Entry]] = {
    "Presets (`preset`)": catalog.PRESETS,
    "Task kinds (`suite.tasks.<task>.kind`)": catalog.KINDS,
    "Built-in data sets (`suite.tasks.<task>.source`)": catalog.DATASETS,
    "Built-in checks (`data.behaviour`)": catalog.BEHAVIOUR,
    "Built-in encoders (`encoder.source`)": catalog.ENCODERS,
    "Sharing (`model.sharing`)": catalog.SHARING,
    "Adapters (`model.adapter`)": catalog.ADAPTERS,
    "Poolings (`model.pooling`)": catalog.POOLINGS,
    "Variants of the graph (`export.variants`)": catalog.VARIANTS,
    "Drift tests (`drift.columns.<column>`)": catalog.DRIFT,
    "What is watched (kinds in reports, alerts and `trigger.kinds`)": catalog.WATCHED,
    "Triggers (`trigger.by`)": catalog.TRIGGERS,
    "Schedules of the learning rate (`train.schedule`)": catalog.SCHEDULES,
}


def markdown() -> str:
    """Returns the reference: a table of keys for each section, then the choices of the catalogue."""
    root = Params.model_json_schema()
    lines = [
        "# params.yaml",
        "",
        "Made by `mtlops schema --markdown`; `mtlops schema` prints the same as JSON schema.",
        "",
        *_words(root),
        *_sections(root),
    ]
    for title, table in _TABLES.items():
        lines += [f"## {title}", "", "| name | what it is |", "| --- | --- |"]
        lines += [f"| `{name}` | {entry.summary}{_fills(entry)} |" for name, entry in table.items()]
        lines += [""]
    return "\n".join(lines)


def _words(root: Mapping[str, Any]) -> Iterator[str]:
    """The keys that stand outside all sections."""
    for key, field in root["properties"].items():
        if "$ref" not in field:
            yield from (f"## {key}", "", *_table({key: field}), "")


def _fills(entry: catalog.Entry) -> str:
    """What a preset fills, as keys of params.yaml."""
    if not isinstance(entry, catalog.Preset):
        return ""
    always, unless = (
        ", ".join(f"`{section}.{key}: {value}`" for section, of in part.items() for key, value in of.items())
        for part in (entry.settings, entry.adapter)
    )
    also = f"; where neither `model.adapter` nor another way of sharing is given also {unless}" if unless else ""
    return f": {always}{also}"


def _sections(root: Mapping[str, Any]) -> Iterator[str]:
    paths = {
        "Suite": "suite",
        "TaskSpec": "suite.tasks.<task>",
        "Inputs": "suite.inputs",
        "Data": "data",
        "Window": "data.windows.<window>",
        "Augmentation": "train.augmentation",
    }
    paths |= {name.capitalize(): name for name, field in root["properties"].items() if "$ref" in field}
    for name, path in paths.items():
        section = root["$defs"][name]
        yield from (f"## {path}", "", " ".join(section["description"].split()), "")
        yield from (*_table(section["properties"]), "")


def _table(fields: Mapping[str, Any]) -> Iterator[str]:
    yield from ("| key | type | default | meaning |", "| --- | --- | --- | --- |")
    for key, field in fields.items():
        default = f"`{_default(field['default'])}`" if "default" in field else "required"
        yield f"| `{key}` | {_type(field)} | {default} | {_cell(field['description'])} |"


def _default(value: Any) -> str:
    if isinstance(value, dict) and value:
        return "see there"
    return "none" if value in (None, {}, []) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _type(field: Mapping[str, Any]) -> str:
    if "enum" in field:
        return "one of " + ", ".join(f"`{choice}`" for choice in field["enum"])
    if "anyOf" in field:
        return " or ".join(_type(choice) for choice in field["anyOf"] if choice.get("type") != "null")
    if "$ref" in field:
        return "section"
    limits = [
        f"{sign} {field[key]}"
        for key, sign in (
            ("minimum", "at least"), ("exclusiveMinimum", "above"),
            ("maximum", "at most"), ("exclusiveMaximum", "below"),
        )
        if key in field
    ]  # fmt: skip
    return " ".join([str(field.get("type", "any")), ", ".join(limits)]).strip()
