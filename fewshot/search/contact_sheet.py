"""A contact sheet: one PNG with each query picture beside its neighbours."""

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

APART = 40  # pixels between a query and its neighbours; a line is in the middle


@dataclass(frozen=True)
class Tile:
    """One picture of a sheet: a path or an image, the name below it, and its similarity to the query."""

    picture: str | Path | Image.Image
    name: str
    similarity: float | None = None


@dataclass(frozen=True)
class Row:
    """A query and its neighbours, in the order of display."""

    query: Tile
    neighbours: Sequence[Tile]


def write_sheet(path: Path, rows: Sequence[Row]) -> None:
    """Write a PNG with one line for each row: the query on the left, its neighbours on the right.

    Pictures and names are drawn as by `contact_sheet.draw_captioned`; similarities have two digits.

    Raises:
        InputError: Before any picture is read, without rows, for a path that does not end in .png, and for a sheet of
            more than MAX_PIXELS, or MAX_SIDE on a side.
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
        raise InputError("a contact sheet needs at least one query")
    most = max(len(row.neighbours) for row in rows)
    width, height = _left(max(most, 1)) - GAP + MARGIN, _top(len(rows)) - GAP + MARGIN
    return blank(width, height, f"{len(rows)} queries and up to {most} neighbours")
