"""What the export of an update takes over from its parent, and the checks that it is the parent's to the bit."""

import logging
from pathlib import Path

import numpy as np

from mtlops.bundle import Bundle
from mtlops.catalog import REFERENCE_VARIANT
from mtlops.data.prepared import read_split
from mtlops.data.tokenisation import Tokenizer
from mtlops.errors import ArtefactError, UsageError
from mtlops.model.predictor import Predictor
from mtlops.params import Params
from mtlops.serving.passes import expected_logits, golden_logits, open_session
from mtlops.steps.profiles import REFERENCE, Profiler, update_references
from mtlops.steps.tradeoff import check_equal
from mtlops.steps.updates import Update

logger = logging.getLogger(__name__)

Golden = list[dict[str, list[float]]]
"""For each golden text the logits by task."""


def golden_texts(update: Update) -> list[str]:
    """Returns the texts of the parent's golden file."""
    return [row["text"] for row in update.parent.golden()]


def keep_golden(update: Update, golden: Golden, tokenizer: Tokenizer, *, variant: str = REFERENCE_VARIANT) -> Golden:
    """Returns the golden outputs of an update: those of its own tasks, and the parent's of all others.

    A variant that the parent lacks has nothing to keep.

    Raises:
        ArtefactError: the new graph answers for another task than the parent's graph, here, in any bit.
    """
    if variant not in update.parent.variants:
        return golden
    file = update.parent.variant(variant)["file"]
    session = open_session(update.parent.folder / file, "CPUExecutionProvider", threads=0)
    theirs = golden_logits(session, tokenizer, update.parent.tasks, golden_texts(update))
    for task in update.untouched:
        ours, before = (np.asarray([row[task] for row in rows], np.float32) for rows in (golden, theirs))
        check_equal(ours, before, task=task, what="golden row", where=file)
    kept = [expected_logits(row, variant) for row in update.parent.golden()]
    names = [task.name for task in update.parent.tasks]
    return [
        {name: (new if name in update.retrained else old)[name] for name in names}
        for new, old in zip(golden, kept, strict=True)
    ]


def write_update_references(params: Params, update: Update, predictor: Predictor, folder: Path) -> None:
    """Writes the drift references of an update: new ones of its own tasks, the parent's of all others.

    Raises:
        UsageError: drift is to watch other embeddings than the parent's graph gives.
        ArtefactError: a file is missing or damaged.
    """
    before = update.parent.manifest["params"]["drift"].get("embedding")
    if params.drift.embedding != before:
        raise UsageError(
            f"params.yaml: drift.embedding: is {params.drift.embedding!r}, the parent bundle {update.parent.id} has "
            f"{before!r}, and an update keeps its graph. Use that, or export the whole suite."
        )
    suite = params.only(update.retrained)
    source = update.mixed.window if params.retrain.reference == "window" else update.mixed.known
    for task in suite.tasks():
        held_out = sum(read_split(source, task.name, split).num_rows for split in ("valid", "test"))
        if held_out < params.drift.min_rows:
            logger.warning(
                "task=%s window=%s has %d held-out rows, drift.min_rows is %d: its drift reference is of all rows.",
                task.name, update.lineage.retrained[task.name], held_out, params.drift.min_rows,
            )  # fmt: skip
            source = update.mixed.known
    profiler = Profiler.open(suite, prepared=source, predictor=predictor)
    update_references(profiler, folder, parent=update.parent.folder / REFERENCE)


def check_taken_over(update: Update, made: Bundle) -> None:
    """Checks that each file of an exported update that was not to change has its parent's hash.

    Raises:
        ArtefactError: one has not, or is missing, or there is one that the parent lacks.
    """
    ours, theirs = (_kept(update, side, beside=other) for side, other in ((made, update.parent), (update.parent, made)))
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            raise ArtefactError(
                f"{made.folder / name}: was not to change, but is not the file of the parent {update.parent.id}. "
                f"Nothing was exported: train the update again."
            )


def _kept(update: Update, bundle: Bundle, *, beside: Bundle) -> dict[str, str]:
    """Files and hashes of everything that belongs to no retrained task and not to the bundle as a whole.

    Variants that only one of the two bundles has are left out.
    """
    whole = {"golden.json", "card.md", *(str(bundle.variant(name)["file"]) for name in bundle.variants)}
    whole |= {f"{bundle.variant(name)['file']}.data" for name in set(bundle.variants) - set(beside.variants)}
    changed = tuple(f"{room}/{task}/" for room in ("tasks", REFERENCE) for task in update.retrained)
    files = bundle.manifest["files"].items()
    return {name: digest for name, digest in files if name not in whole and not name.startswith(changed)}
