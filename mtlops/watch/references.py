"""What the champion is compared with: its tasks and their reference profiles, each with a version of its own."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlops.bundle import MANIFEST, Bundle
from mtlops.drift.profile import ENCODER, Profile
from mtlops.errors import ArtefactError
from mtlops.files import read_json
from mtlops.registry import Registry
from mtlops.tasks import Task
from mtlops.watch.rows import MOST_UNKNOWN, UNKNOWN_SHARE

_FOLDER = "reference"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """The reference of one task, or of the encoder.

    Attributes:
        name: the task, or `encoder`.
        version: changes when the task's answers or its reference change; a bundle that only replaces another task keeps
            it, and with it the evidence gathered so far.
        profile: what traffic is compared with.
        task: None for the encoder.
        metrics: value of each metric on the test rows, by name.
    """

    name: str
    version: str
    profile: Profile
    task: Task | None
    metrics: Mapping[str, float]

    @property
    def width(self) -> int:
        """Numbers in an embedding; 0 when the reference has none."""
        part = self.profile.parts.get("embedding")
        return int(getattr(part.sketch, "width", 0)) if part else 0

    @property
    def has_unreadable(self) -> bool:
        """Whether the tokenizer knows less than half of at least a tenth of the reference's own texts."""
        part = self.profile.parts.get(f"text.{UNKNOWN_SHARE}")
        edges: Sequence[float] = getattr(part.sketch, "edges", []) if part else []
        return len(edges) > 0 and bool(edges[-1] >= MOST_UNKNOWN)


@dataclass(frozen=True)
class References:
    """The references of a bundle.

    Attributes:
        bundle_id: of the bundle.
        suite: name of the suite.
        tasks: in the order of the bundle.
        by_name: the references by task, and `encoder`.
    """

    bundle_id: str
    suite: str
    tasks: tuple[Task, ...]
    by_name: Mapping[str, Reference]

    @classmethod
    def of_bundle(cls, folder: Path) -> "References":
        """Returns the references of the bundle in a folder, after checking its files.

        Raises:
            ArtefactError: it is no valid bundle, or has no references.
        """
        bundle = Bundle.open(folder)
        return cls._read(folder, bundle.manifest, bundle_id=bundle.id)

    @classmethod
    def of_champion(cls, registry: Registry, *, cache: Path) -> "References | None":
        """Returns the references of the champion; None when the registry has none yet.

        Args:
            registry: to ask.
            cache: folder for fetched bundles; a registry in a folder is read where it is.

        Raises:
            ArtefactError: the champion's bundle is missing or damaged.
        """
        entry = registry.champion()
        if entry is None:
            return None
        own = Path(registry.url) / "bundles" / entry.bundle_id
        if own.is_dir():
            bundle = Bundle(own, read_json(own / MANIFEST, made_by="mtlops promote"))
        else:
            files = registry.manifest(entry.bundle_id)["files"]
            names = [name for name in files if name.startswith(f"{_FOLDER}/")]
            bundle = registry.fetch_files(entry.bundle_id, names, cache)
        return cls._read(bundle.folder, bundle.manifest, bundle_id=entry.bundle_id)

    @classmethod
    def _read(cls, folder: Path, manifest: Mapping[str, Any], *, bundle_id: str) -> "References":
        tasks = tuple(Task.from_facts(name, facts) for name, facts in manifest["tasks"].items())
        digest = str((manifest.get("embedding") or {}).get("digest") or manifest["trunk"]["trunk_sha256"])
        found = {}
        for name, task in ((ENCODER, None), *((task.name, task) for task in tasks)):
            place = folder / _FOLDER / name
            if not place.is_dir():
                raise ArtefactError(f"{place}: missing. The bundle has no drift references: run `mtlops export` again.")
            facts = manifest["tasks"].get(name, {})
            metrics = {key: float(value["value"]) for key, value in (facts.get("metrics") or {}).items()}
            found[name] = Reference(name, _version(name, manifest), Profile.load(place, trunk=digest), task, metrics)
        return cls(bundle_id, str(manifest["suite"]), tasks, found)

    def versions(self) -> dict[str, str]:
        """Returns the version of each reference by name."""
        return {name: reference.version for name, reference in self.by_name.items()}


def _version(name: str, manifest: Mapping[str, Any]) -> str:
    """A digest of the files that decide a task's answers and its reference."""
    prefixes = ("trunk/", f"tasks/{name}/", f"{_FOLDER}/{name}/")
    files = {path: digest for path, digest in manifest["files"].items() if path.startswith(prefixes)}
    return hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()[:16]
