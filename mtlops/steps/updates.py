"""An update: some tasks of a bundle trained again, all others taken over; what all steps know of it."""

import logging
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlops.bundle import MANIFEST, Bundle
from mtlops.data.mixing import Mixed, mix_splits
from mtlops.data.prepared import newest_window, read_manifest
from mtlops.errors import ArtefactError, UsageError
from mtlops.files import link_or_copy, new_folder, read_json, sha256_file
from mtlops.model.lineage import Lineage, read_lineage
from mtlops.model.trained import restore_model
from mtlops.params import Params
from mtlops.registry import Registry

CHAMPION = "registry"
"""Word for "the champion of the registry" where a parent is named."""

KEPT_OF_EACH = 3
"""Parents, their models and their mixed data that stay in the cache, the last used ones: each is as large as a bundle,
and can be had again from the registry."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Update:
    """An update under way.

    Attributes:
        parent: the bundle that is updated.
        parent_model: folder of the trained model that it was exported from.
        lineage: what is retrained, on which data.
        mixed: the data.
    """

    parent: Bundle
    parent_model: Path
    lineage: Lineage
    mixed: Mixed

    @property
    def retrained(self) -> list[str]:
        """Names of the tasks that are trained."""
        return list(self.lineage.retrained)

    @property
    def untouched(self) -> list[str]:
        """Names of the tasks that are taken over."""
        return [task.name for task in self.parent.tasks if task.name not in self.lineage.retrained]


def begin_update(params: Params, *, prepared: Path, encoder: Path, registry: str, cache: Path) -> Update:
    """Returns the update that `retrain` asks for, after checking that its parent can be updated.

    Raises:
        UsageError: the suite, model or encoder of the parent are others than those of params.yaml.
        ArtefactError: the parent is missing or damaged.
    """
    retrain = params.retrain
    parent = open_parent(str(retrain.parent), registry=registry, cache=cache)
    _check_fits(params, parent, encoder)
    manifest = read_manifest(prepared)
    newest = {task: newest_window(manifest, task) for task in params.suite.tasks if task in retrain.tasks}
    labelled = manifest.get("labelled", {})
    lineage = Lineage(
        parent=parent.id,
        retrained=newest,
        windows={name: labelled[name]["facts"] for name in dict.fromkeys(newest.values()) if name is not None},
        mix=retrain.mixture,
        start=retrain.start,
        seed=params.train.seed,
        data_sha256=sha256_file(prepared / MANIFEST),
        blend=retrain.blend if retrain.start == "warm" else 1.0,
        fewest_old=retrain.fewest_old,
    )
    for task, window in newest.items():
        logger.info("retrain task=%s parent=%s window=%s mix=%s", task, parent.id, window or "none", lineage.mix)
    return _update(parent, lineage, prepared=prepared, cache=cache)


def find_update(trained: Path, *, prepared: Path, registry: str, cache: Path) -> Update | None:
    """Returns the update that a trained model is; None for one whose tasks were all trained.

    Raises:
        ArtefactError: its parent is missing or damaged, or the prepared splits have changed since.
    """
    lineage = read_lineage(trained)
    if lineage is None:
        return None
    if lineage.data_sha256 != sha256_file(prepared / MANIFEST):
        raise ArtefactError(f"{trained}: was trained on other data than {prepared}. Run `mtlops train` again.")
    parent = open_parent(lineage.parent, registry=registry, cache=cache)
    return _update(parent, lineage, prepared=prepared, cache=cache)


def open_parent(name: str, *, registry: str, cache: Path) -> Bundle:
    """Returns a bundle, checked and complete in `cache`.

    Args:
        name: `registry` for its champion, the id of a bundle there or the start of it, or a bundle's folder.
        registry: URL.
        cache: folder below which bundles are kept, in `bundles/<id>`.

    Raises:
        ArtefactError: there is none, or it is damaged.
        UsageError: an id is given, and no registry.
    """
    if name != CHAMPION and Path(name).is_dir():
        bundle = Bundle.open(Path(name))
        target = cache / "bundles" / bundle.id
        if not target.exists():
            with new_folder(target) as folder:
                for file in (*bundle.manifest["files"], MANIFEST):
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    link_or_copy(Path(name) / file, folder / file)
        return Bundle.open(target)
    if re.fullmatch(r"[0-9a-f]{16}", name) and (cache / "bundles" / name / MANIFEST).exists():
        return Bundle.open(cache / "bundles" / name)
    if not registry:
        raise UsageError(f"bundle {name!r} is no folder. Name the registry that holds it: --registry URL.")
    store = Registry(registry)
    if name == CHAMPION:
        champion = store.champion()
        if champion is None:
            raise ArtefactError(f"{store.url}: has no champion to update. Train the whole suite and promote it first.")
        return Bundle.open(store.fetch(champion.bundle_id, cache / "bundles"))
    return Bundle.open(store.fetch(store.find_id(name), cache / "bundles"))


def _update(parent: Bundle, lineage: Lineage, *, prepared: Path, cache: Path) -> Update:
    model = cache / "parents" / parent.id
    if not model.exists():
        with new_folder(model) as folder:
            restore_model(parent, folder)
    mixed = mix_splits(
        prepared, windows=lineage.retrained, mix=lineage.mix, fewest=lineage.fewest_old, seed=lineage.seed, cache=cache
    )
    for used in (cache / "bundles" / parent.id, model, mixed.known.parent):
        _keep_newest(used)
    return Update(parent, model, lineage, mixed)


def _keep_newest(used: Path) -> None:
    """Marks a folder of the cache as used, and removes its siblings but for those that were used last."""
    if not used.exists():  # a parent that was named by its folder, or lies elsewhere
        return
    os.utime(used)
    folders = [path for path in used.parent.iterdir() if path.is_dir() and not path.name.startswith(".")]
    for path in sorted(folders, key=lambda path: path.stat().st_mtime_ns)[:-KEPT_OF_EACH]:
        logger.info("removing %s from the cache: %d others were used since", path, KEPT_OF_EACH)
        shutil.rmtree(path, ignore_errors=True)


def _check_fits(params: Params, parent: Bundle, encoder: Path) -> None:
    manifest = parent.manifest
    facts = read_json(encoder / "encoder.json", made_by="mtlops prepare")
    pairs: Mapping[str, tuple[Any, Any]] = {
        "suite.name": (params.suite.name, manifest["suite"]),
        "suite.tasks": (params.tasks(), parent.tasks),
        "model": (params.model.model_dump(), manifest["params"]["model"]),
        "encoder.max_tokens": (params.encoder.max_tokens, manifest["max_tokens"]),
        "encoder": (facts["trunk_sha256"], manifest["trunk"]["trunk_sha256"]),
    }
    for key, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise UsageError(
                f"params.yaml: {key}: is not that of the parent bundle {parent.id}, so its tasks cannot be taken over. "
                f"Use what it was made with, or train the whole suite."
            )
    if params.model.adapter == "fusion":
        raise UsageError("params.yaml: model.adapter: 'fusion' listens to all tasks. Train the whole suite.")
