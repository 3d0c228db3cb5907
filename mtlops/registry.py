"""The registry: where bundles are published, and which of them is champion.

    bundles/<id>/manifest.json   names every file of a bundle by its sha256; in a folder, the whole bundle as hard links
    blobs/<sha256>               each file once, whatever number of bundles hold it
    history/<version>.json       one file a change of the champion, in order, never changed: the truth
    champion.json                a copy of the newest of them, for people and for readers that want one request
    uploads/, gc.json            what is under way: a publication, a collection
    retraining/<task>.json       and the update of a task on this registry's champion

A bundle is in the registry when its manifest is, which is written last. The champion changes when the next file of the
history is created, which exactly one process can do. So a process killed anywhere leaves a valid registry.
"""

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any

from mtlops.bundle import MANIFEST, Bundle
from mtlops.errors import ArtefactError, PlatformError
from mtlops.files import atomic_folder, cached_path, link_or_copy, new_folder, sha256_file, to_json
from mtlops.leases import UPLOAD_LIMIT_SECONDS, Alive, Leases
from mtlops.signatures import Signer, Verifier
from mtlops.storage import Folder, open_storage

SCHEMA_VERSION = 1

DEFAULT_FOLDER = "registry"
"""Name of the registry beside params.yaml where nothing else is said."""

ENVIRONMENT = "MTLOPS_REGISTRY"
"""Environment variable with the URL of the registry."""

_PROGRESS_SECONDS = 5.0
_CHAMPION = "champion.json"

logger = logging.getLogger(__name__)


class ChampionChangedError(ArtefactError):
    """Another bundle has become champion since the one that the caller compared with."""


@dataclass(frozen=True)
class Entry:
    """One change of the champion.

    Attributes:
        version: 1 for the first; no number is left out.
        bundle_id: the champion from then on.
        previous: the champion before; None for the first.
        action: `promote` or `rollback`.
        time: ISO 8601 in UTC.
        by: who did it.
        reason: why.
        verdict: of the gate; empty for a rollback.
        report: what the decision rested on.
    """

    version: int
    bundle_id: str
    previous: str | None
    action: str
    time: str
    by: str
    reason: str
    verdict: str
    report: Mapping[str, Any] | None


@dataclass(frozen=True)
class StoredFile:
    """A file of a published bundle.

    Attributes:
        sha256: of its content.
        bytes: size.
        bundles: number of bundles that hold it; 1 when it is this one's own.
    """

    sha256: str
    bytes: int
    bundles: int


@dataclass(frozen=True)
class Published:
    """A bundle in the registry.

    Attributes:
        id: its id.
        time: when it was published, ISO 8601 in UTC.
        manifest: content of its manifest.json.
        files: its files by name, but for manifest.json.
        bytes: size of all its files.
        added_bytes: what it brought: its manifest, and the files that no bundle published before it holds.
    """

    id: str
    time: str
    manifest: Mapping[str, Any]
    files: Mapping[str, StoredFile]
    bytes: int
    added_bytes: int


@dataclass(frozen=True)
class Collected:
    """What a collection removed, or would remove.

    Attributes:
        bundles: ids of bundles.
        blobs: number of files.
        bytes: their size.
    """

    bundles: tuple[str, ...]
    blobs: int
    bytes: int


def registry_url(option: str | None, *, beside: Path = Path("params.yaml")) -> str:
    """Returns the URL to use: the option, else the environment's, else the folder `registry` beside params.yaml."""
    return option or os.environ.get(ENVIRONMENT) or str(beside.parent / DEFAULT_FOLDER)


class Registry:
    """Bundles and the champion at a URL.

    Every method raises PlatformError when the storage does not answer or does not let us, and ArtefactError when what
    lies there is damaged.

    Args:
        url: a folder, or anything that fsspec reaches, such as `s3://bucket/registry`. Nothing is written until needed.
        verifier: if given, a bundle whose manifest is not signed with its key cannot be read or fetched.
    """

    def __init__(self, url: str | Path, *, verifier: Verifier | None = None) -> None:
        self._storage, self._verifier = open_storage(str(url)), verifier
        self._leases = Leases(self._storage)
        self.url = self._storage.url

    def champion(self) -> Entry | None:
        """Returns the newest entry of the history; None before the first promotion.

        A champion.json that says something else, because a process was killed or overtaken, is put right if we may.
        """
        versions = self._versions()
        if not versions:
            return None
        entry = self._entry(versions[-1])
        if self._storage.read(_CHAMPION) != _entry_bytes(entry):
            try:
                self._storage.write(_CHAMPION, _entry_bytes(entry))
            except PlatformError as error:
                logger.debug("champion.json is behind the history, and this reader may not write: %s", error)
        return entry

    def history(self) -> list[Entry]:
        """Returns every change of the champion, the oldest first.

        Raises:
            ArtefactError: an entry is damaged or missing.
        """
        versions = self._versions()
        for expected, version in enumerate(versions, start=1):
            if version != expected:
                raise ArtefactError(f"{self._at(_history_name(expected))}: missing. Restore it from a backup.")
        return [self._entry(version) for version in versions]

    def ids(self) -> list[str]:
        """Returns the ids of all published bundles."""
        names = self._storage.sizes("bundles")
        return sorted(name.split("/")[1] for name in names if name.endswith(f"/{MANIFEST}") and name.count("/") == 2)

    def find_id(self, text: str) -> str:
        """Returns the id of the one bundle whose id starts with `text`.

        Raises:
            ArtefactError: there is none, or more than one.
        """
        ids = self.ids()
        found = [bundle_id for bundle_id in ids if bundle_id.startswith(text)]
        if len(found) == 1:
            return found[0]
        if found:
            raise ArtefactError(f"{self.url}: {text!r} is the start of {len(found)} bundles. Give more digits.")
        known = "`mtlops registry list` shows those that it has." if ids else "It is empty: run `mtlops promote`."
        raise ArtefactError(f"{self.url}: holds no bundle {text!r}. {known}")

    def manifest(self, bundle_id: str) -> Mapping[str, Any]:
        """Returns the manifest of a published bundle. Raises ArtefactError when it is missing or damaged."""
        manifest: Mapping[str, Any] = json.loads(self._manifest_bytes(bundle_id))
        return manifest

    def bundles(self) -> list[Published]:
        """Returns all published bundles, the oldest first."""
        sizes = {name.removeprefix("blobs/"): size for name, size in self._storage.sizes("blobs").items()}
        now = time.time()
        found = []
        for bundle_id in self.ids():
            raw = self._manifest_bytes(bundle_id)
            found.append((now - self._storage.age_seconds(_manifest_name(bundle_id)), bundle_id, raw))
        manifests = {bundle_id: json.loads(raw) for _, bundle_id, raw in found}
        holders: dict[str, list[str]] = {}
        for _, bundle_id, _ in sorted(found):
            for digest in set(manifests[bundle_id]["files"].values()):
                holders.setdefault(digest, []).append(bundle_id)
        return [
            _published(bundle_id, published, raw, manifests[bundle_id], sizes=sizes, holders=holders)
            for published, bundle_id, raw in sorted(found)
        ]

    def publish(self, folder: Path) -> str:
        """Stores the bundle in `folder`, each file only if it is not there yet, and returns the bundle's id.

        A bundle that is there already is left as it is; a damaged file of it is replaced.

        Raises:
            ArtefactError: `folder` holds no valid bundle.
        """
        bundle = Bundle.open(folder)
        files: Mapping[str, str] = bundle.manifest["files"]
        with self._leases.holding(bundle.id, files.values()):
            there = self._storage.sizes("blobs")
            sources = {digest: folder / name for name, digest in files.items()}
            missing = {d: path for d, path in sources.items() if not self._is_stored(d, path, there)}
            added = sum(path.stat().st_size for path in missing.values())
            progress = _Progress(f"publishing {bundle.id}", total=added)
            for digest, path in missing.items():
                self._storage.put(f"blobs/{digest}", path, digest=digest, tell=progress.add)
            self._commit(bundle)
        logger.info(
            "published bundle=%s registry=%s files=%d new_files=%d added_bytes=%d",
            bundle.id, self.url, len(files), len(missing), added,
        )  # fmt: skip
        return bundle.id

    def sign(self, bundle_id: str, signer: Signer) -> None:
        """Signs a published bundle; an earlier signature is replaced."""
        self._storage.write(_signature_name(bundle_id), signer.sign(self._manifest_bytes(bundle_id)))

    def keeping(self, bundle_id: str) -> AbstractContextManager[None]:
        """Returns a context in which no collection removes the bundle, published already or only within it."""
        return self._leases.holding(bundle_id, ())

    def retraining(self, tasks: Iterable[str]) -> AbstractContextManager[None]:
        """Returns a context in which nobody else retrains these tasks; it raises PlatformError when someone does."""
        return self._leases.retraining(tasks)

    def retrainers(self, tasks: Iterable[str]) -> str:
        """Returns who retrains one of these tasks now, in words; empty when nobody does."""
        return self._leases.retrainers(tasks)

    def promote(
        self,
        bundle_id: str,
        *,
        expect: str | None,
        by: str,
        reason: str,
        verdict: str = "",
        report: Mapping[str, Any] | None = None,
    ) -> Entry:
        """Makes a published bundle champion if `expect` still is, and returns the entry of the history.

        A bundle that is champion already stays so, and its entry is returned: a killed promotion can be repeated.

        Args:
            bundle_id: full id.
            expect: id of the champion that the bundle was compared with; None when there was none.
            by: who asks.
            reason: why.
            verdict: of the gate.
            report: what the decision rested on.

        Raises:
            ChampionChangedError: another bundle is champion, or became it in this moment.
            ArtefactError: no such bundle.
        """
        with self.keeping(bundle_id):
            champion = self.champion()
            current = champion.bundle_id if champion else None
            if champion and current == bundle_id:
                logger.info("bundle=%s is champion already, since version %d", bundle_id, champion.version)
                return champion
            if current != expect:
                raise _changed(self.url, expect=expect, current=champion)
            return self._advance(
                champion, bundle_id, action="promote", by=by, reason=reason, verdict=verdict, report=report
            )

    def rollback(self, to: str | None = None, *, by: str, reason: str) -> Entry:
        """Makes an earlier champion champion again and returns the new entry of the history.

        Args:
            to: full id; None for the bundle that was champion before the present one. A bundle that was rolled back
                from is no longer counted as one of the earlier ones, so two rollbacks go back two promotions.
            by: who asks.
            reason: why.

        Raises:
            ArtefactError: there is no earlier champion, `to` never was one or is champion, or it has been collected.
            ChampionChangedError: another process changed the champion in this moment.
        """
        history = self.history()
        champion = history[-1] if history else None
        if champion is None:
            raise ArtefactError(f"{self.url}: there is no champion yet, so nothing to go back from.")
        target = to or _earlier_champion(history)
        if target is None:
            raise ArtefactError(f"{self.url}: {champion.bundle_id} is the first champion; there is no earlier one.")
        if target not in {entry.bundle_id for entry in history}:
            raise ArtefactError(f"{self.url}: {target} never was champion. Use `mtlops promote` for a new bundle.")
        if target == champion.bundle_id:
            raise ArtefactError(f"{self.url}: {target} is the champion. Name an earlier one: `mtlops registry list`.")
        with self.keeping(target):
            return self._advance(champion, target, action="rollback", by=by, reason=reason, verdict="", report=None)

    def fetch(self, bundle_id: str, cache: Path) -> Path:
        """Returns a folder with a complete bundle, every file of it checked by its hash.

        It is `cache/<id>`. Files that an earlier bundle there holds are taken from it; from a registry in a folder of
        the same device they are hard links. Never change them: make a copy.

        Raises:
            ArtefactError: no such bundle, or one of its files is missing or damaged in the registry.
            PlatformError: also when `cache` cannot be written.
        """
        raw = self._manifest_bytes(bundle_id)
        target = cache / bundle_id
        if target.exists():
            try:
                if Bundle.open(target).id == bundle_id and (target / MANIFEST).read_bytes() == raw:
                    return target
            except ArtefactError as error:
                logger.warning("%s; fetching it again", error)
        files: Mapping[str, str] = json.loads(raw)["files"]
        sizes = self._storage.sizes("blobs")
        progress = _Progress(f"fetching {bundle_id}", total=sum(sizes.get(f"blobs/{d}", 0) for d in files.values()))
        near = _files_of_bundles(cache)
        with atomic_folder(target) as part:
            for name, digest in files.items():
                path = part / name
                path.parent.mkdir(parents=True, exist_ok=True)
                self._fetch_file(name, digest, path, near=near, progress=progress)
            (part / MANIFEST).write_bytes(raw)
        return target

    def pointer(self) -> bytes | None:
        """Returns champion.json as it lies there, in one request: a cheap hint that `champion` may say something new.

        It is behind the history for a moment, or where a promotion was killed; only `champion` knows.
        """
        return self._storage.read(_CHAMPION)

    def fetch_files(self, bundle_id: str, names: Iterable[str], cache: Path) -> Bundle:
        """Returns a bundle of which only these small files, and the manifest, are there; each checked by its hash.

        They lie in `cache/<id>.part`. Nothing but these files may be asked of the bundle.

        Raises:
            ArtefactError: no such bundle or file, or a file is damaged in the registry.
        """
        raw = self._manifest_bytes(bundle_id)
        manifest, folder = json.loads(raw), cache / f"{bundle_id}.part"
        for name in names:
            digest, path = manifest["files"].get(name, ""), folder / name
            if path.is_file() and sha256_file(path) == digest:
                continue
            content = self._storage.read(f"blobs/{digest}") if digest else None
            if content is None or hashlib.sha256(content).hexdigest() != digest:
                raise ArtefactError(
                    f"{self._at(f'blobs/{digest}')}: missing or damaged (it is {name} of {bundle_id}). "
                    f"Publish the bundle again."
                )
            with cached_path(path) as part:
                part.write_bytes(content)
        if not (folder / MANIFEST).is_file() or (folder / MANIFEST).read_bytes() != raw:
            with cached_path(folder / MANIFEST) as part:
                part.write_bytes(raw)
        return Bundle(folder, manifest)

    def gc(self, *, keep: int = 5, grace_seconds: float = 24 * 3600, dry_run: bool = False) -> Collected:
        """Removes bundles that nobody needs, and files that no bundle holds.

        Kept are: the champion, the newest `keep` different bundles of the history, what is being published, promoted or
        rolled back to at this moment, and whatever is younger than the grace period.

        Raises:
            PlatformError: another collection is under way.
        """
        with self._leases.collecting() as alive:
            # In this order: what ends while we look is found in the later place.
            uploads = self._leases.uploads(alive)
            kept = self._newest_bundles(keep, alive) | {upload["bundle"] for upload in uploads}
            manifests = {bundle_id: self.manifest(bundle_id) for bundle_id in alive.each(self.ids())}
            old = [
                bundle_id
                for bundle_id in alive.each(manifests)
                if bundle_id not in kept and self._storage.age_seconds(_manifest_name(bundle_id)) >= grace_seconds
            ]
            held = {digest for upload in uploads for digest in upload["files"]}
            for bundle_id, manifest in manifests.items():
                held |= set() if bundle_id in old else set(manifest["files"].values())
            idle = {
                name: size
                for name, size in alive.each(self._storage.sizes("blobs").items())
                if name.removeprefix("blobs/") not in held and self._storage.age_seconds(name) >= grace_seconds
            }
            signatures = [name for name in map(_signature_name, old) if name in self._storage.sizes("signatures")]
            if not dry_run:
                for name in alive.each([*signatures, *(f"bundles/{bundle_id}" for bundle_id in old), *idle]):
                    self._storage.remove(name)
                if isinstance(self._storage, Folder):
                    self._storage.remove_leftovers(older_than_seconds=max(grace_seconds, UPLOAD_LIMIT_SECONDS))
        return Collected(bundles=tuple(old), blobs=len(idle), bytes=sum(idle.values()))

    def _at(self, name: str) -> str:
        return f"{self.url.rstrip('/')}/{name}"

    def _versions(self) -> list[int]:
        names = (name.removeprefix("history/") for name in self._storage.sizes("history"))
        return sorted(int(name[:8]) for name in names if re.fullmatch(r"\d{8}\.json", name))

    def _entry(self, version: int) -> Entry:
        name = _history_name(version)
        content = self._storage.read(name)
        if content is None:
            raise ArtefactError(f"{self._at(name)}: missing. Restore it from a backup.")
        try:
            facts = json.loads(content)
            if facts.pop("schema_version") != SCHEMA_VERSION:
                raise ArtefactError(f"{self._at(name)}: was written by another version of mtlops. Use that one.")
            entry = Entry(**facts)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ArtefactError(f"{self._at(name)}: is no entry of a history ({error}). Restore it.") from None
        if entry.version != version:
            raise ArtefactError(f"{self._at(name)}: says that it is version {entry.version}. Restore it.")
        return entry

    def _advance(
        self,
        champion: Entry | None,
        bundle_id: str,
        *,
        action: str,
        by: str,
        reason: str,
        verdict: str,
        report: Mapping[str, Any] | None,
    ) -> Entry:
        """The compare-and-set: only one process can create the file with the next number."""
        self._check_complete(bundle_id)
        entry = Entry(
            version=champion.version + 1 if champion else 1,
            bundle_id=bundle_id,
            previous=champion.bundle_id if champion else None,
            action=action,
            time=_iso(time.time()),
            by=by,
            reason=reason,
            verdict=verdict,
            report=report,
        )
        if not self._storage.create(_history_name(entry.version), _entry_bytes(entry)):
            raise _changed(self.url, expect=entry.previous, current=self.champion())
        self.champion()  # brings champion.json up to date
        logger.info("champion=%s version=%d action=%s previous=%s", bundle_id, entry.version, action, entry.previous)
        return entry

    def _manifest_bytes(self, bundle_id: str) -> bytes:
        name = _manifest_name(bundle_id)
        raw = self._storage.read(name)
        if raw is None:
            self.find_id(bundle_id)
            raise ArtefactError(f"{self._at(name)}: missing. Publish the bundle again.")
        if hashlib.sha256(raw).hexdigest()[: len(bundle_id)] != bundle_id:
            raise ArtefactError(f"{self._at(name)}: is damaged: its sha256 is not the bundle's id. Publish it again.")
        if self._verifier is not None:
            self._verifier.check(raw, self._storage.read(_signature_name(bundle_id)), where=f"{self.url}: {bundle_id}")
        for path in json.loads(raw)["files"]:
            if PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
                raise ArtefactError(f"{self._at(name)}: names the file {path!r} outside the bundle. Do not use it.")
        return raw

    def _check_complete(self, bundle_id: str) -> None:
        there = self._storage.sizes("blobs")
        for name, digest in self.manifest(bundle_id)["files"].items():
            if f"blobs/{digest}" not in there:
                at = self._at(f"blobs/{digest}")
                raise ArtefactError(f"{at}: missing ({name} of {bundle_id}). Publish it again.")

    def _is_stored(self, digest: str, source: Path, there: Mapping[str, int]) -> bool:
        """A file of another size, or in a folder of other content, is a damaged one: it does not count."""
        name = f"blobs/{digest}"
        if name not in there:
            return False
        is_whole = there[name] == source.stat().st_size
        if is_whole and isinstance(self._storage, Folder):
            is_whole = sha256_file(self._storage.path / name) == digest
        if not is_whole:
            logger.warning("%s: is damaged; replacing it", self._at(name))
        return is_whole

    def _commit(self, bundle: Bundle) -> None:
        """Writes the manifest, the last of a bundle's files."""
        content = (bundle.folder / MANIFEST).read_bytes()
        if not isinstance(self._storage, Folder):
            self._storage.write(_manifest_name(bundle.id), content)
            return
        view = self._storage.path / "bundles" / bundle.id
        if view.exists():
            try:
                Bundle.open(view)
                return
            except ArtefactError as error:
                logger.warning("%s; making it anew", error)
                self._storage.remove(f"bundles/{bundle.id}")
        with new_folder(view) as part:
            for name, digest in bundle.manifest["files"].items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                link_or_copy(self._storage.path / "blobs" / digest, part / name)
            (part / MANIFEST).write_bytes(content)
            (part / MANIFEST).chmod(0o444)

    def _fetch_file(
        self, name: str, digest: str, path: Path, *, near: Mapping[str, Path], progress: "_Progress"
    ) -> None:
        if digest in near and not isinstance(self._storage, Folder):
            link_or_copy(near[digest], path)
            if sha256_file(path) == digest:
                progress.add(path.stat().st_size)
                return
            path.unlink()
        blob = f"blobs/{digest}"
        if not self._storage.get(blob, path, tell=progress.add):
            raise ArtefactError(f"{self._at(blob)}: missing (it is {name}). Publish the bundle again.")
        if sha256_file(path) != digest:
            raise ArtefactError(
                f"{self._at(blob)}: is damaged: its sha256 is not its name (it is {name}). Publish the bundle again."
            )

    def _newest_bundles(self, number: int, alive: Alive) -> set[str]:
        """The champion and the champions before it: `number` different ones."""
        newest: set[str] = set()
        for version in alive.each(reversed(self._versions())):
            if len(newest) >= max(number, 1):
                break
            newest.add(self._entry(version).bundle_id)
        return newest


class _Progress:
    """Says every few seconds how far a transfer is."""

    def __init__(self, what: str, *, total: int) -> None:
        self._what, self._total, self._done = what, total, 0
        self._said = time.monotonic()

    def add(self, num_bytes: int) -> None:
        """Counts bytes."""
        self._done += num_bytes
        if time.monotonic() - self._said > _PROGRESS_SECONDS:
            self._said = time.monotonic()
            logger.info("%s bytes=%d/%d", self._what, self._done, self._total)


def _changed(url: str, *, expect: str | None, current: Entry | None) -> ChampionChangedError:
    now = f"{current.bundle_id} (version {current.version}, by {current.by})" if current else "nobody"
    return ChampionChangedError(
        f"{url}: champion has changed: expected {expect or 'none'}, it is {now}. Nothing was promoted. Run `mtlops "
        f"evaluate` again, to compare with the new champion."
    )


def _earlier_champion(history: Iterable[Entry]) -> str | None:
    """The champion before the present one, if rollbacks take back promotions."""
    line: list[str] = []
    for entry in history:
        if entry.action == "rollback" and entry.bundle_id in line:
            while line[-1] != entry.bundle_id:
                line.pop()
        else:
            line.append(entry.bundle_id)
    return line[-2] if len(line) > 1 else None


def _published(
    bundle_id: str,
    published: float,
    raw: bytes,
    manifest: Mapping[str, Any],
    *,
    sizes: Mapping[str, int],
    holders: Mapping[str, list[str]],
) -> Published:
    files = {
        name: StoredFile(sha256=digest, bytes=sizes.get(digest, 0), bundles=len(holders[digest]))
        for name, digest in manifest["files"].items()
    }
    own = {digest for digest in manifest["files"].values() if holders[digest][0] == bundle_id}
    return Published(
        id=bundle_id,
        time=_iso(published),
        manifest=manifest,
        files=files,
        bytes=sum(file.bytes for file in files.values()) + len(raw),
        added_bytes=sum(sizes.get(digest, 0) for digest in own) + len(raw),
    )


def _files_of_bundles(cache: Path) -> dict[str, Path]:
    """Files of the bundles in a cache by the sha256 that their manifests give; the content may be another."""
    found: dict[str, Path] = {}
    for path in sorted(cache.glob(f"*/{MANIFEST}")):
        try:
            files = json.loads(path.read_bytes())["files"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s: cannot be read (%s); its files are fetched instead", path, error)
            continue
        found |= {digest: path.parent / name for name, digest in files.items() if (path.parent / name).is_file()}
    return found


def _history_name(version: int) -> str:
    return f"history/{version:08}.json"


def _manifest_name(bundle_id: str) -> str:
    return f"bundles/{bundle_id}/{MANIFEST}"


def _signature_name(bundle_id: str) -> str:
    return f"signatures/{bundle_id}.ed25519"


def _entry_bytes(entry: Entry) -> bytes:
    return _json_bytes({"schema_version": SCHEMA_VERSION, **asdict(entry)})


def _json_bytes(value: Any) -> bytes:
    return (to_json(value) + "\n").encode()


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
