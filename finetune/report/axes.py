"""The axes of a chart: scales, ticks and grid; and SVG paths and text."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from markupsafe import Markup

# Size of a drawing in SVG units.
WIDTH, HEIGHT = 420, 270


class Axis:
    """Maps a range of numbers to 0 to 1, on a logarithmic scale where `log`."""

    def __init__(self, ends: tuple[float, float], log: bool, *, padded: bool):
        self.log = log
        low, high = ends
        if log and low <= 0:
            raise ValueError("a logarithmic axis needs numbers above 0")
        if not log and high - low <= max(1e-12, 1e-9 * abs(low)):
            room = max(0.5, 0.05 * abs(low))
            low, high = low - room, high + room
        elif low == high:
            low, high = low / 2, high * 2
        elif padded and not log:
            room = 0.06 * (high - low)
            low, high = (0.0 if 0 <= low < 0.3 * high else low - room), high + room
        self.low, self.high = low, high

    def share(self, value: float) -> float:
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)

    def ticks(self) -> list[float]:
        if self.log:
            exponents = range(math.ceil(math.log10(self.low) - 1e-9), math.floor(math.log10(self.high) + 1e-9) + 1)
            every = max(1, len(exponents) // 6)
            if len(exponents) >= 3:
                return [10.0**exponent for exponent in exponents[::every]]
            # Few powers of ten: their multiples by 2 and 5 too.
            around = range(exponents.start - 1, exponents.stop + 1)
            ticks = [factor * 10.0**exponent for exponent in around for factor in (1, 2, 5)]
            return [tick for tick in ticks if self.low <= tick <= self.high] or [self.low, self.high]
        step = _round_step((self.high - self.low) / 5)
        first = math.ceil(self.low / step - 1e-9)
        return [round(tick * step, 12) for tick in range(first, math.floor(self.high / step + 1e-9) + 1)]


class Frame:
    """Maps data to places in the drawing."""

    def __init__(self, x: Axis, y: Axis, *, left: float, bottom: float):
        self.x, self.y = x, y
        self.left, self.right, self.top = left, WIDTH - 12.0, 34.0
        self.floor = HEIGHT - 42.0
        self.height = self.floor + bottom

    def place(self, x: float, y: float) -> tuple[float, float]:
        across, up = self.x.share(x), min(1.0, max(0.0, self.y.share(y)))
        return self.left + across * (self.right - self.left), self.floor - up * (self.floor - self.top)

    def grid(self, percent: bool, x_names: Sequence[str], tilted: bool, *, percent_x: bool = False) -> Iterable[Markup]:
        for tick in self.y.ticks():
            _, y = self.place(self.x.low, tick)
            yield path([(self.left, y), (self.right, y)], "grid")
            yield text(self.left - 6, y + 4, _tick(tick, percent), "end")
        ticks = [(float(position), name) for position, name in enumerate(x_names)]
        for tick, name in ticks or [(tick, _tick(tick, percent_x)) for tick in self.x.ticks()]:
            x, _ = self.place(tick, self.y.high)
            if tilted:
                yield Markup('<text class="end" transform="translate({} {}) rotate(-35)">{}</text>').format(
                    short(x + 4), short(self.floor + 16), shortened(name, 14)
                )
            else:
                yield text(x, self.floor + 16, name, "middle")

    def labels(self, x_label: str, y_label: str) -> Markup:
        return (
            text((self.left + self.right) / 2, self.height - 7, x_label, "middle", "label")
            + Markup("\n")
            + text(2, 11, y_label, "start", "label")
        )


def path(points: Sequence[tuple[float, float] | None], kind: str) -> Markup:
    """A line through places of the drawing, with a gap at each None. kind: its CSS classes."""
    steps, drawing = [], False
    for point in points:
        if point is not None:
            steps.append(f"{'L' if drawing else 'M'}{short(point[0])} {short(point[1])}")
        drawing = point is not None
    return Markup('<path class="{}" d="{}"/>').format(kind, " ".join(steps))


def text(x: float, y: float, words: str, anchor: str, kind: str = "") -> Markup:
    """Text whose start, middle or end (anchor) is at a place. kind: more CSS classes."""
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(
        f"{anchor} {kind}".strip(), short(x), short(y), words
    )


def number(value: float, percent: bool = False) -> str:
    """A number with three significant digits, or as a percentage."""
    if percent:
        return f"{100 * value:.2g}%" if 0 < abs(value) < 0.00995 else f"{100 * value:.1f}%".replace(".0%", "%")
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def shortened(name: str, longest: int) -> str:
    """`name`, cut to `longest` letters."""
    return name if len(name) <= longest else f"{name[: longest - 1]}…"


def _tick(value: float, percent: bool) -> str:
    return f"{100 * value:.4g}%" if percent else number(value)


def short(value: float) -> str:
    """A length rounded to a tenth of a unit."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def _round_step(step: float) -> float:
    """`step` rounded up to 1, 2, 2.5, 5 or 10 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * 0.999)
