"""Strokes brought to the width of Omniglot's: a sign in felt pen is the same sign as in pencil."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ink = NDArray[np.bool_]

# Pixels on a page of 105 x 105: Omniglot's strokes are some 3 wide, and those up to this are left as they are.
WIDEST, USUAL = 6, 3


def usual_width(ink: Ink) -> Ink:
    """(h, w), True for ink, with strokes that are wider than WIDEST made USUAL wide around their middle lines."""
    if stroke_width(ink) <= WIDEST:
        return ink
    return _spread(thinned(ink), USUAL // 2)


def stroke_width(ink: Ink) -> float:
    """Mean width of the strokes, in pixels: a piece of stroke has two rims, however wide it is; 0 without ink."""
    inner = _shifted(ink)
    rim = ink & ~(inner[0] & inner[2] & inner[4] & inner[6])
    return 2 * float(ink.sum()) / max(1, int(rim.sum()))


def thinned(ink: Ink) -> Ink:
    """The middle lines of strokes, one pixel wide, connected as the strokes are (Zhang & Suen 1984)."""
    now = ink.copy()
    while True:
        before = int(now.sum())
        for first, second in (((0, 2, 4), (2, 4, 6)), ((0, 2, 6), (0, 4, 6))):
            around = _shifted(now)
            inked = sum(side.astype(np.int8) for side in around)
            # From paper to ink on the way around: once where the pixel is at an end or on a rim.
            changes = sum((~around[i] & around[(i + 1) % 8]).astype(np.int8) for i in range(8))
            open_sides = ~np.logical_and.reduce([around[i] for i in first]) & ~np.logical_and.reduce(
                [around[i] for i in second]
            )
            now = now & ~((inked >= 2) & (inked <= 6) & (changes == 1) & open_sides)
        if int(now.sum()) == before:
            return now


def _shifted(ink: Ink) -> list[Ink]:
    """What is above each pixel, above to the right, and so on clockwise; paper beyond the page."""
    padded, (height, width) = np.pad(ink, 1), ink.shape
    steps = ((-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1))
    return [padded[1 + y : 1 + y + height, 1 + x : 1 + x + width] for y, x in steps]


def _spread(ink: Ink, radius: int) -> Ink:
    """Ink where any is at most `radius` pixels away, diagonals included."""
    for _ in range(radius):
        ink = np.logical_or.reduce([ink, *_shifted(ink)])
    return ink
