"""The page of timeline.json: a scenario that was played with real processes, and what had to come of it."""

import itertools
from collections.abc import Iterator, Sequence

from mtlops.report.document import Headline, Page, Payload, banner, facts
from mtlops.report.markup import Markup, chip, duration, join, section, table, tag

_WIDTH, _ROW = 720.0, 22.0
_TONES = {"phase": "plain", "alert": "bad", "request": "careful", "verdict": "plain", "swap": "good", "claim": "plain"}
_DRAWN = ("phase", "alert", "request", "verdict", "swap")


def _headline(payload: Payload) -> Headline:
    wrong = [claim["claim"] for claim in payload["claims"] if not claim["holds"]]
    if wrong:
        return Headline("not as expected", "bad", "; ".join(wrong))
    if not payload["claims"]:
        return Headline("broken off", "careful", "The scenario did not come to its end.")
    return Headline("as expected", "good", f"{len(payload['claims'])} claims hold.")


def _body(payload: Payload) -> Iterator[Markup]:
    head = _headline(payload)
    yield banner(head.word, head.tone, head.text)
    yield tag("p", payload["about"], class_="lead")
    events = payload["events"]
    yield facts(
        ("scenario", payload["scenario"]), ("took", duration(events[-1]["seconds"]) if events else None),
        ("requests answered", payload["requests"]["answered"]), ("requests failed", payload["requests"]["failed"]),
    )  # fmt: skip
    drawn = [event for event in events if event["kind"] in _DRAWN]
    yield section("From the shift to the swap", _picture(drawn), _durations(drawn)) if drawn else Markup()
    claims = [[chip("holds", "good") if c["holds"] else chip("does not", "bad"), c["claim"]] for c in payload["claims"]]
    yield section("What had to be so", table(["", "claim"], claims)) if claims else Markup()
    rows = [[_clock(e["seconds"]), chip(e["kind"], _TONES.get(e["kind"], "plain")), e["event"]] for e in events]
    yield section("What happened", table(["time", "", "what"], rows))


def _durations(drawn: Sequence[Payload]) -> Markup:
    """Seconds from one step to the next."""
    steps = itertools.pairwise(drawn)
    rows = [[_short(a), _short(b), duration(b["seconds"] - a["seconds"])] for a, b in steps]
    return table(["from", "to", "took"], rows)


def _short(event: Payload) -> Markup:
    return join((chip(event["kind"], _TONES[event["kind"]]), " ", event["event"].split(":")[0]))


def _picture(drawn: Sequence[Payload]) -> Markup:
    """A line of time; each event has a mark on it and its name below, one row each so that none covers another."""
    last = max(event["seconds"] for event in drawn) or 1.0
    height = 30.0 + _ROW * len(drawn)
    marks = []
    for row, event in enumerate(drawn):
        x, y = 10.0 + (_WIDTH - 20.0) * event["seconds"] / last, 30.0 + _ROW * row
        is_right = x > _WIDTH / 2
        said = f"{_clock(event['seconds'])} {event['event'].split(':')[0]}"[:60]
        marks += [
            tag("line", x1=f"{x:.1f}", x2=f"{x:.1f}", y1="8", y2=f"{y:.1f}", stroke="currentColor", opacity="0.3"),
            tag("circle", cx=f"{x:.1f}", cy="8", r="4", fill="currentColor"),
            tag("text", said, x=f"{x - 6 if is_right else x + 6:.1f}", y=f"{y:.1f}", fill="currentColor",
                font_size="12", text_anchor="end" if is_right else "start"),
        ]  # fmt: skip
    return tag(
        "svg", tag("title", f"{len(drawn)} events in {duration(last)}"),
        tag("line", x1="10", x2=f"{_WIDTH - 10:.0f}", y1="8", y2="8", stroke="currentColor", stroke_width="2"),
        *marks, viewBox=f"0 0 {_WIDTH:.0f} {height:.0f}", role="img", aria_label="Events in time",
    )  # fmt: skip


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


TIMELINE = Page(
    title="Timeline",
    about="What happened, from the first traffic to the last measurement.",
    keys=frozenset({"events", "claims", "scenario"}),
    shown=frozenset({"events", "claims", "scenario", "about", "requests"}),
    headline=_headline,
    body=lambda payload: list(_body(payload)),
)
