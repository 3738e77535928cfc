"""A graph in a FAISS file."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fewshot.search.faiss_format.reading import (
    Array,
    Bytes,
    Layout,
    check_lengths,
    demand,
    header,
    inside,
    parts,
    rows_at_once,
)

_MOST_LEVELS, _MOST_LINKS = 64, 1 << 16  # of a graph: levels, and links of one vector


def graph_layout(data: Bytes, values: bool) -> Layout:
    width, rows = header(data)
    shares, ends = np.array(data.vector("<f8")), np.array(data.vector("<i4"))
    demand(1 <= len(shares) <= _MOST_LEVELS, f"a graph has {len(shares)} levels")
    demand(bool(((shares >= 0) & (shares <= 1)).all()), "the share of a level is not between 0 and 1")
    demand(len(ends) == len(shares) + 1, "the number of levels differs")
    rising = ends[0] == 0 and bool((np.diff(ends.astype(np.int64)) > 0).all()) and ends[-1] <= _MOST_LINKS
    demand(bool(rising), "the numbers of links of the levels are wrong")
    levels, offsets = np.array(data.vector("<i4")), np.array(data.vector("<u8"))
    demand(len(levels) == rows and len(offsets) == rows + 1, "the graph does not hold every vector")
    demand(not rows or (levels.min() >= 1 and levels.max() < len(ends)), "a vector is on a level that is missing")
    expected = np.concatenate([[0], ends[levels].cumsum(dtype=np.int64)]).astype(np.uint64)
    demand(bool((offsets == expected).all()), "the links of a vector begin at another place")
    links = data.vector("<i4")
    demand(len(links) == expected[-1], "the number of links differs")
    _check_links(links, expected.astype(np.int64), levels, ends)
    entry, top, building, searching, _ = (data.number("<i4") for _ in range(5))
    started = 0 <= entry < rows and levels[entry] == top + 1 == levels.max() if rows else (entry, top) == (-1, -1)
    demand(bool(started), "the graph has no valid entry")
    demand(1 <= building <= _MOST_LINKS and 1 <= searching <= _MOST_LINKS, "the effort of the graph is wrong")
    vectors = inside(data, width, rows)
    if values:
        check_lengths(vectors)
    return Layout("hnsw", width, rows)


def _check_links(links: Array, offsets: NDArray[np.int64], levels: NDArray[np.int32], ends: NDArray[np.int32]) -> None:
    """Every link is -1 for none, or a row that is on the link's level too."""
    rows = len(levels)
    for part in parts(links):
        demand(bool(part.min() >= -1 and part.max() < rows), "a link leads out of the graph")
    for level in range(1, int(levels.max(initial=1))):
        slots = np.arange(ends[level], ends[level + 1])
        on_level = np.flatnonzero(levels > level)
        step = rows_at_once(len(slots))
        for at in range(0, len(on_level), step):
            found = links[offsets[on_level[at : at + step], None] + slots]
            demand(bool(((found < 0) | (levels[found] > level)).all()), "a link leads out of its level")
