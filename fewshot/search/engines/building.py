"""The engine of a structure: built from vectors, or restored from its FAISS index."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fewshot.search.engines.approximate import MOST_CANDIDATES, Approximate
from fewshot.search.engines.exact import Exact
from fewshot.search.engines.library import Structure, Vectors
from fewshot.search.engines.quantised import Quantised

Engine = Exact | Approximate


def effort_bounds(structure: Structure, lists: int) -> tuple[int, int]:
    """Least and largest effort of an engine; `lists`: number of inverted lists."""
    return {"exact": (0, 0), "ivf": (1, lists), "hnsw": (1, MOST_CANDIDATES), "pq": (1, lists)}[structure]


def build(structure: Structure, vectors: Vectors, *, floor: float, gpu: bool) -> Engine:
    """An engine with vectors (n, d) in rows 0 to n - 1; for an approximate one, give them in random order.

    floor: Of the recall of an approximate engine. gpu: Whether an exact one searches on a GPU.
    """
    if structure == "exact":
        return Exact.of(vectors, gpu)
    return Quantised.of_vectors(vectors, floor) if structure == "pq" else Approximate.of(structure, vectors, floor)


def restore(
    structure: Structure, faiss_index: Any, rows: Sequence[int], *, effort: int, recall: float, gpu: bool
) -> Engine:
    """An engine from its saved FAISS index. ValueError if two rows are equal, or an exact index has more vectors.

    rows: Of the vectors that are not removed; the FAISS index has all of them.
    """
    gone = np.ones(faiss_index.ntotal, bool)
    gone[list(rows)] = False
    if len(gone) - gone.sum() != len(rows):
        raise ValueError("two keys have one row")
    if structure == "exact":
        if gone.any():
            raise ValueError("a vector has no key")
        return Exact(faiss_index, gpu)
    kind = Quantised if structure == "pq" else Approximate
    return kind(structure, faiss_index, effort=effort, recall=recall, gone=np.flatnonzero(gone).tolist())
