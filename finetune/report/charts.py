"""Charts as inline SVG: lines, bars, points. Colours and fonts come from the style of the page.

A chart is an HTML figure: a drawing 420 units wide, whose text is readable on a phone, and a legend below it. Screen
readers get the title and the numbers.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from finetune.report.axes import WIDTH, Axis, Frame, number, path, short, shortened, text

# Number of line colours in the style of the page.
COLOURS = 8
# Lines of at most this many points get a dot at each.
_DOTS = 25
# Screen readers get all numbers of a line up to this many, and of longer ones the ends and the extremes.
_TOLD = 16


@dataclass(frozen=True)
class Line:
    """A named line through the points (x[i], y[i]), with a gap where y is not finite."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    dashed: bool = False


@dataclass(frozen=True)
class Mark:
    """A labelled vertical line at a place on the x axis."""

    x: float
    label: str


@dataclass(frozen=True)
class Band:
    """Intervals low[i] to high[i] at x[i], in the colour of the line called `name`: bars, or one filled area."""

    name: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]
    filled: bool = False


@dataclass(frozen=True)
class Bar:
    """A named value, with its interval where it has one. highlighted: the bar that the others are compared with."""

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    highlighted: bool = False


@dataclass(frozen=True)
class Point:
    """A place on a map. group: sets the colour. thumbnail: data URI, shown while the pointer is on the point."""

    x: float
    y: float
    label: str
    group: str
    thumbnail: str | None = None


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    percent: bool = False,
    percent_x: bool = False,
    x_names: Sequence[str] = (),
    marks: Sequence[Mark] = (),
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
    bands: Sequence[Band] = (),
    dots: bool = True,
) -> Markup:
    """Draw lines on one pair of axes.

    Args:
        lines: The lines, in the order of their colours.
        percent, percent_x: y or x is a share in [0, 1], shown in per cent.
        x_names: Labels of x = 0, 1, and so on.
        marks: Labelled places on the x axis.
        x_range, y_range: Ends of the axes, by default those of the data.
        diagonal: Draw the line x = y.
        bands: Intervals of lines.
        dots: Draw the points of lines that have few.

    Raises:
        ValueError: If there is no point to draw.
    """
    drawn = {line.name: [(x, y) for x, y in zip(line.x, line.y, strict=True) if _drawable(x, y)] for line in lines}
    points = [point for line in drawn.values() for point in line]
    if not points:
        raise ValueError("no line has a point to draw")
    ends = [(x, y) for band in bands for x, *both in zip(band.x, band.low, band.high, strict=True) for y in both]
    xs, ys = zip(*points, *(end for end in ends if _drawable(*end)), strict=True)
    tilted = sum(map(len, x_names)) > 44
    upright = Axis(y_range or (min(ys), max(ys)), log_y, padded=y_range is None)
    if percent and not log_y:  # no room for shares above 1 or below 0, which do not exist
        upright.low, upright.high = max(upright.low, min(0.0, *ys)), min(upright.high, max(1.0, *ys))
    frame = Frame(
        Axis(x_range or (min(xs), max(xs)), log_x, padded=bool(x_names)),
        upright,
        left=54,
        bottom=74 if tilted else 42,
    )
    parts = [*frame.grid(percent, x_names, tilted, percent_x=percent_x), frame.labels(x_label, y_label)]
    if diagonal:
        low = max(frame.x.low, frame.y.low)
        high = min(frame.x.high, frame.y.high)
        parts.append(path([frame.place(low, low), frame.place(high, high)], "diagonal"))
    colour = {line.name: f"c{position % COLOURS + 1}" for position, line in enumerate(lines)}
    for band in bands:
        parts.append(_band(band, frame, colour.get(band.name, "c1")))
    for line in lines:
        placed = [frame.place(x, y) if _drawable(x, y) else None for x, y in zip(line.x, line.y, strict=True)]
        parts.append(path(placed, f"line {colour[line.name]}{' dashed' if line.dashed else ''}"))
        if dots and len(drawn[line.name]) <= _DOTS:
            parts += [_dot(*where, colour[line.name]) for where in placed if where is not None]
    parts += _marks(marks, frame)
    told = "; ".join(f"{line.name}: {_told(drawn[line.name], percent, x_names, percent_x)}" for line in lines)
    legend = [(line.name, colour[line.name], line.dashed) for line in lines] if len(lines) > 1 else []
    return _figure(title, f"{y_label} over {x_label}. {told}.", parts, frame.height, legend)


def bar_chart(bars: Sequence[Bar], *, title: str, value_label: str, percent: bool = False) -> Markup:
    """Draw horizontal bars, each with its name and its value. Values must be at least 0."""
    row, left, right = 40, 2, 62
    longest = max([bar.high if bar.high is not None else bar.value for bar in bars], default=0) or 1
    length = (WIDTH - left - right) / (1 if percent and longest <= 1 else longest)
    parts: list[Markup] = []
    for position, bar in enumerate(bars):
        y = 20 + position * row
        kind = "bar highlighted" if bar.highlighted else "bar"
        parts.append(text(left, y - 6, shortened(bar.name, 48), "start"))
        parts.append(
            Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}" rx="2"/>').format(
                kind, left, y, short(max(0.5, bar.value * length)), 14
            )
        )
        edge = bar.value
        if bar.low is not None and bar.high is not None:
            middle = y + 7
            parts.append(path([(left + bar.low * length, middle), (left + bar.high * length, middle)], "whisker"))
            edge = max(edge, bar.high)
        parts.append(text(left + edge * length + 6, y + 12, number(bar.value, percent), "start", "value"))
    told = "; ".join(f"{bar.name}: {number(bar.value, percent)}" for bar in bars)
    return _figure(title, f"{value_label}. {told}.", parts, 2 + row * len(bars), [])


def scatter(points: Sequence[Point], *, title: str, groups: Sequence[str] = ()) -> Markup:
    """Draw a map of points without axes. The pointer or the arrow keys show the label and picture of a point.

    groups: in the order of their colours, by default in order of appearance; the legend lists up to 12. ValueError
    without a point.
    """
    if not points:
        raise ValueError("there is no point to draw")
    names = list(groups) or list(dict.fromkeys(point.group for point in points))
    colour = {name: f"c{position % COLOURS + 1}" for position, name in enumerate(names)}
    side = WIDTH - 20
    left, top = min(point.x for point in points), min(point.y for point in points)
    extent = max(max(point.x for point in points) - left, max(point.y for point in points) - top) or 1.0
    parts = []
    for position, point in enumerate(points):
        parts.append(
            Markup(
                '<circle class="point {}" cx="{}" cy="{}" r="4" role="img" aria-label="{}" tabindex="{}"{}>'
                "<title>{}</title></circle>"
            ).format(
                colour[point.group],
                short(10 + (point.x - left) / extent * side),
                short(10 + side - (point.y - top) / extent * side),
                point.label,
                "-1" if position else "0",
                Markup(' data-picture="{}"').format(point.thumbnail) if point.thumbnail else "",
                point.label,
            )
        )
    legend = [(name, colour[name], False) for name in names] if 1 < len(names) <= 12 else []
    drawing = Markup(
        '<svg class="map" viewBox="0 0 {} {}" role="group" aria-label="{}">\n{}\n</svg>'
        '<div class="tip" hidden><img alt=""><span></span></div>'
    ).format(WIDTH, side + 20, f"{title}, {len(points)} points: arrow keys walk from one to the next", _joined(parts))
    return _wrapped(title, drawing, legend)


def _marks(marks: Sequence[Mark], frame: Frame) -> Iterable[Markup]:
    for position, mark in enumerate(marks):
        x, top = frame.place(mark.x, frame.y.high)
        yield path([(x, top - 14), (x, frame.floor)], "mark")
        # On the side with room; the first above the drawing, others under each other.
        anchor, shift = ("end", -5) if x > (frame.left + frame.right) / 2 else ("start", 5)
        yield text(x + shift, top - 5 + 17 * position, mark.label, anchor, "marked")


def _band(band: Band, frame: Frame, colour: str) -> Markup:
    rows = [
        (x, low, high)
        for x, low, high in zip(band.x, band.low, band.high, strict=True)
        if _drawable(x, low) and _drawable(x, high)
    ]
    if band.filled:
        around = [frame.place(x, low) for x, low, _ in rows] + [frame.place(x, high) for x, _, high in reversed(rows)]
        return path(around, f"area {colour}")
    return _joined([path([frame.place(x, low), frame.place(x, high)], f"whisker {colour}") for x, low, high in rows])


def _dot(x: float, y: float, colour: str) -> Markup:
    return Markup('<circle class="dot {}" cx="{}" cy="{}" r="3"/>').format(colour, short(x), short(y))


def _figure(
    title: str, description: str, parts: Sequence[Markup], height: float, legend: Sequence[tuple[str, str, bool]]
) -> Markup:
    unique = zlib.crc32(f"{title}{description}{parts}".encode(errors="replace"))  # the same page whenever it is made
    drawing = Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-labelledby="chart{}-title chart{}-text">\n'
        '<title id="chart{}-title">{}</title>\n<desc id="chart{}-text">{}</desc>\n{}\n</svg>'
    ).format(WIDTH, short(height), unique, unique, unique, title, unique, description, _joined(parts))
    return _wrapped(title, drawing, legend)


def _wrapped(title: str, drawing: Markup, legend: Sequence[tuple[str, str, bool]]) -> Markup:
    keys = _joined(
        [
            Markup('<li><i class="key {}{}"></i>{}</li>').format(colour, " dashed" if dashed else "", name)
            for name, colour, dashed in legend
        ]
    )
    listed = Markup('<ul class="legend">{}</ul>').format(keys) if legend else Markup("")
    return Markup('<figure class="chart">\n<figcaption>{}</figcaption>\n{}\n{}</figure>').format(title, drawing, listed)


def _told(points: Sequence[tuple[float, float]], percent: bool, x_names: Sequence[str], percent_x: bool = False) -> str:
    name: Callable[[float], str] = (lambda x: x_names[round(x)]) if x_names else (lambda x: number(x, percent_x))
    told = list(points)
    if not told:
        return "nothing"
    if len(told) > _TOLD:
        by_value = sorted(told, key=lambda point: point[1])
        told = sorted({told[0], by_value[0], by_value[-1], told[-1]})
    return ", ".join(f"{number(y, percent)} at {name(x)}" for x, y in told)


def _drawable(x: float, y: float) -> bool:
    return math.isfinite(x) and math.isfinite(y)


def _joined(parts: Iterable[Markup]) -> Markup:
    return Markup("\n").join(escape(part) for part in parts)
