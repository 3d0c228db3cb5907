"""A log too large for one machine: its files in parts, each profiled by itself, merged in any number to the same bits.

A part holds, for each task and for the encoder, the counts of its rows in the shape of the champion's reference: as
large as the reference, however many rows it has. Merged they are one window, the same as a single pass would give.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mtlops.drift.profile import ENCODER
from mtlops.errors import ArtefactError, UsageError
from mtlops.files import atomic_folder, read_json, write_json
from mtlops.prediction_log import PREDICTIONS
from mtlops.watch.engine import Watch
from mtlops.watch.log import DamagedFileError, LogFile, PredictionLog
from mtlops.watch.references import Reference, References
from mtlops.watch.rows import UNREADABLE, Answered, answered_by, parse_predictions
from mtlops.watch.state import State
from mtlops.watch.streams import TRAFFIC, Stream

if TYPE_CHECKING:
    from mtlops.params import Drift

SCHEMA_VERSION = 1
_FACTS = "part.json"
_MADE_BY = "python -m monitoring profile"


@dataclass(frozen=True)
class Share:
    """Which part of how many: the first of four is 1/4."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Share":
        """Returns the share that `K/N` names.

        Raises:
            UsageError: it names none.
        """
        number, _, of = text.partition("/")
        if number.isdigit() and of.isdigit() and 1 <= int(number) <= int(of):
            return cls(int(number), int(of))
        raise UsageError(f"--part {text}: give K/N with K from 1 to N, such as 1/4.")

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"


@dataclass(frozen=True)
class Part:
    """What a part of a log holds.

    Attributes:
        share: which part.
        bundle: id of the bundle whose references the counts fit.
        digest: of the names of all files of all parts: parts of different listings do not fit together.
        streams: by task, and `encoder`.
        counts: rows by what became of them.
        set_aside: files that could not be read, with the reason.
    """

    share: Share
    bundle: str
    digest: str
    streams: dict[str, Stream]
    counts: Counter[str]
    set_aside: tuple[tuple[str, str], ...]

    def save(self, folder: Path) -> None:
        """Writes the part as a folder, as a whole or not at all."""
        packed = {name: stream.pack() for name, stream in self.streams.items()}
        facts = {
            "schema_version": SCHEMA_VERSION, "share": str(self.share), "bundle": self.bundle, "digest": self.digest,
            "versions": {name: stream.version for name, stream in self.streams.items()},
            "counts": dict(sorted(self.counts.items())), "set_aside": self.set_aside,
            "streams": {name: json.loads(stream) for name, (stream, _) in packed.items()},
        }  # fmt: skip
        with atomic_folder(folder) as made:
            write_json(made / _FACTS, facts)
            for name, (_, arrays) in packed.items():
                (made / f"{name}.bin").write_bytes(arrays)

    @classmethod
    def load(cls, folder: Path) -> "Part":
        """Returns the part in a folder.

        Raises:
            ArtefactError: it is none, or of another version.
        """
        facts = read_json(folder / _FACTS, made_by=_MADE_BY)
        if not isinstance(facts, dict) or facts.get("schema_version") != SCHEMA_VERSION:
            raise ArtefactError(f"{folder}: is no part that this mtlops reads. Run `{_MADE_BY}` again.")
        streams = {
            name: Stream.unpack({"name": name, "source": TRAFFIC, "version": facts["versions"][name],
                                 "facts": json.dumps(stream), "arrays": _read(folder / f"{name}.bin")})
            for name, stream in facts["streams"].items()
        }  # fmt: skip
        aside = tuple((name, reason) for name, reason in facts["set_aside"])
        return cls(Share.parse(facts["share"]), facts["bundle"], facts["digest"], streams, Counter(facts["counts"]),
                   aside)  # fmt: skip


def profile_part(
    log: PredictionLog, references: References, *, share: Share, since: date, until: date
) -> Part:  # fmt: skip
    """Returns the counts of a part of the predictions of some days: neighbouring files, about as many bytes each.

    Args:
        log: to read; feedback is left to the monitor.
        references: of the champion.
        share: which part.
        since: first day (UTC), by the time of a file's first row.
        until: last day; one that has ended, so that all parts see the same files.

    Raises:
        PlatformError: the log cannot be read.
    """
    listed, _ = log.files()
    files = [file for file in listed if file.table == PREDICTIONS and since <= file.day <= until]
    digest = sha256("\n".join(file.name for file in files).encode()).hexdigest()[:16]
    streams = _fresh(references)
    counts: Counter[str] = Counter()
    aside: list[tuple[str, str]] = []
    for file in _files_of(files, share):
        counts["files"] += 1
        try:
            found, of_rows = _count(log, file, references)
        except DamagedFileError as error:
            aside.append((file.name, str(error)))
            continue
        streams = {name: stream.merged(found[name]) for name, stream in streams.items()}
        counts.update(of_rows)
    return Part(share, references.bundle_id, digest, streams, counts, tuple(aside))


def merge_parts(parts: Sequence[Part], references: References) -> Part:
    """Returns all parts as one.

    Raises:
        UsageError: one is missing or there twice.
        ArtefactError: they were made of different files, or for another bundle.
    """
    ordered = sorted(parts, key=lambda part: part.share.number)
    of = ordered[0].share.of if ordered else 0
    if [part.share for part in ordered] != [Share(k, of) for k in range(1, of + 1)]:
        said = ", ".join(str(part.share) for part in ordered) or "none"
        raise UsageError(f"merge: needs each part once, there are: {said}.")
    if len({part.digest for part in ordered}) > 1:
        raise ArtefactError("merge: the log grew between parts. Give `profile` a last day that has ended.")
    if {part.bundle for part in ordered} != {references.bundle_id}:
        raise ArtefactError(f"merge: the parts are of another bundle than {references.bundle_id}. Profile them again.")
    streams = ordered[0].streams
    for part in ordered[1:]:
        streams = {name: stream.merged(part.streams[name]) for name, stream in streams.items()}
    counts = sum((part.counts for part in ordered), Counter[str]())
    aside = tuple(found for part in ordered for found in part.set_aside)
    return Part(Share(1, 1), references.bundle_id, ordered[0].digest, streams, counts, aside)


def judge_part(part: Part, references: References, *, drift: "Drift") -> Watch:
    """Returns a watch whose only windows are those of the part, judged; its state is gone with the process."""
    state = State(":memory:")
    watch = Watch(drift, references, state)
    with state.transaction():
        for name, stream in part.streams.items():
            if stream.rows + stream.bad:
                content = {**watch.judge.close(stream), "reference": "bundle"}
                state.add_window(name, source=TRAFFIC, version=stream.version, bundle=part.bundle, content=content)
                state.count("windows.traffic", 1)
        for what, number in part.counts.items():
            state.count(what, number)
        state.remember("newest", max((stream.stop for stream in part.streams.values()), default=0))
        for name, reason in part.set_aside:
            state.run("INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?)", name, PREDICTIONS, "", 0, 0, 0, reason)
    return watch


def _files_of(files: Sequence[LogFile], share: Share) -> list[LogFile]:
    """The files of a share: those whose middle byte lies in it."""
    total, before = sum(file.bytes for file in files), 0
    found = []
    for file in files:
        if (2 * before + file.bytes) * share.of // max(2 * total, 1) == share.number - 1:
            found.append(file)
        before += file.bytes
    return found


def _fresh(references: References) -> dict[str, Stream]:
    return {name: Stream.fresh(reference, TRAFFIC) for name, reference in references.by_name.items()}


def _count(log: PredictionLog, file: LogFile, references: References) -> tuple[dict[str, Stream], Counter[str]]:
    """The rows of one file, counted apart from the others: it may turn out to be damaged half way."""
    streams, counts = _fresh(references), Counter[str]()
    for table in log.read(file):
        _add(streams, answered_by(table, references.bundle_id, references.tasks), references=references, counts=counts)
    return streams, counts


def _add(streams: dict[str, Stream], answered: Answered, *, references: References, counts: Counter[str]) -> None:
    counts.update(answered.counts)
    if not answered.rows.num_rows:
        return
    parsed = parse_predictions(answered.rows, references.tasks)
    for name in (ENCODER, *(task.name for task in references.tasks)):
        reference: Reference = references.by_name[name]
        faults = parsed.faults.get(name, Counter())
        if reference.has_unreadable:
            faults.pop(UNREADABLE, None)
        streams[name].faults.update(+faults)
        sample = parsed.samples.get(name)
        if sample is not None and len(sample):
            streams[name].add(sample, reference)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ArtefactError(f"{path}: cannot be read ({error.strerror}). Run `{_MADE_BY}` again.") from None


def facts_of(part: Part) -> dict[str, Any]:
    """Returns what is worth saying of a part in a line."""
    return {"part": str(part.share), "bundle": part.bundle, "files": part.counts["files"], "rows": part.counts["rows"],
            "set_aside": len(part.set_aside)}  # fmt: skip
