"""What every report page has in common: the frame, the facts at the top, the banner."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from mtlops.report.markup import Markup, chip, join, tag, value
from mtlops.report.theme import STYLE

Payload = Mapping[str, Any]

TONES = {"PROMOTE": "good", "HOLD": "careful", "REJECT": "bad"}
"""Tone of each verdict."""

_SECTION = re.compile(r'<section id="([^"]+)"><h2>(.*?)</h2>')
_LONG_PAGE = 5


@dataclass(frozen=True)
class Headline:
    """What the index says of a report: one word in a pill of this tone, one sentence."""

    word: str
    tone: str
    text: str


@dataclass(frozen=True)
class Page:
    """How one kind of report is shown.

    Attributes:
        title: its heading.
        about: one sentence for somebody who sees it the first time.
        keys: top-level keys by which a payload is known to be of this kind.
        shown: top-level keys that `body` shows; any other key is shown below as it is.
        headline: (payload) -> what the index says.
        body: (payload) -> the page's parts.
    """

    title: str
    about: str
    keys: frozenset[str]
    shown: frozenset[str]
    headline: Callable[[Payload], Headline]
    body: Callable[[Payload], Sequence[Markup]]


def document(*, title: str, about: str, links: Sequence[tuple[str, str]], parts: Sequence[object]) -> str:
    """Returns a whole HTML page that needs no network and no script.

    Args:
        title: heading and window title.
        about: sentence under the heading.
        links: (text, address) of the line above the heading.
        parts: what the page shows.
    """
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} · mtlops"),
        tag("style", Markup(STYLE)),
    )
    nav = tag("nav", *(tag("a", text, href=address) for text, address in links), aria_label="Reports")
    content = tag("main", *parts)
    header = tag("header", nav if links else "", tag("h1", title), tag("p", about, class_="lead"), _contents(content))
    body = tag("body", header, content, tag("footer", "Made by mtlops."))
    return "<!doctype html>\n" + tag("html", head, body, lang="en") + "\n"


def _contents(content: Markup) -> Markup:
    """Links to the sections of a long page; nothing for a short one."""
    sections = [(place, Markup(words)) for place, words in _SECTION.findall(content)]
    if len(sections) < _LONG_PAGE:
        return Markup()
    return tag("nav", *(tag("a", words, href=f"#{place}") for place, words in sections), class_="parts",
               aria_label="Parts of this page")  # fmt: skip


def facts(*pairs: tuple[str, object]) -> Markup:
    """Returns the few numbers that a page starts with, as (name, value); a None is left out."""
    shown = (tag("div", tag("dt", n), tag("dd", value(v))) for n, v in pairs if v is not None)
    return tag("dl", *shown, class_="facts")


def banner(word: str, tone: str, text: object) -> Markup:
    """Returns the large line that says how it went."""
    signs = {"good": "✓", "careful": "!", "bad": "✕"}
    sign = tag("span", signs.get(tone, "·") + " ", aria_hidden="true")
    return tag("div", tag("strong", sign, word), tag("p", text), class_=f"banner {tone}", role="status")


def verdict_banner(decision: Payload) -> Markup:
    """Returns the large line for a decision: its verdict and the reasons that decided."""
    verdict = decision["verdict"]
    return banner(verdict, TONES.get(verdict, "plain"), " ".join(decision.get("reasons", [])))


def verdict_chip(verdict: str | None) -> Markup:
    """Returns a verdict as a pill, or nothing when there is none."""
    return chip(verdict, TONES.get(verdict, "plain")) if verdict else Markup()


def reasons(lines: Sequence[object]) -> Markup:
    """Returns sentences as a list."""
    return tag("ul", join(tag("li", line) for line in lines), class_="reasons") if lines else Markup()
