"""promote: a judged and exported bundle in, the champion of a registry out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlops.bundle import Bundle
from mtlops.errors import ArtefactError, UsageError, VerdictError
from mtlops.files import read_json
from mtlops.git_tags import plan_tags, revision
from mtlops.leases import whoami
from mtlops.registry import ChampionChangedError, Registry
from mtlops.signatures import Signer

_KEPT_OF_EXPORT = ("bundle", "limits", "latency_ms")


@dataclass(frozen=True)
class Promoted:
    """What the step did.

    Attributes:
        bundle_id: the champion now.
        version: its entry in the history of the registry.
        previous: the champion before; None when there was none.
        registry: URL.
        is_new: False when the bundle was champion already.
        tags: git tags that were written.
    """

    bundle_id: str
    version: int
    previous: str | None
    registry: str
    is_new: bool
    tags: tuple[str, ...]


def promote(
    *,
    registry: str,
    bundle: Path = Path("models/candidate"),
    decision: Path = Path("reports/decision.json"),
    export: Path = Path("reports/export.json"),
    by: str = "",
    reason: str = "",
    force: bool = False,
    git_tag: bool = False,
    sign: Path | None = None,
) -> Promoted:
    """Publishes the bundle and makes it champion, if its reports say that it has earned it.

    Args:
        registry: URL of the registry.
        bundle: folder of the bundle.
        decision: what `evaluate` decided.
        export: what `export` measured.
        by: who promotes; empty for `user@host`.
        reason: why; empty for the first reason of the decision.
        force: promote whatever the verdict, the limits and the champion of the decision are; needs a reason.
        sign: private key that the bundle is signed with, for servers that ask for it.
        git_tag: also write GTO's tags into the git repository around the bundle.

    Raises:
        VerdictError: the verdict is not PROMOTE, or the exported bundle breaks a limit.
        ArtefactError: a report or the bundle is missing, damaged, or about something else; or the champion is not the
            one that the decision was made against.
        UsageError: force without a reason; or git tags are impossible here; or the key is none.
        PlatformError: the registry does not answer or cannot be written.
    """
    if force and not reason:
        raise UsageError("--force needs --reason: the history says why the gate was overruled.")
    signer = Signer(sign) if sign is not None else None
    decided = _read(decision, ("verdict", "reasons", "tasks"), made_by="mtlops evaluate")
    exported = _read(export, ("bundle", "limits"), made_by="mtlops export")
    candidate = Bundle.open(bundle)
    _check_reports_agree(candidate, decided, exported, decision=decision, export=export)
    if not force:
        _check_verdict(decided, exported, decision=decision, export=export)
    tagging = plan_tags(bundle) if git_tag else None
    store = Registry(registry)
    champion = store.champion()
    current = champion.bundle_id if champion else None
    if current not in (candidate.id, decided.get("champion")) and not force:
        raise ChampionChangedError(
            f"{decision}: was made against champion {decided.get('champion') or 'none'}, but in {registry} it is "
            f"{current or 'none'}. Run `mtlops evaluate` and `mtlops export` again."
        )
    with store.keeping(candidate.id):
        store.publish(bundle)
        if signer is not None:
            store.sign(candidate.id, signer)
        entry = store.promote(
            candidate.id,
            expect=current,
            by=by or whoami(),
            reason=_reason(decided, reason, force=force),
            verdict=decided["verdict"],
            report={
                "decision": decided,
                "export": {key: exported.get(key) for key in _KEPT_OF_EXPORT},
                "git": revision(bundle.resolve().parent),
            },
        )
    is_new = current != entry.bundle_id
    message = f"bundle {entry.bundle_id}, champion version {entry.version}"
    return Promoted(
        bundle_id=entry.bundle_id,
        version=entry.version,
        previous=entry.previous,
        registry=store.url,
        is_new=is_new,
        tags=tuple(tagging.write(message)) if tagging else (),
    )


def _read(path: Path, keys: Sequence[str], *, made_by: str) -> Mapping[str, Any]:
    content: Mapping[str, Any] = read_json(path, made_by=made_by)
    for key in keys:
        if key not in content:
            raise ArtefactError(f"{path}: says nothing about {key}; it is of another version. Run `{made_by}` again.")
    return content


def _check_reports_agree(
    bundle: Bundle, decided: Mapping[str, Any], exported: Mapping[str, Any], *, decision: Path, export: Path
) -> None:
    """The export report names its bundle; the bundle's manifest holds the verdicts of its decision."""
    if exported["bundle"]["id"] != bundle.id:
        raise ArtefactError(
            f"{export}: is about bundle {exported['bundle']['id']}, but {bundle.folder} holds {bundle.id}. Run `mtlops "
            f"export` again."
        )
    verdicts = {name: task["verdict"] for name, task in bundle.manifest["tasks"].items()}
    found = {name: task["verdict"] for name, task in decided["tasks"].items() if task.get("kind") != "removed"}
    if (bundle.manifest["verdict"], verdicts) != (decided["verdict"], found):
        raise ArtefactError(
            f"{decision}: says {decided['verdict']} ({_listed(found)}), but {bundle.folder} was exported with "
            f"{bundle.manifest['verdict']} ({_listed(verdicts)}). Run `mtlops export` again."
        )


def _check_verdict(decided: Mapping[str, Any], exported: Mapping[str, Any], *, decision: Path, export: Path) -> None:
    overrule = "To overrule it: --force --reason TEXT."
    if decided["verdict"] != "PROMOTE":
        raise VerdictError(f"{decision}: the verdict is {decided['verdict']}: {decided['reasons'][0]} {overrule}")
    if not exported["limits"]["passed"]:
        raise VerdictError(f"{export}: the bundle breaks a limit: {exported['limits']['reasons'][0]} {overrule}")


def _reason(decided: Mapping[str, Any], reason: str, *, force: bool) -> str:
    if force and decided["verdict"] != "PROMOTE":
        return f"forced over {decided['verdict']}: {reason}"
    return reason or str(decided["reasons"][0])


def _listed(verdicts: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {verdict}" for name, verdict in verdicts.items())
