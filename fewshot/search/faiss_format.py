"""The FAISS files that an index writes, checked from their bytes before FAISS opens them.

FAISS trusts its files: it takes memory for any number that they state, follows any link, and maps any file that its
on-disk lists name. Only the layouts of the three structures are accepted here, to the last byte:

exact   IxFI: header, vectors
ivf     IwFl: header, numbers of lists and of probes, centres (IxFI), direct map (row -> list and place), lists (ilar)
hnsw    IHNf: header, graph, vectors (IxFI)

A header is width, number of rows, two unused numbers, whether it is trained, and the metric.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot.search.engines import Structure
from finetune.errors import InputError

MOST_WIDTH = 1 << 20
SQUARED_WITHIN = 2e-3  # of 1, a vector's squared length: allows lengths from 0.999 to 1.001

_INNER_PRODUCT, _ARRAY_MAP = 0, 1  # FAISS's numbers for the metric and the kind of the direct map
_MOST_LEVELS, _MOST_LINKS = 64, 1 << 16  # of a graph: levels, and links of one vector
_AT_ONCE = 1 << 20  # numbers checked at once

Array = NDArray[Any]


@dataclass(frozen=True)
class Layout:
    """What a FAISS file holds: `rows` vectors of a width, in `lists` inverted lists (0 without)."""

    structure: Structure
    width: int
    rows: int
    lists: int = 0


def check_file(path: Path, *, values: bool) -> Layout:
    """Check that FAISS can read a file safely and that it holds what an index writes.

    Args:
        path: The FAISS file.
        values: Also check that every vector is finite and of length 1, which reads all of them. All else is checked in
            any case: types, metric, sizes, rows of lists, links of graphs.

    Raises:
        InputError: If the file cannot be read, or holds anything else.
    """
    try:
        data = np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        return _check(_Bytes(data), values)
    except _WrongError as error:
        raise InputError(f"{path} does not hold the vectors of an index ({error}); it may be damaged") from error


class _WrongError(Exception):
    """What is wrong with a file."""


class _Bytes:
    """The bytes of a file, taken from its start to its end."""

    def __init__(self, data: NDArray[np.uint8]):
        self._data = data
        self._at = 0

    def take(self, kind: str, count: int) -> Array:
        """The next `count` numbers, not copied."""
        kept = np.dtype(kind)
        if not 0 <= count <= (len(self._data) - self._at) // kept.itemsize:
            raise _WrongError("it is shorter than the sizes that it states")
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
            raise _WrongError("it is longer than the sizes that it states")


def _check(data: _Bytes, values: bool) -> Layout:
    code = data.code()
    if code == "IxFI":
        layout = _flat(data, values)
    elif code == "IwFl":
        layout = _lists(data, values)
    elif code == "IHNf":
        layout = _graph(data, values)
    else:
        raise _WrongError(f"its type {code!r} is not one that is written here")
    data.end()
    return layout


def _header(data: _Bytes) -> tuple[int, int]:
    """Width and number of rows."""
    width, rows = data.number("<i4"), data.number("<i8")
    data.take("<i8", 2)
    trained, metric = data.number("u1"), data.number("<i4")
    _demand(1 <= width <= MOST_WIDTH, f"the width {width} is not between 1 and {MOST_WIDTH}")
    _demand(rows >= 0, f"the number of vectors is {rows}")
    _demand(trained == 1, "it is not trained")
    _demand(metric == _INNER_PRODUCT, "the metric is not the inner product")
    return width, rows


def _flat(data: _Bytes, values: bool) -> Layout:
    width, rows = _header(data)
    vectors = _vectors(data, width, rows)
    if values:
        _check_lengths(vectors)
    return Layout("exact", width, rows)


def _vectors(data: _Bytes, width: int, rows: int) -> Array:
    """The vectors (rows, width) after a header."""
    found = data.vector("<f4")
    _demand(len(found) == rows * width, "the number of vectors differs from their bytes")
    return found.reshape(rows, width)


def _inside(data: _Bytes, width: int, rows: int) -> Array:
    """The vectors (rows, width) of an exact structure inside another."""
    code = data.code()
    _demand(code == "IxFI", f"the type {code!r} inside is not one that is written here")
    _demand(_header(data) == (width, rows), "the width or the number of vectors differs inside")
    return _vectors(data, width, rows)


def _check_lengths(vectors: Array, *, least: float = 1.0) -> None:
    """Every vector is finite, and its length is between `least` and 1."""
    for part in _parts(vectors):
        aligned = np.array(part)  # numbers of a file may lie at odd addresses, which is slow
        with np.errstate(all="ignore"):
            squared = np.einsum("ij,ij->i", aligned, aligned)
        good = (squared >= least**2 - SQUARED_WITHIN) & (squared <= 1 + SQUARED_WITHIN)
        _demand(bool(good.all()), "a vector does not have length 1")


def _lists(data: _Bytes, values: bool) -> Layout:
    width, rows = _header(data)
    lists, probes = data.number("<u8"), data.number("<u8")
    _demand(1 <= lists <= max(1, rows), f"it has {lists} lists for {rows} vectors")
    _demand(1 <= probes <= lists, f"it probes {probes} of {lists} lists")
    _check_lengths(_inside(data, width, lists), least=0)  # the centres are means of vectors
    _demand(data.number("u1") == _ARRAY_MAP, "its direct map is of another kind")
    places = data.vector("<i8")
    code = data.code()
    _demand(code == "ilar", f"its lists are of type {code!r}, not held in the file")
    stated = data.number("<u8"), data.number("<u8")
    _demand(stated == (lists, width * 4), "the number of lists or their width differs")
    sizes = _list_sizes(data, lists)
    _demand(len(places) == rows == sum(sizes.tolist()), "the lists do not hold every vector")
    ids = np.empty(rows, np.int64)
    at = 0
    for size in sizes.tolist():
        vectors = data.take("<f4", size * width)
        ids[at : at + size] = data.take("<i8", size)
        at += size
        if values:
            _check_lengths(vectors.reshape(size, width))
    _check_places(np.array(places), ids, sizes)
    return Layout("ivf", width, rows, lists)


def _list_sizes(data: _Bytes, lists: int) -> NDArray[np.int64]:
    """Number of vectors of each list; FAISS lists them all, or those that are not 0."""
    code = data.code()
    stated = data.vector("<u8")
    _demand(bool((stated < 1 << 62).all()), "the size of a list is too large")
    if code == "full":
        _demand(len(stated) == lists, "the number of sizes differs from the number of lists")
        return stated.astype(np.int64)
    _demand(code == "sprs", f"the sizes of its lists are of type {code!r}")
    _demand(len(stated) % 2 == 0, "a size of a list is missing")
    numbers, sizes = stated[::2].astype(np.int64), stated[1::2].astype(np.int64)
    rising = len(numbers) == 0 or (bool((np.diff(numbers) > 0).all()) and numbers[-1] < lists)
    _demand(rising, "the numbers of its lists are out of order")
    found = np.zeros(lists, np.int64)
    found[numbers] = sizes
    return found


def _check_places(places: NDArray[np.int64], ids: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    """Every row is in one list, at the place that the direct map states: list << 32 | place in the list."""
    lists, offsets = places >> 32, places & 0xFFFFFFFF
    inside = (lists >= 0) & (lists < len(sizes))
    _demand(bool(inside.all()) and bool((offsets < sizes[lists]).all()), "a vector's place is outside its list")
    starts = sizes.cumsum() - sizes
    _demand(bool((ids[starts[lists] + offsets] == np.arange(len(ids))).all()), "a vector is not at its place")


def _graph(data: _Bytes, values: bool) -> Layout:
    width, rows = _header(data)
    shares, ends = np.array(data.vector("<f8")), np.array(data.vector("<i4"))
    _demand(1 <= len(shares) <= _MOST_LEVELS, f"a graph has {len(shares)} levels")
    _demand(bool(((shares >= 0) & (shares <= 1)).all()), "the share of a level is not between 0 and 1")
    _demand(len(ends) == len(shares) + 1, "the number of levels differs")
    rising = ends[0] == 0 and bool((np.diff(ends.astype(np.int64)) > 0).all()) and ends[-1] <= _MOST_LINKS
    _demand(bool(rising), "the numbers of links of the levels are wrong")
    levels, offsets = np.array(data.vector("<i4")), np.array(data.vector("<u8"))
    _demand(len(levels) == rows and len(offsets) == rows + 1, "the graph does not hold every vector")
    _demand(not rows or (levels.min() >= 1 and levels.max() < len(ends)), "a vector is on a level that is missing")
    expected = np.concatenate([[0], ends[levels].cumsum(dtype=np.int64)]).astype(np.uint64)
    _demand(bool((offsets == expected).all()), "the links of a vector begin at another place")
    links = data.vector("<i4")
    _demand(len(links) == expected[-1], "the number of links differs")
    _check_links(links, expected.astype(np.int64), levels, ends)
    entry, top, building, searching, _ = (data.number("<i4") for _ in range(5))
    started = 0 <= entry < rows and levels[entry] == top + 1 == levels.max() if rows else (entry, top) == (-1, -1)
    _demand(bool(started), "the graph has no valid entry")
    _demand(1 <= building <= _MOST_LINKS and 1 <= searching <= _MOST_LINKS, "the effort of the graph is wrong")
    vectors = _inside(data, width, rows)
    if values:
        _check_lengths(vectors)
    return Layout("hnsw", width, rows)


def _check_links(links: Array, offsets: NDArray[np.int64], levels: NDArray[np.int32], ends: NDArray[np.int32]) -> None:
    """Every link is -1 for none, or a row that is on the link's level too."""
    rows = len(levels)
    for part in _parts(links):
        _demand(bool(part.min() >= -1 and part.max() < rows), "a link leads out of the graph")
    for level in range(1, int(levels.max(initial=1))):
        slots = np.arange(ends[level], ends[level + 1])
        on_level = np.flatnonzero(levels > level)
        step = max(1, _AT_ONCE // len(slots))
        for at in range(0, len(on_level), step):
            found = links[offsets[on_level[at : at + step], None] + slots]
            _demand(bool(((found < 0) | (levels[found] > level)).all()), "a link leads out of its level")


def _parts(values: Array) -> Iterator[Array]:
    """Blocks of rows, so that checks take little memory."""
    step = max(1, _AT_ONCE // (values.shape[1] if values.ndim > 1 else 1))
    for at in range(0, len(values), step):
        yield values[at : at + step]


def _demand(true: bool, otherwise: str) -> None:
    if not true:
        raise _WrongError(otherwise)
