"""Inverted lists in a FAISS file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fewshot.search.faiss_format.reading import Bytes, Layout, check_lengths, demand, header, inside

_ARRAY_MAP = 1  # FAISS's number for the kind of the direct map


def lists_layout(data: Bytes, values: bool) -> Layout:
    width, rows = header(data)
    lists, probes = data.number("<u8"), data.number("<u8")
    demand(1 <= lists <= max(1, rows), f"it has {lists} lists for {rows} vectors")
    demand(1 <= probes <= lists, f"it probes {probes} of {lists} lists")
    check_lengths(inside(data, width, lists), least=0)  # the centres are means of vectors
    demand(data.number("u1") == _ARRAY_MAP, "its direct map is of another kind")
    places = data.vector("<i8")
    code = data.code()
    demand(code == "ilar", f"its lists are of type {code!r}, not held in the file")
    stated = data.number("<u8"), data.number("<u8")
    demand(stated == (lists, width * 4), "the number of lists or their width differs")
    sizes = _list_sizes(data, lists)
    demand(len(places) == rows == sum(sizes.tolist()), "the lists do not hold every vector")
    ids = np.empty(rows, np.int64)
    at = 0
    for size in sizes.tolist():
        vectors = data.take("<f4", size * width)
        ids[at : at + size] = data.take("<i8", size)
        at += size
        if values:
            check_lengths(vectors.reshape(size, width))
    _check_places(np.array(places), ids, sizes)
    return Layout("ivf", width, rows, lists)


def _list_sizes(data: Bytes, lists: int) -> NDArray[np.int64]:
    """Number of vectors of each list; FAISS lists them all, or those that are not 0."""
    code = data.code()
    stated = data.vector("<u8")
    demand(bool((stated < 1 << 62).all()), "the size of a list is too large")
    if code == "full":
        demand(len(stated) == lists, "the number of sizes differs from the number of lists")
        return stated.astype(np.int64)
    demand(code == "sprs", f"the sizes of its lists are of type {code!r}")
    demand(len(stated) % 2 == 0, "a size of a list is missing")
    numbers, sizes = stated[::2].astype(np.int64), stated[1::2].astype(np.int64)
    rising = len(numbers) == 0 or (bool((np.diff(numbers) > 0).all()) and numbers[-1] < lists)
    demand(rising, "the numbers of its lists are out of order")
    found = np.zeros(lists, np.int64)
    found[numbers] = sizes
    return found


def _check_places(places: NDArray[np.int64], ids: NDArray[np.int64], sizes: NDArray[np.int64]) -> None:
    """Every row is in one list, at the place that the direct map states: list << 32 | place in the list."""
    lists, offsets = places >> 32, places & 0xFFFFFFFF
    valid = (lists >= 0) & (lists < len(sizes))
    demand(bool(valid.all()) and bool((offsets < sizes[lists]).all()), "a vector's place is outside its list")
    starts = sizes.cumsum() - sizes
    demand(bool((ids[starts[lists] + offsets] == np.arange(len(ids))).all()), "a vector is not at its place")
