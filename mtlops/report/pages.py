"""Writes a report: JSON for programs, an HTML twin for people, and the index that links them all."""

import json
from pathlib import Path

from mtlops.files import to_json, write_text
from mtlops.report.document import Headline, Page, Payload, document, verdict_banner
from mtlops.report.drift import DRIFT
from mtlops.report.evaluation import DECISION, EVALUATION
from mtlops.report.export import EXPORT
from mtlops.report.markup import Markup, chip, section, tag, title, tree
from mtlops.report.timeline import TIMELINE
from mtlops.report.training import TRAINING
from mtlops.report.validation import VALIDATION

PAGES: tuple[Page, ...] = (VALIDATION, TRAINING, EVALUATION, DECISION, EXPORT, DRIFT, TIMELINE)
"""Every kind of report that has a page of its own, in the order of the index."""


def write_report(path: Path, payload: Payload) -> None:
    """Writes `payload` as JSON to `path`, its HTML twin beside it, and refreshes `index.html` there.

    The twin is made first, so that a payload that cannot be shown or is not JSON changes no file.

    Raises:
        PlatformError: the disk is full or not writable.
        ValueError: `payload` holds a NaN or an infinity.
    """
    text = to_json(payload) + "\n"
    page = html_page(json.loads(text), name=path.stem)
    write_text(path, text)
    write_text(path.with_suffix(".html"), page)
    write_index(path.parent)


def write_index(folder: Path) -> None:
    """Writes `index.html`, which links every report in `folder` that has a page. Raises like `write_report`."""
    write_text(folder / "index.html", _index(folder))


def html_page(payload: Payload, *, name: str) -> str:
    """Returns the HTML twin of the report `name`; one of an unknown kind is shown as nested tables."""
    page = page_of(payload)
    shown = page.shown if page else frozenset()
    rest = {k: v for k, v in payload.items() if k not in shown and k not in {"schema_version", "suite"}}
    parts = [*(page.body(payload) if page else ()), section("Details", tree(rest)) if rest else Markup()]
    return document(
        title=page.title if page else title(name).capitalize(),
        about=page.about if page else "",
        links=[("All reports", "index.html"), ("This report as JSON", f"{name}.json")],
        parts=parts,
    )


def task_page(evaluation: Payload, task: str) -> str:
    """Returns the evaluation page of one task alone, without links to other files: for a viewer that has no others."""
    alone = {k: v for k, v in evaluation.items() if k not in {"mean", "affinity"}} | {
        "tasks": {task: evaluation["tasks"][task]}
    }
    return document(title=f"{EVALUATION.title}: {task}", about=EVALUATION.about, links=[], parts=EVALUATION.body(alone))


def page_of(payload: Payload) -> Page | None:
    """Returns the page for a payload, known by its keys, or None."""
    return next((page for page in PAGES if page.keys <= payload.keys()), None)


def _index(folder: Path) -> str:
    reports = [(p.stem, json.loads(p.read_text(encoding="utf-8"))) for p in sorted(folder.glob("*.json"))]
    shown = [(name, page_of(content), content) for name, content in reports if isinstance(content, dict)]
    shown = [entry for entry in shown if (folder / f"{entry[0]}.html").exists()]
    shown.sort(key=lambda entry: PAGES.index(entry[1]) if entry[1] else len(PAGES))
    cards = (_index_card(name, page, content) for name, page, content in shown)
    verdicts = (content for _, page, content in shown if page is DECISION)
    return document(
        title="Reports",
        about="One page for each step of the last run, in the order of the steps.",
        links=[],
        parts=[*map(verdict_banner, verdicts), section("Steps", tag("div", *cards, class_="grid"))],
    )


def _index_card(name: str, page: Page | None, content: Payload) -> Markup:
    headline = page.headline(content) if page else Headline("", "plain", "")
    word = chip(headline.word, headline.tone) if headline.word else ""
    heading = tag("h3", tag("span", page.title if page else title(name).capitalize()), word)
    return tag("a", heading, tag("p", headline.text, class_="soft"), class_="card", href=f"{name}.html")
