"""The examples of a gallery's classes: vectors by class. Adding one takes constant time on average."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]


class Examples:
    """Vectors of classes 0, 1, 2, ...

    They are stored in the order of adding, in memory that doubles when it is full, and sorted by class when that order
    is asked for. Arrays that were given out never change.

    Args:
        width: Length of a vector.
    """

    def __init__(self, width: int):
        self.counts: list[int] = []  # of each class
        self._stored = np.empty((0, width), np.float32)
        self._stored_classes = np.empty(0, np.int64)
        self._number = 0
        self._sorted = True

    def __len__(self) -> int:
        return self._number

    @property
    def vectors(self) -> Vectors:
        """Shape (n, width), sorted by class, and in the order of adding within one."""
        self._sort()
        return self._stored[: self._number]

    @property
    def classes(self) -> NDArray[np.int64]:
        """(n,): class of each of `vectors`."""
        self._sort()
        return self._stored_classes[: self._number]

    def add(self, of: int, vectors: Vectors) -> None:
        """Add vectors (n, width) to class `of`, the next new one or one that is there."""
        if of == len(self.counts):
            self.counts.append(0)
        end = self._number + len(vectors)
        if end > len(self._stored):
            room = max(end, 2 * len(self._stored))
            stored, classes = np.empty((room, vectors.shape[1]), np.float32), np.empty(room, np.int64)
            stored[: self._number], classes[: self._number] = (
                self._stored[: self._number],
                self._stored_classes[: self._number],
            )
            self._stored, self._stored_classes = stored, classes
        self._stored[self._number : end], self._stored_classes[self._number : end] = vectors, of
        self.counts[of] += len(vectors)
        self._number = end
        self._sorted &= of == len(self.counts) - 1

    def fill(self, counts: list[int], vectors: Vectors) -> None:
        """Take vectors (n, width) that are sorted by class, in place of all others."""
        self._keep(counts, vectors.copy(), np.repeat(np.arange(len(counts)), counts))

    def forget(self, of: int) -> None:
        """Remove class `of`; those after it move up."""
        kept = self.classes != of
        classes = self.classes[kept]
        counts = self.counts[:of] + self.counts[of + 1 :]
        self._keep(counts, self.vectors[kept], classes - (classes > of))

    def nearest(self, vectors: Vectors) -> tuple[NDArray[np.int64], Vectors]:
        """Class and cosine of the most similar example of each vector (n, width); ties give the first class.

        At least one example must exist.
        """
        cosines = vectors @ self._stored[: self._number].T
        most = cosines.max(1)
        classes = np.where(cosines == most[:, None], self._stored_classes[: self._number], len(self.counts))
        return classes.min(1), most

    def _keep(self, counts: list[int], vectors: Vectors, classes: NDArray[np.int64]) -> None:
        self.counts, self._stored, self._stored_classes = counts, vectors, classes
        self._number, self._sorted = len(vectors), True

    def _sort(self) -> None:
        if not self._sorted:
            order = np.argsort(self._stored_classes[: self._number], kind="stable")
            self._keep(self.counts, self._stored[order], self._stored_classes[order])
