"""Plots as inline SVG: readable on a phone, in the page's light or dark colours, with a text for screen readers.

Every plot is 360 units wide, about a phone's width, so that its text is of normal size there and a little
larger on a desktop.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from mtlops.report.markup import Markup, number, tag

WIDTH = 360


@dataclass(frozen=True)
class Estimate:
    """A named value with the ends of its interval.

    Attributes:
        name: what it is of.
        value: where its dot is.
        low: lower end of the interval.
        high: upper end.
        champion: the champion's value on the same rows, drawn as a diamond, or None.
        is_faint: whether it is drawn dashed, since nothing is judged by it.
    """

    name: str
    value: float
    low: float
    high: float
    champion: float | None = None
    is_faint: bool = False


def forest(
    ours: Estimate,
    others: Sequence[Estimate],
    *,
    metric: str,
    floor: float | None,
    name: str = "beside the baselines",
    has_guide: bool = False,
) -> Markup:
    """Returns our interval above those of others, on one axis, with the floor as a dashed line.

    `name` ends the plot's title for screen readers, after the metric; `has_guide` draws a line down from our value.
    """
    rows = [ours, *others]
    shown = [end for row in rows for end in _ends(row)] + ([] if floor is None else [floor])
    left, letters = _room([row.name for row in rows])
    x = _Scale(math.floor(min(shown) * 10) / 10, math.ceil(max(shown) * 10) / 10, left, 306)
    top, step = 26, 26
    bottom = top + step * len(rows)
    marks: list[Markup] = [*_x_axis(x, top - 6, bottom)]
    if floor is not None:
        marks.append(_line(x(floor), top - 8, x(floor), bottom, "floor"))
        side = "end" if x(floor) > 240 else None
        marks.append(_text(x(floor) + (-4 if side else 4), 11, f"floor {floor:.2f}", f"floor-text {side or ''}"))
    if has_guide:
        marks.append(_line(x(ours.value), top + 10, x(ours.value), bottom, "dashed"))
    for i, row in enumerate(rows):
        marks += _forest_row(row, x, top + step * i + 10, "theirs" if i else "ours", letters)
    limit = f"; floor {floor:.2f}" if floor is not None else ""
    return _svg(bottom + 22, f"{title_case(metric)} {name}", "; ".join(map(_said, rows)) + limit, marks)


def changes(rows: Sequence[Estimate], *, name: str) -> Markup:
    """Returns differences with their intervals around a line at zero; `name` is the title for screen readers."""
    shown = [0.0, *(end for row in rows for end in _ends(row))]
    least, most = min(shown), max(shown)
    unit = 0.1 if most - least > 0.3 else 0.01
    left, letters = _room([row.name for row in rows])
    x = _Scale(math.floor(least / unit) * unit, math.ceil(most / unit) * unit or unit, left, 306)
    top, step = 22, 26
    bottom = top + step * len(rows)
    marks = [*_x_axis(x, top - 6, bottom), _line(x(0.0), top - 8, x(0.0), bottom, "dashed")]
    marks.append(_text(x(0.0), 10, "no change", "quiet middle"))
    for i, row in enumerate(rows):
        marks += _forest_row(row, x, top + step * i + 10, "ours", letters, sign="+")
    return _svg(bottom + 22, name, "; ".join(_said(row, sign="+") for row in rows), marks)


def scores(values: Mapping[str, float], *, name: str, limit: float, limit_name: str) -> Markup:
    """Returns one dot a name on an axis from 0, those over the dashed line at `limit` in the second colour."""
    left, letters = _room(list(values))
    x = _Scale(0.0, max(limit * 1.25, *values.values()), left, 306)
    top, step = 22, 22
    bottom = top + step * len(values)
    marks = [*_x_axis(x, top - 6, bottom), _line(x(limit), top - 8, x(limit), bottom, "floor")]
    marks.append(_text(x(limit) - 4, 10, limit_name, "floor-text end"))
    for i, (row, value) in enumerate(values.items()):
        y, style = top + step * i + 8, "second-dot" if value > limit else "first-dot"
        hover = tag("title", f"{row}: {value:.3f}")
        marks += [
            _text(0, y + 4, _short(row, letters), "quiet"),
            tag("circle", hover, cx=_f(x(value)), cy=_f(y), r="4", class_=style),
            _text(WIDTH - 4, y + 4, f"{value:.2f}", "end quiet"),
        ]
    said = "; ".join(f"{row} {value:.2f}" for row, value in values.items())
    return _svg(bottom + 22, name, f"{said}; {limit_name} {limit:g}", marks)


def confusion_matrix(classes: Sequence[str], counts: Sequence[Sequence[int]]) -> Markup:
    """Returns a heat map: rows are labels, columns answers, the shade is the share of the row."""
    left, top = 92, 36 if len(classes) <= 3 else 62
    cell = min(84.0, (WIDTH - left - 14) / len(classes))
    height = min(cell, 44.0)
    marks = [_text(left + cell * len(classes) / 2, 11, "predicted", "quiet middle")]
    for j, name in enumerate(classes):
        x = left + cell * j + cell / 2
        turn = None if len(classes) <= 3 else f"rotate(-32 {x - 4:.1f} {top - 6})"
        place = (x, "quiet middle") if turn is None else (x - 4, "quiet")
        marks.append(_text(place[0], top - 6, _short(name, 12), place[1], transform=turn))
    for i, row in enumerate(counts):
        y = top + height * i
        marks.append(_text(left - 8, y + height / 2 + 4, _short(classes[i], 12), "end"))
        for j, count in enumerate(row):
            marks += _confusion_cell(left + cell * j, y, cell, height, count, sum(row), (classes[i], classes[j]))
    shares = (f"{c}: {r[i]} of {sum(r)} right" for i, (c, r) in enumerate(zip(classes, counts, strict=True)))
    return _svg(top + height * len(classes) + 6, "Confusion matrix", "; ".join(shares), marks)


def affinity(tasks: Sequence[str], alike: Mapping[str, Mapping[str, float]]) -> Markup:
    """Returns a heat map of how alike two tasks read the same rows; below the diagonal, where each pair is once."""
    left, top = 92, 8
    cell = min(84.0, (WIDTH - left - 14) / (len(tasks) - 1))
    height = min(cell, 44.0)
    marks: list[Markup] = []
    for i, name in enumerate(tasks[1:]):
        y = top + height * i
        marks.append(_text(left - 8, y + height / 2 + 4, _short(name, 12), "end"))
        for j, other in enumerate(tasks[: i + 1]):
            value = alike[name][other]
            marks += _cell(left + cell * j, y, cell, height, value, f"{value:.2f}", f"{name} and {other}: {value:.2f}")
    bottom = top + height * (len(tasks) - 1)
    for j, name in enumerate(tasks[:-1]):
        x = left + cell * j + cell / 2
        marks.append(_text(x, bottom + 14, _short(name, max(3, int(cell / 7))), "quiet middle"))
    said = "; ".join(f"{a} and {b}: {alike[a][b]:.2f}" for i, a in enumerate(tasks) for b in tasks[:i])
    return _svg(bottom + 22, "Affinity of tasks", said, marks)


def reliability(bins: Sequence[Mapping[str, float]], *, names: tuple[str, str]) -> Markup:
    """Returns predicted against observed for each bin; on the dashed diagonal they agree.

    Args:
        bins: mappings with `rows`, `predicted`, `observed`.
        names: words for the two axes.
    """
    values = [b[key] for b in bins for key in ("predicted", "observed")]
    is_share = names[1].startswith("share")
    low, high = (0.0, 1.0) if is_share else (min(values, default=0.0), max(values, default=1.0))
    x, y = _Scale(low, high, 56, 344), _Scale(low, high, 218, 12)
    marks = [*_x_axis(x, 12, 218), *_y_axis(y, 56, 344), _line(x(low), y(low), x(high), y(high), "dashed")]
    most = max((b["rows"] for b in bins), default=1)
    points = [(x(b["predicted"]), y(b["observed"])) for b in bins]
    marks.append(_path(points, "first"))
    for b, (px, py) in zip(bins, points, strict=True):
        said = f"{number(b['rows'])} rows: {names[0]} {b['predicted']:.3f}, {names[1]} {b['observed']:.3f}"
        radius = 2.5 + 2.5 * math.sqrt(b["rows"] / most)
        marks.append(tag("circle", tag("title", said), cx=_f(px), cy=_f(py), r=_f(radius), class_="first-dot"))
    marks.append(_text(200, 252, names[0], "quiet middle"))
    marks.append(_text(12, 115, names[1], "quiet middle", transform="rotate(-90 12 115)"))
    said = "; ".join(f"{b['predicted']:.2f} predicted, {b['observed']:.2f} observed" for b in bins)
    return _svg(260, "Reliability diagram", said, marks)


def curves(series: Mapping[str, Sequence[float]], *, epochs: Sequence[int], mark: int | None) -> Markup:
    """Returns lines over epochs, each named at its end, with a ring around the epoch `mark` on the last line.

    Args:
        series: one or two lines by name; `validation` has a look of its own on every plot.
        epochs: number of each epoch.
        mark: epoch to mark, or None.
    """
    values = [v for line in series.values() for v in line]
    low, high = min(values), max(values)
    pad = (high - low) * 0.08 or abs(high) * 0.05 or 0.5
    x, y = _Scale(min(epochs), max(*epochs, min(epochs) + 1), 44, 276), _Scale(low - pad, high + pad, 132, 10)
    marks = [*_y_axis(y, 44, 276), *(_text(x(e), 148, str(e), "quiet middle") for e in _few(epochs))]
    ends = _apart([y(line[-1]) for line in series.values()])
    for (name, line), end in zip(series.items(), ends, strict=True):
        style = "second" if name == "validation" else "first"
        points = [(x(e), y(v)) for e, v in zip(epochs, line, strict=True)]
        marks.append(_path(points, style))
        marks += [tag("circle", cx=_f(px), cy=_f(py), r="2.5", class_=f"{style}-dot") for px, py in points]
        marks.append(_text(283, end + 4, name, f"{style}-text"))
    if mark is not None and mark in epochs:
        best_y = y(list(series.values())[-1][list(epochs).index(mark)])
        marks.append(tag("circle", tag("title", "best epoch"), cx=_f(x(mark)), cy=_f(best_y), r="6", class_="ring"))
    said = "; ".join(f"{name}: " + ", ".join(f"{v:.3f}" for v in line) for name, line in series.items())
    best = "" if mark is None else f"; best epoch {mark}"
    return _svg(164, "Learning curve", said + best, [*marks, _text(276, 162, "epoch", "quiet end")])


@dataclass(frozen=True)
class _Scale:
    """Where a value of [low, high] lies between the coordinates start and end; others are cut to the ends."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (min(max(value, self.low), self.high) - self.low) / ((self.high - self.low) or 1.0)
        return self.start + share * (self.end - self.start)


def title_case(name: str) -> str:
    """Returns a metric's name for a heading: `macro_f1` becomes `Macro-F1`."""
    known = {"macro_f1": "Macro-F1", "micro_f1": "Micro-F1", "ece": "Calibration error", "r2": "R²", "rmse": "RMSE",
             "mae": "Mean absolute error", "spearman": "Rank correlation", "quadratic_kappa": "Quadratic kappa",
             "log_loss": "Log loss"}  # fmt: skip
    return known.get(name, name.replace("_", " ").capitalize())


def _ends(row: Estimate) -> tuple[float, ...]:
    return (row.low, row.high, row.value, *(() if row.champion is None else (row.champion,)))


def _room(names: Sequence[str]) -> tuple[float, int]:
    """Where the axis starts right of the names, and how many letters of a name are shown."""
    return (100, 15) if max(map(len, names)) <= 15 else (150, 23)


def _said(row: Estimate, *, sign: str = "") -> str:
    champion = "" if row.champion is None else f", champion {row.champion:{sign}.3f}"
    judged = ", not judged" if row.is_faint else ""
    return f"{row.name} {row.value:{sign}.3f} ({row.low:{sign}.3f} to {row.high:{sign}.3f}){champion}{judged}"


def _forest_row(row: Estimate, x: _Scale, y: float, style: str, letters: int, *, sign: str = "") -> list[Markup]:
    said = tag("title", _said(row, sign=sign))
    ours = style == "ours"
    look = f"{style} faint" if row.is_faint else style
    shape = (
        tag("circle", said, cx=_f(x(row.value)), cy=_f(y), r="4", class_=look) if ours
        else tag("rect", said, x=_f(x(row.value) - 2.5), y=_f(y - 2.5), width="5", height="5", class_=look)
    )  # fmt: skip
    return [
        _text(0, y + 4, _short(row.name, letters), "strong" if ours else "quiet"),
        _line(x(row.low), y, x(row.high), y, look),
        *(_line(x(end), y - 4, x(end), y + 4, style) for end in (row.low, row.high)),
        shape,
        *([] if row.champion is None else [_diamond(x(row.champion), y)]),
        _text(WIDTH - 4, y + 4, f"{row.value:{sign}.3f}", "end strong" if ours else "end quiet"),
    ]


def _diamond(x: float, y: float) -> Markup:
    corners = ((x, y - 5), (x + 5, y), (x, y + 5), (x - 5, y))
    return tag("polygon", points=" ".join(f"{_f(px)},{_f(py)}" for px, py in corners), class_="champion")


def _confusion_cell(
    x: float, y: float, width: float, height: float, count: int, total: int, names: tuple[str, str]
) -> list[Markup]:
    share = count / total if total else 0.0
    said = f"{names[0]} taken for {names[1]}: {count} of {total} ({share:.0%})"
    return _cell(x, y, width, height, share, number(count), said)


def _cell(x: float, y: float, width: float, height: float, /, share: float, words: str, said: str) -> list[Markup]:
    """A cell of a heat map, shaded by a share from 0 to 1."""
    box = {"x": _f(x), "y": _f(y), "width": _f(width), "height": _f(height), "rx": "3"}
    return [
        tag("rect", class_="ground", **box),
        tag("rect", tag("title", said), class_="heat", style=f"--share:{min(max(share, 0.0), 1.0):.3f}", **box),
        _text(x + width / 2, y + height / 2 + 4, words, "middle"),
    ]


def _svg(height: float, name: str, description: str, marks: Sequence[Markup]) -> Markup:
    return tag(
        "svg", tag("title", name), tag("desc", description), *marks, viewBox=f"0 0 {WIDTH} {_f(height)}", role="img",
        aria_label=f"{name}: {description}",
    )  # fmt: skip


def _ticks(low: float, high: float) -> list[float]:
    """Three to six round numbers from low to high."""
    raw = (high - low) / 4 or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * m for m in (1, 2, 2.5, 5, 10) if power * m >= raw * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 10) + 0.0 for i in range(first, last + 1)]


def _x_axis(scale: _Scale, top: float, bottom: float) -> list[Markup]:
    lines = (_line(scale(t), top, scale(t), bottom, "axis") for t in _ticks(scale.low, scale.high))
    return [*lines, *(_text(scale(t), bottom + 15, f"{t:g}", "quiet middle") for t in _ticks(scale.low, scale.high))]


def _y_axis(scale: _Scale, left: float, right: float) -> list[Markup]:
    lines = (_line(left, scale(t), right, scale(t), "axis") for t in _ticks(scale.low, scale.high))
    return [*lines, *(_text(left - 6, scale(t) + 4, f"{t:g}", "quiet end") for t in _ticks(scale.low, scale.high))]


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> Markup:
    return tag("line", x1=_f(x1), y1=_f(y1), x2=_f(x2), y2=_f(y2), class_=style)


def _path(points: Sequence[tuple[float, float]], style: str) -> Markup:
    return tag("polyline", points=" ".join(f"{_f(x)},{_f(y)}" for x, y in points), class_=style)


def _text(x: float, y: float, words: str, style: str, *, transform: str | None = None) -> Markup:
    return tag("text", words, x=_f(x), y=_f(y), class_=style.strip() or None, transform=transform)


def _short(name: str, most: int) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"


def _few(epochs: Sequence[int]) -> Sequence[int]:
    """At most eight of the epochs, evenly apart."""
    return list(epochs)[:: math.ceil(len(epochs) / 8)]


def _apart(ends: Sequence[float]) -> list[float]:
    """Moves two label positions away from each other until both can be read."""
    if len(ends) != 2 or abs(ends[0] - ends[1]) >= 14:
        return list(ends)
    middle, upper = sum(ends) / 2, ends.index(min(ends))
    return [middle - 7 if i == upper else middle + 7 for i in range(2)]


def _f(value: float) -> str:
    return f"{value:.1f}"
