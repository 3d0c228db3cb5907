"""The self-check is silent on a sound reference and says in words what cannot be kept."""

from pathlib import Path

from mtlops.bundle import Bundle
from mtlops.params import Drift
from mtlops.watch.references import References
from mtlops.watch.selfcheck import check_reference
from tests.watch.logs import write_bundle


def test_a_sound_reference_gives_no_warning(bundle: Bundle) -> None:
    references = References.of_bundle(bundle.folder)
    for reference in references.by_name.values():
        assert check_reference(reference, Drift(), threshold=20.0) == []


def test_a_budget_that_cannot_be_kept_is_said(bundle: Bundle) -> None:
    reference = References.of_bundle(bundle.folder).by_name["mood"]
    careless = Drift(effect_floor=1e-9, false_alarms_per_month=0.1)
    found = check_reference(reference, careless, threshold=1e-6)
    assert len(found) == 1 and found[0].startswith("mood: ") and "Raise drift.effect_floor" in found[0]


def test_a_reference_of_too_few_rows_is_said(tmp_path: Path) -> None:
    small = write_bundle(tmp_path / "small", rows=30)
    reference = References.of_bundle(small.folder).by_name["mood"]
    found = check_reference(reference, Drift(), threshold=20.0)
    assert "mood: quality cannot be judged: its reference has 30 rows, 50 are needed." in found
