"""The confusion matrix of a report: its classes in an order that shows what is confused, its cells with pictures."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.report_findings import Answer

# More classes than this are laid so that those which are taken for each other stand together.
MANY = 30
# Of more classes than this, only so many are shown: those with most mistakes.
LARGEST = 120


@dataclass(frozen=True)
class Cell:
    """Pictures of the class in row `row` that were predicted as the class in column `column`, the surest first.

    share: of the pictures of that class.
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
    """classes: in the order of rows and columns. rows: the cells of each, None where there is no picture.

    clustered: whether the order is by confusion. left_out: how many classes are not shown.
    """

    classes: tuple[str, ...]
    rows: tuple[tuple[Cell | None, ...], ...]
    clustered: bool
    left_out: int

    @property
    def cells(self) -> list[Cell]:
        return [cell for row in self.rows for cell in row if cell is not None]

    @property
    def most_confused(self) -> list[Cell]:
        """Cells of wrong pictures, the fullest first."""
        return sorted((cell for cell in self.cells if not cell.right), key=lambda cell: -len(cell.answers))


def confusion_of(answers: Sequence[Answer], classes: Sequence[str]) -> Confusion:
    """The matrix of `answers`, in the classes' own order up to MANY, clustered by confusion beyond."""
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

    Average linkage on how often two classes are taken for each other, with the leaves in their best order
    (Bar-Joseph et al. 2001).
    """
    from scipy.cluster.hierarchy import leaves_list, linkage
    from scipy.spatial.distance import squareform

    shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
    distance = 1 - np.clip((shares + shares.T) / 2, 0, 1)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average", optimal_ordering=True)
    return [int(leaf) for leaf in leaves_list(tree)]
