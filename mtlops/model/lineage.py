"""What a trained model owes to the bundle that it was made from: lineage.json in its folder."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mtlops.errors import ArtefactError
from mtlops.files import read_json, write_json

SCHEMA_VERSION = 1
FILE = "lineage.json"


@dataclass(frozen=True)
class Lineage:
    """Where the tasks of a model come from.

    Attributes:
        parent: id of the bundle that all tasks but the retrained ones were taken from, byte for byte.
        retrained: tasks that were trained, each with its newest labelled window, or None.
        windows: what is known of these windows: alert, sha256 of their rows, tasks (see `data.labelled.Labelled`).
        mix: `retrain.mix`.
        start: `retrain.start`.
        seed: `train.seed`.
        data_sha256: of the manifest of the prepared splits.
        blend: share of the update in the tensors; the rest is the parent's (`retrain.blend`; 1 for a fresh start).
        fewest_old: `retrain.fewest_old`.
    """

    parent: str
    retrained: Mapping[str, str | None]
    windows: Mapping[str, Mapping[str, Any]]
    mix: Any
    start: str
    seed: int
    data_sha256: str
    blend: float = 1.0
    fewest_old: int = 0


def write_lineage(folder: Path, lineage: Lineage) -> None:
    """Writes lineage.json."""
    write_json(folder / FILE, {"schema_version": SCHEMA_VERSION, **asdict(lineage)})


def read_lineage(folder: Path) -> Lineage | None:
    """Returns the lineage of a trained model; None for one whose tasks were all trained.

    Raises:
        ArtefactError: it is damaged or of another version.
    """
    if not (folder / FILE).exists():
        return None
    facts = read_json(folder / FILE, made_by="mtlops train")
    try:
        if facts.pop("schema_version") != SCHEMA_VERSION:
            raise ArtefactError(f"{folder / FILE}: is of another version. Run `mtlops train` again.")
        return Lineage(**facts)
    except (AttributeError, KeyError, TypeError) as error:
        raise ArtefactError(f"{folder / FILE}: is damaged ({error}). Run `mtlops train` again.") from None
