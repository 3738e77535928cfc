"""A contact sheet: one PNG with pictures in equal cells and text below each."""

from __future__ import annotations

import textwrap
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from finetune.data.images import read_image
from finetune.errors import InputError, UnreadablePicture
from finetune.files.folders import check_writable
from finetune.files.writing import replacing

# Bounds of a sheet: its pixels, 3 bytes each in memory; and its longest side, which viewers limit.
MAX_PIXELS = 50_000_000
MAX_SIDE = 32_000

# All lengths are in pixels.
CELL = 192  # side of the square that a picture is fitted into
GAP = 14  # between cells
MARGIN = 28
HEADING = 34
CAPTION = 46  # below a picture, two lines and the air under them
TEXT = 14  # size of the letters

PAPER, MAT, LINE = "#ffffff", "#f2f3f5", "#d9dce1"
INK, FAINT = "#1f2328", "#6b7280"

# Pictures in a line of a sheet of sections.
COLUMNS = 6


@dataclass(frozen=True)
class Captioned:
    """One picture of a sheet: a path or a PIL image, the name to write below it, and a line under that."""

    picture: str | Path | Image.Image
    name: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """Pictures under one title, in the order to show them."""

    title: str
    pictures: Sequence[Captioned]


def write_sections(path: Path, sections: Sequence[Section]) -> None:
    """Write a PNG of the sections, one below the other, with COLUMNS pictures in a row.

    Raises:
        InputError: Without sections, for a path that does not end in .png, and for a sheet of more than MAX_PIXELS or
            MAX_SIDE; before any picture is read.
    """
    check_name(path)
    if not sections:
        raise InputError("a contact sheet needs at least one section")
    width = 2 * MARGIN + COLUMNS * (CELL + GAP) - GAP
    sheet = blank(width, 2 * MARGIN - GAP + sum(_height(section) for section in sections), f"{len(sections)} sections")
    draw, lettering, top = ImageDraw.Draw(sheet), Lettering(TEXT), MARGIN
    for section in sections:
        title = lettering.shortened(section.title, width - 2 * MARGIN)
        draw.text((MARGIN, top), title, INK, lettering.font)
        draw.line([(MARGIN, top + HEADING - 10), (width - MARGIN, top + HEADING - 10)], LINE, 1)
        for number, captioned in enumerate(section.pictures):
            row, column = divmod(number, COLUMNS)
            corner = MARGIN + column * (CELL + GAP), top + HEADING + row * (CELL + CAPTION)
            draw_captioned(sheet, corner, captioned, lettering)
        top += _height(section)
    save_sheet(sheet, path)


def _height(section: Section) -> int:
    return HEADING + -(-len(section.pictures) // COLUMNS) * (CELL + CAPTION) + GAP


def check_name(path: Path) -> None:
    """InputError for a path that does not end in .png."""
    if path.suffix.lower() != ".png":
        raise InputError(f"{path}: a contact sheet is a PNG; give it a name that ends in .png")


def check_place(path: Path, pictures: Path) -> None:
    """InputError, before an hour of reading, where no sheet can be written to `path`, or it lies in `pictures`."""
    check_name(path)
    check_writable(path, "--sheet", is_folder=False, untouched=[pictures])


def blank(width: int, height: int, what: str) -> Image.Image:
    """An empty sheet. InputError, which names `what` it shows, for one beyond the bounds."""
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise InputError(
            f"a contact sheet of {what} would be {width}x{height} pixels, "
            f"over the bound of {MAX_PIXELS // 1_000_000} megapixels and {MAX_SIDE} on a side; ask for fewer of them"
        )
    return Image.new("RGB", (width, height), PAPER)


def save_sheet(sheet: Image.Image, path: Path) -> None:
    """Write the sheet as a PNG, completely or not at all."""
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG")


def draw_captioned(sheet: Image.Image, corner: tuple[int, int], captioned: Captioned, lettering: Lettering) -> None:
    """Draw a picture with its text; `corner` is the upper left one.

    The picture is turned upright and fits into its cell completely. A name that is too long is shortened in the middle,
    and characters that the font lacks are replaced. A picture that cannot be read is replaced by the reason.
    """
    left, top = corner
    draw = ImageDraw.Draw(sheet)
    sheet.paste(fitted(captioned.picture, lettering), corner)
    draw.text((left, top + CELL + 6), lettering.shortened(captioned.name, CELL - 6), INK, lettering.font)
    if captioned.note:
        below = top + CELL + 6 + TEXT + 5
        draw.text((left, below), lettering.shortened(captioned.note, CELL - 6), FAINT, lettering.font)


def fitted(picture: str | Path | Image.Image, lettering: Lettering) -> Image.Image:
    """The complete picture in the middle of a square cell, or the reason why it cannot be read."""
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


class Lettering:
    """A font, and text in the characters that it has. DejaVu Sans where it is installed, else the font of Pillow."""

    def __init__(self, size: int) -> None:
        try:
            self.font: ImageFont.FreeTypeFont | ImageFont.ImageFont = ImageFont.truetype("DejaVuSans.ttf", size)
        except OSError:  # not on this machine
            self.font = ImageFont.load_default(size)
        self._missing = self._shape("\uffff")  # no character: fonts draw their sign for a missing one

    def drawable(self, text: str) -> str:
        """`text` in characters of the font: without accents where it lacks these, otherwise a question mark. Bytes of a
        file name in another encoding become backslash escapes."""
        plain = unicodedata.normalize("NFC", text.encode(errors="backslashreplace").decode())
        return "".join(self._drawable(sign) for sign in plain)

    def shortened(self, text: str, width: int) -> str:
        """`text` in characters of the font, shortened in the middle to `width` pixels."""
        text = self.drawable(text)
        if self.font.getlength(text) <= width:
            return text
        kept = min(len(text), width)  # a letter is at least a pixel wide
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
    """Keep `kept` letters, of which at least half are at the end: there the names of a folder differ."""
    return text[: kept // 2] + "…" + text[len(text) - (kept + 1) // 2 :]
