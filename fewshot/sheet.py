"""A contact sheet: each query picture beside its neighbours, as one PNG to look at."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from finetune.errors import InputError, UnreadablePicture
from finetune.files import replacing
from finetune.images import read_image

# What a sheet may have: pixels, of 3 bytes in memory, and pixels on a side, which is what viewers open.
MAX_PIXELS = 50_000_000
MAX_SIDE = 32_000

# All lengths are in pixels.
CELL = 192  # side of the square that a picture is fitted into
GAP = 14  # between cells
MARGIN = 28
HEADING = 34
CAPTION = 46  # below a picture, two lines and the air under them
APART = 40  # between a query and its neighbours, a line in the middle
TEXT = 14  # size of the letters

PAPER, MAT, LINE = "#ffffff", "#f2f3f5", "#d9dce1"
INK, FAINT = "#1f2328", "#6b7280"


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

    Pictures are upright and fitted whole into equal cells. A name too long is shortened in the middle, and signs that
    the font lacks are replaced; a similarity has two digits. In place of a picture that cannot be read stands the
    reason.

    InputError without rows, for a path that does not end in .png, and for a sheet of more than MAX_PIXELS, or MAX_SIDE
    on a side, before any picture is read.
    """
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: a contact sheet is a PNG; give it a name that ends in .png")
    sheet = _blank(rows)
    draw, lettering = ImageDraw.Draw(sheet), _Lettering(TEXT)
    for left, title in ((MARGIN, "Query"), (_left(0), "Neighbours")):
        draw.text((left, MARGIN), title, FAINT, lettering.font)
    for number, row in enumerate(rows):
        top = _top(number)
        for left, tile in ((MARGIN, row.query), *((_left(i), tile) for i, tile in enumerate(row.neighbours))):
            sheet.paste(_fitted(tile.picture, lettering), (left, top))
            _caption(draw, tile, left, top + CELL, lettering)
        draw.line([(_left(0) - APART // 2, top), (_left(0) - APART // 2, top + CELL)], LINE, 2)
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG")


def _left(neighbour: int) -> int:
    return MARGIN + CELL + APART + neighbour * (CELL + GAP)


def _top(row: int) -> int:
    return MARGIN + HEADING + row * (CELL + CAPTION + GAP)


def _blank(rows: Sequence[Row]) -> Image.Image:
    if not rows:
        raise InputError("a contact sheet of no queries was asked for; give one at least")
    most = max(len(row.neighbours) for row in rows)
    width, height = _left(max(most, 1)) - GAP + MARGIN, _top(len(rows)) - GAP + MARGIN
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InputError(
            f"a contact sheet of {len(rows)} queries and up to {most} neighbours would be {width}x{height} pixels, "
            f"over the bound of {MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE} on a side; ask for fewer of them"
        )
    return Image.new("RGB", (width, height), PAPER)


def _fitted(picture: str | Path | Image.Image, lettering: _Lettering) -> Image.Image:
    """The picture, whole, in the middle of a square cell; or why there is none."""
    cell = Image.new("RGB", (CELL, CELL), MAT)
    try:
        image = read_image(picture, at_least=CELL)
    except UnreadablePicture as error:
        lines = textwrap.wrap(lettering.drawable(error.reason), width=22, max_lines=6, placeholder=" …")
        text = "\n".join(["cannot be read:", *lines])
        centre = (CELL / 2, CELL / 2)
        ImageDraw.Draw(cell).multiline_text(centre, text, FAINT, lettering.font, anchor="mm", align="center")
        return cell
    scale = CELL / max(image.size)
    # Not ImageOps.contain: a panorama thinner than half a pixel would make it fail.
    width, height = (max(1, round(side * scale)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.LANCZOS)
    cell.paste(small, ((CELL - width) // 2, (CELL - height) // 2))
    return cell


def _caption(draw: ImageDraw.ImageDraw, tile: Tile, left: int, top: int, lettering: _Lettering) -> None:
    draw.text((left, top + 6), lettering.shortened(tile.name, CELL - 6), INK, lettering.font)
    if tile.similarity is not None:
        draw.text((left, top + 6 + TEXT + 5), f"{tile.similarity:z.2f}", FAINT, lettering.font)


class _Lettering:
    """A font that is there, and text such that it can write it: DejaVu Sans, or else the few signs of Pillow's own."""

    def __init__(self, size: int) -> None:
        try:
            self.font: ImageFont.FreeTypeFont | ImageFont.ImageFont = ImageFont.truetype("DejaVuSans.ttf", size)
        except OSError:  # not on this machine
            self.font = ImageFont.load_default(size)
        self._missing = self._shape("\uffff")  # no character, so that any font shows its sign for what it lacks

    def drawable(self, text: str) -> str:
        """`text` in signs that the font has: without accents where it lacks these, and else a question mark. What a
        file name of another encoding leaves is written as a backslash escape."""
        plain = unicodedata.normalize("NFC", text.encode(errors="backslashreplace").decode())
        return "".join(self._drawable(sign) for sign in plain)

    def shortened(self, text: str, width: int) -> str:
        """`text` as `drawable` makes it, its middle left out as far as it is wider than so many pixels."""
        text = self.drawable(text)
        if self.font.getlength(text) <= width:
            return text
        kept = min(len(text), width)  # of a path of thousands of letters, no more could ever fit
        while kept and self.font.getlength(_without_middle(text, kept)) > width:
            kept -= 1
        return _without_middle(text, kept)

    def _drawable(self, sign: str) -> str:
        bare = unicodedata.normalize("NFKD", sign)[0]
        return next((each for each in (sign, bare) if self._has(each)), "?")

    def _has(self, sign: str) -> bool:
        return sign == " " or (sign.isprintable() and self._shape(sign) != self._missing)

    def _shape(self, sign: str) -> tuple[tuple[int, int], bytes]:
        mask = self.font.getmask(sign)
        return mask.size, bytes(mask)


def _without_middle(text: str, kept: int) -> str:
    """The end, which tells pictures of one folder apart, is not shorter than the beginning."""
    return text[: kept // 2] + "…" + text[len(text) - (kept + 1) // 2 :]
