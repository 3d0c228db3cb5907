"""docs/params.md is made from the classes that read params.yaml, and is up to date."""

from pathlib import Path

from mtlops import catalog
from mtlops.params import Params
from mtlops.reference import markdown


def test_the_committed_reference_is_up_to_date() -> None:
    committed = (Path(__file__).parents[1] / "docs/params.md").read_text(encoding="utf-8")
    assert committed == markdown() + "\n", "run `mtlops schema --markdown > docs/params.md`"


def test_every_section_and_every_choice_is_in_it() -> None:
    text = markdown()
    for section in Params.model_fields:
        assert f"## {section}\n" in text
    for table in (catalog.KINDS, catalog.ADAPTERS, catalog.POOLINGS, catalog.ENCODERS, catalog.DATASETS):
        assert all(f"| `{name}` | {entry.summary} |" in text for name, entry in table.items())
