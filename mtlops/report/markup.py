"""HTML and SVG built from tags, escaped by construction, and the words that numbers become."""

import html
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeGuard


class Markup(str):
    """Text that is HTML already. Every other string is escaped when it becomes a child of a tag."""

    __slots__ = ()


def tag(name: str, /, *children: object, **attributes: object) -> Markup:
    """Returns `<name attributes>children</name>`.

    Children that are not Markup are escaped. An attribute that is None is left out; `_` at the end of its name is
    dropped (`class_`) and `_` inside becomes `-` (`stroke_width`).
    """
    given = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in {"meta", "link", "br"}:
        return Markup(f"<{name}{given}>")
    return Markup(f"<{name}{given}>{join(children)}</{name}>")


def join(parts: Iterable[object]) -> Markup:
    """Returns the parts one after another; those that are not Markup are escaped."""
    return Markup("".join(part if isinstance(part, Markup) else html.escape(str(part)) for part in parts))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], *, caption: str | None = None) -> Markup:
    """Returns a table; on a narrow screen each row becomes a block that repeats the heads.

    Cells that are numbers are right-aligned; a cell that is None is a dash.
    """
    head = tag("thead", tag("tr", *(tag("th", text, scope="col") for text in heads)))
    body = tag("tbody", *(tag("tr", *(_cell(h, c) for h, c in zip(heads, row, strict=True))) for row in rows))
    title = tag("caption", caption) if caption else ""
    return tag("div", tag("table", title, head, body), class_="scroll")


def _cell(head: str, cell: object) -> Markup:
    is_number = isinstance(cell, int | float) and not isinstance(cell, bool)
    return tag("td", value(cell), class_="number" if is_number else None, data_label=head or None)


def chip(word: str, tone: str) -> Markup:
    """Returns a word in a coloured pill with a sign, so that colour never stands alone.

    Args:
        word: what it says.
        tone: good, careful, bad or plain.
    """
    signs = {"good": "✓", "careful": "!", "bad": "✕", "plain": "·"}
    return tag("span", tag("span", signs[tone] + " ", aria_hidden="true"), word, class_=f"chip {tone}")


def card(title: object, *children: object) -> Markup:
    """Returns a titled box."""
    return tag("article", tag("h3", title), *children, class_="card")


def section(title: str, *children: object) -> Markup:
    """Returns a titled part of a page that can be linked to, or nothing when it has no content."""
    return tag("section", tag("h2", title), *children, id=slug(title)) if any(children) else Markup()


def slug(title: str) -> str:
    """Returns a title as the name of a place in a page: `By slice` becomes `by-slice`."""
    return re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")


def bars(sizes: Mapping[str, float], words: Mapping[str, str]) -> Markup:
    """Returns horizontal bars, the longest first; `words` says each bar's value."""
    longest = max(sizes.values(), default=0) or 1
    rows = (
        tag("div", tag("span", name, class_="name"), tag("span", words[name], class_="amount"),
            tag("span", class_="bar", style=f"--share:{size / longest:.4f}"), class_="bar-row")
        for name, size in sorted(sizes.items(), key=lambda item: (-item[1], item[0]))
    )  # fmt: skip
    return tag("div", *rows, class_="bars")


def details(title: str, *children: object) -> Markup:
    """Returns a part that is folded until it is opened."""
    return tag("details", tag("summary", title), *children)


def tree(content: object) -> Markup:
    """Returns any JSON value as nested tables: what a report shows of keys that no page knows."""
    if isinstance(content, Mapping) and content:
        return tag("dl", *(join((tag("dt", title(str(k))), tag("dd", tree(v)))) for k, v in content.items()))
    if isinstance(content, list) and content and all(isinstance(row, Mapping) for row in content):
        heads = list(dict.fromkeys(key for row in content for key in row))
        return table([title(h) for h in heads], [[row.get(h) for h in heads] for row in content])
    return value(content)


def value(content: object) -> Markup:
    """Returns one JSON value in words."""
    if isinstance(content, Markup):
        return content
    if content is None or content in ([], {}):
        return Markup("–")
    if isinstance(content, bool):
        return Markup("yes" if content else "no")
    if isinstance(content, int | float):
        return Markup(number(content))
    if isinstance(content, list) and not any(isinstance(part, Mapping | list) for part in content):
        return join((", ".join(value(part) for part in content[:20]), f" … ({len(content)})" if content[20:] else ""))
    if isinstance(content, Mapping | list):
        return tag("code", json.dumps(content, ensure_ascii=False))
    return join([content])


def title(name: str) -> str:
    """Returns a key as words: `rows_set_aside` becomes `rows set aside`."""
    return name.replace("_", " ")


def number(value: float) -> str:
    """Returns a number with as many digits as a reader needs: 12,483, 0.612, 4.6e-06."""
    if isinstance(value, int) or (float(value).is_integer() and abs(value) >= 100):
        return f"{int(value):,}"
    if value == 0:
        return "0"
    if abs(value) < 0.001:
        return f"{value:.1e}"
    return f"{value:,.1f}" if abs(value) >= 100 else f"{value:.3f}"


def size(num_bytes: float) -> str:
    """Returns a number of bytes in decimal units: 83.5 MB."""
    amount = float(num_bytes)
    for unit in ("B", "kB", "MB"):
        if amount < 999.5:
            return f"{amount:.0f} {unit}" if unit == "B" or amount >= 99.5 else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"


def duration(seconds: float) -> str:
    """Returns seconds in words: 0.4 s, 48 s, 3 min 20 s, 2 h 5 min."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def is_number(content: object) -> TypeGuard[float]:
    """Returns whether a JSON value is a number (and not true or false)."""
    return isinstance(content, int | float) and not isinstance(content, bool)
