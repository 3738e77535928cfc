"""The bytes of a FAISS file, taken from its start to its end, and what several of its structures hold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot.search.engines import Structure

MOST_WIDTH = 1 << 20
SQUARED_WITHIN = 2e-3  # of 1, a vector's squared length: allows lengths from 0.999 to 1.001

_INNER_PRODUCT = 0  # FAISS's number for the metric
_AT_ONCE = 1 << 20  # numbers checked at once

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """What a FAISS file holds: `rows` vectors of a width, in `lists` inverted lists (0 without)."""

    structure: Structure
    width: int
    rows: int
    lists: int = 0


class WrongError(Exception):
    """What is wrong with a file."""


class Bytes:
    """The bytes of a file, taken from its start to its end."""

    def __init__(self, data: NDArray[np.uint8]):
        self._data = data
        self._at = 0

    def take(self, kind: str, count: int) -> Array:
        """The next `count` numbers, not copied."""
        kept = np.dtype(kind)
        if not 0 <= count <= (len(self._data) - self._at) // kept.itemsize:
            raise WrongError("it is shorter than the sizes that it states")
        found = self._data[self._at : self._at + count * kept.itemsize].view(kept)
        self._at += count * kept.itemsize
        return found

    def number(self, kind: str) -> int:
        return int(self.take(kind, 1)[0])

    def vector(self, kind: str) -> Array:
        """A number, and as many numbers of this kind."""
        return self.take(kind, self.number("<u8"))

    def code(self) -> str:
        """The four letters that name a type."""
        return self.take("u1", 4).tobytes().decode("latin-1")

    def end(self) -> None:
        if self._at != len(self._data):
            raise WrongError("it is longer than the sizes that it states")


def header(data: Bytes) -> tuple[int, int]:
    """Width and number of rows."""
    width, rows = data.number("<i4"), data.number("<i8")
    data.take("<i8", 2)
    trained, metric = data.number("u1"), data.number("<i4")
    demand(1 <= width <= MOST_WIDTH, f"the width {width} is not between 1 and {MOST_WIDTH}")
    demand(rows >= 0, f"the number of vectors is {rows}")
    demand(trained == 1, "it is not trained")
    demand(metric == _INNER_PRODUCT, "the metric is not the inner product")
    return width, rows


def vectors_of(data: Bytes, width: int, rows: int) -> Array:
    """The vectors (rows, width) after a header."""
    found = data.vector("<f4")
    demand(len(found) == rows * width, "the number of vectors differs from their bytes")
    return found.reshape(rows, width)


def inside(data: Bytes, width: int, rows: int) -> Array:
    """The vectors (rows, width) of an exact structure inside another."""
    code = data.code()
    demand(code == "IxFI", f"the type {code!r} inside is not one that is written here")
    demand(header(data) == (width, rows), "the width or the number of vectors differs inside")
    return vectors_of(data, width, rows)


def check_lengths(vectors: Array, *, least: float = 1.0) -> None:
    """Every vector is finite, and its length is between `least` and 1."""
    for part in parts(vectors):
        aligned = np.array(part)  # numbers of a file may lie at odd addresses, which is slow
        with np.errstate(all="ignore"):
            squared = np.einsum("ij,ij->i", aligned, aligned)
        good = (squared >= least**2 - SQUARED_WITHIN) & (squared <= 1 + SQUARED_WITHIN)
        demand(bool(good.all()), "a vector does not have length 1")


def parts(values: Array) -> Iterator[Array]:
    """Blocks of rows, so that checks take little memory."""
    step = rows_at_once(values.shape[1] if values.ndim > 1 else 1)
    for at in range(0, len(values), step):
        yield values[at : at + step]


def rows_at_once(width: int) -> int:
    return max(1, _AT_ONCE // width)


def demand(true: bool, otherwise: str) -> None:
    if not true:
        raise WrongError(otherwise)
