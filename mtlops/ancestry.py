"""Where a bundle comes from: the chain of its parents back to the first data, with what each was promoted on."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mtlops.bundle import Bundle
from mtlops.registry import Entry, Registry


@dataclass(frozen=True)
class Link:
    """One bundle of the chain.

    Attributes:
        bundle_id: its id.
        manifest: its manifest; None when the registry no longer has the bundle.
        entries: changes of the champion that put it in place, the oldest first.
    """

    bundle_id: str
    manifest: Mapping[str, Any] | None
    entries: Sequence[Entry]

    def facts(self) -> dict[str, Any]:
        """Returns what is known of it, as plain values."""
        manifest = self.manifest or {}
        lineage = manifest.get("lineage")
        return {
            "bundle": self.bundle_id,
            "is_here": self.manifest is not None,
            "parent": manifest.get("parent"),
            "code": manifest.get("code"),
            "data": manifest.get("data"),
            "retrained": lineage and lineage["retrained"],
            "windows": lineage and lineage["windows"],
            "mix": lineage and lineage["mix"],
            "start": lineage and lineage["start"],
            "blend": lineage and lineage.get("blend", 1.0),
            "verdict": manifest.get("verdict"),
            "promotions": [
                {
                    "version": entry.version, "action": entry.action, "time": entry.time, "by": entry.by,
                    "reason": entry.reason, "git": (entry.report or {}).get("git"),
                    "evidence": list(((entry.report or {}).get("decision") or {}).get("reasons", [])),
                }
                for entry in self.entries
            ],
        }  # fmt: skip


def ancestry(registry: Registry, bundle: str | Path) -> list[Link]:
    """Returns a bundle and its parents, the bundle first, the one whose tasks were all trained last.

    Args:
        registry: that holds the parents.
        bundle: a full id there, or a bundle's folder.

    Raises:
        ArtefactError: no such bundle, or a manifest is damaged.
    """
    history, known = registry.history(), set(registry.ids())
    if isinstance(bundle, Path):
        opened = Bundle.open(bundle)
        bundle_id, manifest = opened.id, opened.manifest
    else:
        bundle_id, manifest = bundle, registry.manifest(bundle)
    chain = [_link(bundle_id, manifest, history)]
    while parent := (chain[-1].manifest or {}).get("parent"):
        chain.append(_link(parent, registry.manifest(parent) if parent in known else None, history))
    return chain


def lines(chain: Sequence[Link]) -> Iterator[str]:
    """Yields the chain as text for people."""
    for number, link in enumerate(chain):
        yield f"{'<- ' if number else ''}{link.bundle_id}"
        facts = link.facts()
        if not facts["is_here"]:
            yield "   collected: the registry has it no longer; what came before it is not known here"
            continue
        yield from (f"   {name:<10} {value}" for name, value in _rows(facts))


def _link(bundle_id: str, manifest: Mapping[str, Any] | None, history: Sequence[Entry]) -> Link:
    return Link(bundle_id, manifest, [entry for entry in history if entry.bundle_id == bundle_id])


def _rows(facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    if facts["retrained"] is None:
        yield "trained", "all tasks"
    else:
        for task, window in facts["retrained"].items():
            yield "retrained", f"{task} on window {window or 'none'}, old rows {facts['mix']}, start {facts['start']}"
        for name, window in facts["windows"].items():
            said = f", {window['note']}" if window["note"] else ""
            yield "window", f"{name} rows sha256 {window['sha256'][:12]}, alert {window['alert'] or 'none'}{said}"
    yield "data", f"splits sha256 {facts['data']['manifest_sha256'][:12]}"
    for name, digest in facts["data"].get("sources", {}).items():
        yield "source", f"{name} sha256 {digest[:12]}"
    yield "code", f"{facts['code']['version']} ({facts['code']['digest'][:12]})"
    yield "verdict", facts["verdict"]
    for entry in facts["promotions"]:
        yield "champion", f"version {entry['version']} ({entry['action']}, {entry['time']}, {entry['by']})"
        for name, value in (("git", entry["git"]), ("reason", entry["reason"])):
            if value:
                yield name, value
        yield from (("evidence", reason) for reason in entry["evidence"] if reason != entry["reason"])
