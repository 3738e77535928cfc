"""The pictures of a report: which are shown, and their thumbnails within a bound of bytes and of time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

from PIL import Image

from finetune.config import MAX_PIXELS
from finetune.data.images import read_image
from finetune.data.loader import cores
from finetune.errors import UnreadablePicture
from finetune.page import thumbnail
from finetune.report_confusion import Cell
from finetune.report_findings import Answer

# What all thumbnails of a page may take, in characters; and how many pictures it may read, one in _SHARE of many.
BYTES = 2_500_000
PICTURES, _SHARE = 160, 20
# Pixels on the longest side.
SIDE = 128
GALLERY = 12
# Of the pictures behind a cell, so many are shown and so many more named.
_OF_CELL, NAMED = 12, 12

Explain = Callable[[Sequence[Path]], Mapping[Path, Image.Image]]


@dataclass(frozen=True)
class Gallery:
    """Pictures under a heading, with a sentence that says which they are. explained: heat maps stand beside them."""

    name: str
    sentence: str
    answers: tuple[Answer, ...]
    explained: bool = False


def galleries(answers: Sequence[Answer], *, explained: bool = False) -> tuple[Gallery, ...]:
    """Confidently wrong, least certain, confidently right: GALLERY pictures of each, where there are any."""
    surest = sorted(answers, key=lambda answer: -answer.probability)
    found = (
        Gallery(
            "Confidently wrong",
            "Wrong predictions with the highest probability. Typical causes are a wrong label, several things in one "
            "picture, or a detail that the model does not use."
            + (" The heat map shows which part of the picture speaks for the wrong class." if explained else ""),
            tuple(islice((answer for answer in surest if not answer.right), GALLERY)),
            explained,
        ),
        Gallery(
            "Least certain", "Predictions with the lowest probability, correct or wrong.", tuple(surest[::-1][:GALLERY])
        ),
        Gallery(
            "Confidently right",
            "Correct predictions with the highest probability.",
            tuple(islice((answer for answer in surest if answer.right), GALLERY)),
        ),
    )
    return tuple(gallery for gallery in found if gallery.answers)


class Album:
    """Thumbnails as data URIs, by path as listed; what is not in it was not asked for, or is in `gone` or past the
    bounds."""

    def __init__(self, root: Path):
        self.root = root
        self.gone: list[str] = []
        self.heat_maps: dict[str, str] = {}
        self._pictures: dict[str, str] = {}

    def get(self, path: str) -> str | None:
        return self._pictures.get(path)

    def fill(self, paths: Iterable[str], *, pictures: int, characters: int) -> None:
        """Read `paths`, the most wanted first, until one of the bounds is met; a path counts as often as it comes."""
        wanted = list(islice(dict.fromkeys(paths), pictures))
        spent = 0
        with ThreadPoolExecutor(cores()) as readers:
            for path, small in zip(wanted, readers.map(self._read, wanted), strict=True):
                if small is None:
                    self.gone.append(path)
                elif spent + len(small) <= characters:
                    self._pictures[path] = small
                    spent += len(small)

    def explain(self, paths: Sequence[str], explain: Explain) -> None:
        """Keep what `explain` makes of these pictures, those that are there."""
        there = {self.root / path: path for path in paths if path in self._pictures}
        self.heat_maps |= {there[path]: thumbnail(heat, SIDE) for path, heat in explain(list(there)).items()}

    def _read(self, path: str) -> str | None:
        try:
            return thumbnail(read_image(self.root / path, at_least=SIDE, max_pixels=MAX_PIXELS), SIDE)
        except UnreadablePicture:
            return None


def shown_in(cell: Cell, album: Album) -> tuple[list[Answer], list[Answer], int]:
    """What stands behind a cell: pictures to see, pictures to name, and how many more there are."""
    seen = [answer for answer in cell.answers[:_OF_CELL] if album.get(answer.path)]
    rest = [answer for answer in cell.answers if answer not in seen] if len(seen) < len(cell.answers) else []
    return seen, rest[:NAMED], max(0, len(rest) - NAMED)


def open_album(root: Path, galleries: Sequence[Gallery], cells: Sequence[Cell], answers: int) -> Album:
    """An album with the galleries' pictures and what room is left for of the cells': wrong ones first, each cell's
    surest before any cell's second."""
    album = Album(root)
    wanted = [answer.path for gallery in galleries for answer in gallery.answers]
    for right in (False, True):
        columns = [[answer.path for answer in cell.answers[:_OF_CELL]] for cell in cells if cell.right == right]
        wanted += [path for row in zip_longest(*columns) for path in row if path is not None]
    # A picture may stand in a cell and in a gallery or two; most stand once.
    album.fill(wanted, pictures=max(PICTURES, answers // _SHARE), characters=BYTES)
    return album
