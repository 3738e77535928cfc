"""The confusion matrix of a report, the pictures behind its cells, and galleries of pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice, zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from finetune.classifier.classifier import Classifier
from finetune.classifier.explain import HEAT_MAPS, overlays
from finetune.config import MAX_PIXELS
from finetune.data.images import read_image
from finetune.data.loader import cores
from finetune.errors import UnreadablePicture
from finetune.extras import installed, needs
from finetune.report.page import thumbnail
from finetune.report.results import Answer

# More classes than this are ordered so that confused classes are neighbours.
MANY = 30
# Of more classes than this, only those with the most mistakes are shown.
LARGEST = 120


# Most characters of all thumbnails of a page. Most pictures that it reads: PICTURES, or one in _SHARE of many.
BYTES = 2_500_000
PICTURES, _SHARE = 160, 20
# Longest side of a thumbnail, in pixels.
SIDE = 128
GALLERY = 12
# Pictures behind a cell that are shown, and further ones that are named.
_OF_CELL, NAMED = 12, 12


@dataclass(frozen=True)
class Cell:
    """Pictures of one true class (row) with one predicted class (column), the most confident first.

    share: of the pictures of the true class.
    """

    row: int
    column: int
    answers: tuple[Answer, ...]
    share: float

    @property
    def name(self) -> str:
        return f"cell-{self.row}-{self.column}"

    @property
    def right(self) -> bool:
        return self.row == self.column


@dataclass(frozen=True)
class Confusion:
    """A confusion matrix. rows: cells, None where there is no picture. clustered: whether confused classes are
    neighbours. left_out: number of classes that are not shown."""

    classes: tuple[str, ...]
    rows: tuple[tuple[Cell | None, ...], ...]
    clustered: bool
    left_out: int

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row if cell is not None]

    @property
    def most_confused(self) -> list[Cell]:
        """Cells of wrong predictions, the largest first."""
        return sorted((cell for cell in self.cells if not cell.right), key=lambda cell: -len(cell.answers))


def confusion_of(answers: Sequence[Answer], classes: Sequence[str]) -> Confusion:
    """The matrix of `answers`. Up to MANY classes keep their order; beyond, confused classes are neighbours."""
    behind: defaultdict[tuple[str, str], list[Answer]] = defaultdict(list)
    for answer in answers:
        behind[answer.label, answer.predicted].append(answer)
    position = {name: index for index, name in enumerate(classes)}
    counts = np.zeros((len(classes), len(classes)))
    for (label, predicted), group in behind.items():
        counts[position[label], position[predicted]] = len(group)
    clustered = len(classes) > MANY
    kept = np.arange(len(classes))
    if len(classes) > LARGEST:
        mistakes = counts.sum(0) + counts.sum(1) - 2 * counts.diagonal()
        kept = np.sort(np.argsort(-mistakes, kind="stable")[:LARGEST])
    order = kept[by_confusion(counts[np.ix_(kept, kept)])] if clustered else kept
    names = tuple(classes[index] for index in order)
    rows = []
    for row, label in enumerate(names):
        support = counts[position[label]].sum()
        cells: list[Cell | None] = []
        for column, predicted in enumerate(names):
            surest = sorted(behind.get((label, predicted), ()), key=lambda answer: -answer.probability)
            cells.append(Cell(row, column, tuple(surest), len(surest) / support) if surest else None)
        rows.append(tuple(cells))
    return Confusion(names, tuple(rows), clustered, len(classes) - len(names))


def by_confusion(counts: NDArray[np.float64]) -> list[int]:
    """An order of the classes of a confusion matrix (classes, classes) in which confused ones are neighbours.

    Average linkage on how often two classes are confused, with optimal leaf order.

    Source: Bar-Joseph et al. (2001).
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    distance = 1 - np.clip((shares + shares.T) / 2, 0, 1)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [int(leaf) for leaf in leaves_list(tree)]


@dataclass(frozen=True)
class ErrorGallery:
    """Pictures under a heading, with a sentence that describes them. explained: with heat maps."""

    name: str
    sentence: str
    answers: tuple[Answer, ...]
    explained: bool = False


def galleries(answers: Sequence[Answer], *, explained: bool = False) -> tuple[ErrorGallery, ...]:
    """Up to GALLERY pictures that are confidently wrong, least certain, and confidently right.

    explained: Whether heat maps are wanted; where they cannot be had, the page says what they need.
    """
    about_heat_maps = ""
    if explained and not installed("explain"):
        explained, about_heat_maps = False, f" {needs('explain', HEAT_MAPS).capitalize()}."
    elif explained:
        about_heat_maps = " The heat map shows which part of the picture speaks for the wrong class."
    surest = sorted(answers, key=lambda answer: -answer.probability)
    found = (
        ErrorGallery(
            "Confidently wrong",
            "Wrong predictions with the highest probability. Typical causes are a wrong label, several things in one "
            "picture, or a detail that the model does not use." + about_heat_maps,
            tuple(islice((answer for answer in surest if not answer.right), GALLERY)),
            explained,
        ),
        ErrorGallery(
            "Least certain", "Predictions with the lowest probability, correct or wrong.", tuple(surest[::-1][:GALLERY])
        ),
        ErrorGallery(
            "Confidently right",
            "Correct predictions with the highest probability.",
            tuple(islice((answer for answer in surest if answer.right), GALLERY)),
        ),
    )
    return tuple(gallery for gallery in found if gallery.answers)


class Album:
    """Thumbnails as data URIs, by path below `root`. gone: paths that can no longer be read."""

    def __init__(self, root: Path):
        self.root = root
        self.gone: list[str] = []
        self.heat_maps: dict[str, str] = {}
        self._pictures: dict[str, str] = {}

    def get(self, path: str) -> str | None:
        return self._pictures.get(path)

    def fill(self, paths: Iterable[str], *, pictures: int, characters: int) -> None:
        """Read thumbnails of `paths`, in their order, up to so many pictures and characters in all."""
        wanted = list(islice(dict.fromkeys(paths), pictures))
        spent = 0
        with ThreadPoolExecutor(cores()) as readers:
            for path, small in zip(wanted, readers.map(self._read, wanted), strict=True):
                if small is None:
                    self.gone.append(path)
                elif spent + len(small) <= characters:
                    self._pictures[path] = small
                    spent += len(small)

    def add_heat_maps(self, paths: Sequence[str], classifier: Classifier) -> None:
        """Add heat maps of the predicted classes of those pictures that are in the album."""
        there = {self.root / path: path for path in paths if path in self._pictures}
        heat_maps = overlays(classifier, list(there))
        self.heat_maps |= {there[path]: thumbnail(heat_map, SIDE) for path, heat_map in heat_maps.items()}

    def _read(self, path: str) -> str | None:
        try:
            return thumbnail(read_image(self.root / path, at_least=SIDE, max_pixels=MAX_PIXELS), SIDE)
        except UnreadablePicture:
            return None


def shown_in(cell: Cell, album: Album) -> tuple[list[Answer], list[Answer], int]:
    """The pictures of a cell that are shown, those that are named, and the number of the rest."""
    seen = [answer for answer in cell.answers[:_OF_CELL] if album.get(answer.path)]
    rest = [answer for answer in cell.answers if answer not in seen] if len(seen) < len(cell.answers) else []
    return seen, rest[:NAMED], max(0, len(rest) - NAMED)


def open_album(root: Path, galleries: Sequence[ErrorGallery], cells: Sequence[Cell], answers: int) -> Album:
    """Thumbnails of the galleries, and of the cells as far as there is room: wrong predictions first, and the first
    picture of every cell before the second of any."""
    album = Album(root)
    wanted = [answer.path for gallery in galleries for answer in gallery.answers]
    for right in (False, True):
        columns = [[answer.path for answer in cell.answers[:_OF_CELL]] for cell in cells if cell.right == right]
        wanted += [path for row in zip_longest(*columns) for path in row if path is not None]
    # A picture may stand in a cell and in a gallery or two; most stand once.
    album.fill(wanted, pictures=max(PICTURES, answers // _SHARE), characters=BYTES)
    return album
