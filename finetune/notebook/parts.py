"""Parts of a display: a title, sentences, bars. Styles are inline, because a style sheet would hold for the notebook.

Text has the colour of the page, and everything else is mixed from it or has a colour that fits white and black.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from html import escape

from finetune.terminal import printable

_FRAME = "font:13px/1.5 system-ui,sans-serif;font-variant-numeric:tabular-nums;max-width:34em;overflow-wrap:anywhere"
_TITLE = "font-size:1.15em;font-weight:600"
# Text of lower weight: still 4.5 to 1 on white and on black.
_MUTED = "opacity:.8"
_GRID = (
    "display:grid;grid-template-columns:fit-content(14em) minmax(4em,1fr) max-content;gap:.1em .75em;margin:.4em 0;"
    "align-items:center"
)
_TRACK = "position:relative;height:.65em;border-radius:3px;background:rgba(127,127,127,.22)"
_FULL, _PALE = "#3b82c4", "rgba(127,127,127,.75)"
_MARK = "position:absolute;top:-2px;bottom:-2px;width:0;border-left:2px solid currentColor"


@dataclass(frozen=True)
class Bar:
    """A named share from 0 to 1, with its value in words.

    interval: A whisker, from 0 to 1. mark: A line at this share, such as a threshold. pale: Whether it is one to
    compare with, or below the mark.
    """

    name: str
    share: float
    words: str
    interval: tuple[float, float] | None = None
    mark: float | None = None
    pale: bool = False


def block(*parts: str) -> str:
    """Parts as one display."""
    return f'<div style="{_FRAME}">{"".join(parts)}</div>'


def title(words: str) -> str:
    """A title of plain words."""
    return f'<div style="{_TITLE}">{plain(words)}</div>'


def line(words: str) -> str:
    """A line of plain words."""
    return f"<div>{plain(words)}</div>"


def muted(words: str) -> str:
    """A line of less weight."""
    return f'<div style="{_MUTED}">{plain(words)}</div>'


def bars(rows: Iterable[Bar]) -> str:
    """Bars below each other: name, bar, words."""
    return f'<div style="{_GRID}">{"".join(_bar(row) for row in rows)}</div>'


def names(given: Iterable[str], count: int, most: int) -> str:
    """The first `most` of `count` names, as words."""
    shown = ", ".join(name for name, _ in zip(given, range(most), strict=False))
    return shown + (f" and {count - most:,} more" if count > most else "")


def plain(words: str) -> str:
    """Words without markup, and without signs that hide or reorder what stands beside them."""
    return escape(printable(words))


def _bar(row: Bar) -> str:
    weight = f' style="{_MUTED}"' if row.pale else ""
    track = f'<div aria-hidden="true" style="{_TRACK}">{"".join(_drawn(row))}</div>'
    return f"<div{weight}>{plain(row.name)}</div>{track}<div{weight}>{plain(row.words)}</div>"


def _drawn(row: Bar) -> Iterator[str]:
    colour = _PALE if row.pale else _FULL
    yield f'<div style="width:{_percent(row.share)};height:100%;border-radius:3px;background:{colour}"></div>'
    if row.interval is not None:
        low, high = row.interval
        place = f"position:absolute;top:calc(50% - 1px);height:2px;left:{_percent(low)};width:{_percent(high - low)}"
        yield f'<div style="{place};background:currentColor"></div>'
    if row.mark is not None:
        yield f'<div style="{_MARK};left:{_percent(row.mark)}"></div>'


def _percent(share: float) -> str:
    return f"{100 * min(1.0, max(0.0, share if math.isfinite(share) else 0.0)):.1f}%"
