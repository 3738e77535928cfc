"""Codes in inverted lists, with the vectors that rank candidates again, in a FAISS file."""

from __future__ import annotations

import numpy as np

from fewshot.search.engines import CODE_BITS, MOST_FACTOR, parts_of
from fewshot.search.faiss_format.reading import Bytes, Layout, check_lengths, demand, header, inside, parts

_NO_MAP = 0  # FAISS's number for the kind of the direct map
_AT_ONCE = 32  # codes that FAISS compares at once, and that a block of a list holds
_NO_CODE_SIZE = (1 << 64) - 1  # of lists in blocks
_LONGEST = 4.0  # a centroid is a mean of differences of vectors of length 1


def quantised_layout(data: Bytes, values: bool) -> Layout:
    width, rows = header(data)
    code = data.code()
    demand(code == "IwPf", f"the type {code!r} inside is not one that is written here")
    demand(header(data) == (width, rows), "the width or the number of vectors differs inside")
    lists, probes = data.number("<u8"), data.number("<u8")
    demand(1 <= lists <= max(1, rows), f"it has {lists} lists for {rows} vectors")
    demand(1 <= probes <= lists, f"it probes {probes} of {lists} lists")
    check_lengths(inside(data, width, lists), least=0)  # the centres are means of vectors
    demand(data.number("u1") == _NO_MAP and data.number("<u8") == 0, "its direct map is of another kind")
    block = _codes(data, width)
    _check_lists(data, lists, rows, block)
    vectors = inside(data, width, rows)
    if values:
        check_lengths(vectors)
    factor = float(data.take("<f4", 1)[0])
    demand(factor in range(1, MOST_FACTOR + 1), f"it ranks {factor} candidates for each neighbour")
    return Layout("pq", width, rows, lists)


def _codes(data: Bytes, width: int) -> int:
    """Check the product quantiser. Returns the bytes of a block of codes."""
    number = parts_of(width)
    kept = number + number % 2  # FAISS keeps an even number of codes
    residual, size = data.number("u1"), data.number("<u8")
    demand(residual == 1, "its codes are not of residuals")
    demand(size == kept // 2, f"a code has {size} bytes")
    together, even, variant, queries = data.number("<i4"), data.number("<u8"), data.number("<i4"), data.number("<u8")
    demand((together, even) == (_AT_ONCE, kept), "its codes are packed in another way")
    demand((variant, queries) == (0, 0), "it searches in another way")
    stated = tuple(data.number("<u8") for _ in range(3))
    demand(stated == (width, number, CODE_BITS), "its quantiser is of another width or number of codes")
    centroids = data.vector("<f4")
    demand(len(centroids) == width << CODE_BITS, "the number of centroids differs")
    for part in parts(centroids):
        demand(bool((np.abs(part) <= _LONGEST).all()), "a centroid is not a mean of vectors")
    return _AT_ONCE * kept // 2


def _check_lists(data: Bytes, lists: int, rows: int, block: int) -> None:
    """Every row is in one list, and every list has the codes of its rows."""
    code = data.code()
    demand(code == "ilbl", f"its lists are of type {code!r}, not held in the file")
    stated = tuple(data.number("<u8") for _ in range(4))
    demand(stated == (lists, _NO_CODE_SIZE, _AT_ONCE, block), "the number of lists or their blocks differ")
    seen = np.zeros(rows, bool)
    held = 0
    for _ in range(lists):
        ids = np.array(data.vector("<i8"))
        held += len(ids)
        demand(held <= rows, "the lists do not hold every vector")
        demand(not len(ids) or (ids.min() >= 0 and ids.max() < rows), "a list holds a row that is missing")
        seen[ids] = True
        codes = data.vector("u1")
        demand(len(codes) == -(-len(ids) // _AT_ONCE) * block, "the codes of a list are not those of its rows")
    demand(bool(seen.all()), "the lists do not hold every vector")
