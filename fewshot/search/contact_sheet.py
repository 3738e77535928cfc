"""A contact sheet: each query picture beside its neighbours, as one PNG to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from finetune.errors import InputError
from finetune.report.contact_sheet import (
    CAPTION,
    CELL,
    FAINT,
    GAP,
    HEADING,
    LINE,
    MARGIN,
    TEXT,
    Captioned,
    Lettering,
    blank,
    check_name,
    draw_captioned,
    save_sheet,
)

APART = 40  # pixels between a query and its neighbours, a line in the middle


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet: a path or a PIL image, the name to write below it, and how alike it is to the query."""

    picture: str | Path | Image.Image
    name: str
    similarity: float | None = None


@dataclass(frozen=True)
class Row:
    """A query and its neighbours, in the order to show them."""

    query: Tile
    neighbours: Sequence[Tile]


def write_sheet(path: Path, rows: Sequence[Row]) -> None:
    """A PNG of one line for each row: the query at the left, a line, its neighbours; whole or not at all.

    Pictures and names as `contact_sheet.draw_captioned` has them; a similarity has two digits.

    InputError without rows, for a path that does not end in .png, and for a sheet of more than MAX_PIXELS, or MAX_SIDE
    on a side, before any picture is read.
    """
    check_name(path)
    sheet = _blank(rows)
    draw, lettering = ImageDraw.Draw(sheet), Lettering(TEXT)
    for left, title in ((MARGIN, "Query"), (_left(0), "Neighbours")):
        draw.text((left, MARGIN), title, FAINT, lettering.font)
    for number, row in enumerate(rows):
        top = _top(number)
        for left, tile in ((MARGIN, row.query), *((_left(i), tile) for i, tile in enumerate(row.neighbours))):
            note = "" if tile.similarity is None else f"{tile.similarity:z.2f}"
            draw_captioned(sheet, (left, top), Captioned(tile.picture, tile.name, note), lettering)
        draw.line([(_left(0) - APART // 2, top), (_left(0) - APART // 2, top + CELL)], LINE, 2)
    save_sheet(sheet, path)


def _left(neighbour: int) -> int:
    return MARGIN + CELL + APART + neighbour * (CELL + GAP)


def _top(row: int) -> int:
    return MARGIN + HEADING + row * (CELL + CAPTION + GAP)


def _blank(rows: Sequence[Row]) -> Image.Image:
    if not rows:
        raise InputError("a contact sheet of no queries was asked for; give one at least")
    most = max(len(row.neighbours) for row in rows)
    width, height = _left(max(most, 1)) - GAP + MARGIN, _top(len(rows)) - GAP + MARGIN
    return blank(width, height, f"{len(rows)} queries and up to {most} neighbours")
