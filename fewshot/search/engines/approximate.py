"""Approximate search by inverted lists or a graph."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot.search.engines.library import (
    RECALL_AT,
    ROUNDING,
    Found,
    Structure,
    Vectors,
    import_faiss,
    reconstructed,
    search_flat,
)
from fewshot.search.engines.pages import LargePages

MEASURED_ON = 500  # vectors, or a fifth of them
MOST_CANDIDATES = 4096

_CONFIDENCE = 1.645  # standard errors: one-sided, 95 %
_LEAST_EFFORT: dict[Structure, int] = {"ivf": 1, "hnsw": 16}  # lists probed; candidates kept in a graph's search
_LINKS, _BUILD_EFFORT = 32, 80  # of a graph: links of a vector, and candidates examined for them
# Vectors of a list: FAISS warns below the first number, and k-means gains little beyond the second.
_LIST_AT_LEAST, _LIST_LEARNS_FROM = 39, 64


class Approximate:
    """Inverted lists ("ivf") or a graph ("hnsw"): compares some of the vectors.

    The effort (lists probed, candidates kept) is raised until the recall, measured on some of the index's own vectors,
    is above a floor by its standard error and more, so that queries which tuned nothing find as many. Rows are 0 to
    n - 1 in the order of adding. A removed row stays in FAISS and is skipped. If a search finds fewer than k rows, all
    vectors are compared.
    """

    def __init__(self, structure: Structure, index: Any, *, effort: int, recall: float, gone: Sequence[int] = ()):
        self.structure = structure
        self.faiss_index = index
        self.effort = effort
        self.recall = recall
        self.removed = 0
        self._pages = LargePages()
        self._pages_wait = True  # until the next search
        self._gone = np.zeros(0, np.uint8)  # one bit a row; rows beyond its end are not removed
        self.remove(gone)

    @classmethod
    def of(cls, structure: Structure, vectors: Vectors, floor: float) -> Approximate:
        """Build from vectors (n, d) in random order; n may be 0.

        The recall, with the floor `floor` in (0, 1], is measured with the last vectors as queries before they are
        added: a graph finds vectors that it holds far more easily than others.
        """
        n = len(vectors)
        kept = n - min(MEASURED_ON, n // 5)
        index = _new_lists(vectors[:kept]) if structure == "ivf" else _new_graph(vectors.shape[1])
        index.add(vectors[:kept])
        engine = cls(structure, index, effort=_LEAST_EFFORT[structure], recall=1.0)
        engine._tune(vectors[kept:], floor)
        engine.add(vectors[kept:])
        return engine

    def add(self, vectors: Vectors) -> None:
        self.faiss_index.add(vectors)
        self._pages_wait = True

    def remove(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Mark rows as removed. No row moves, so the result is empty."""
        if not len(rows):
            return []
        needed = self.faiss_index.ntotal // 8 + 1
        if needed > len(self._gone):
            self._gone = np.concatenate([self._gone, np.zeros(2 * needed - len(self._gone), np.uint8)])
        at = np.asarray(rows, np.int64)
        np.bitwise_or.at(self._gone, at >> 3, (1 << (at & 7)).astype(np.uint8))
        self.removed += len(rows)
        return []

    def vectors(self, rows: Sequence[int]) -> Vectors:
        return reconstructed(self.faiss_index, rows)

    def search(self, queries: Vectors, k: int) -> Found:
        if self._pages_wait and (flat := self._flat()) is not None:
            self._pages.of(flat)
        self._pages_wait = False
        similarity, rows = self._search(queries, k, self.effort)
        short = rows[:, -1] < 0
        if short.any():
            similarity[short], rows[short] = self._search_all(queries[short], k)
        return similarity, rows

    def share_compared(self) -> float:
        """Approximate share of the vectors that a search compares."""
        return self.effort / self._most_effort() if self.structure == "ivf" else self.effort / self.faiss_index.ntotal

    def _tune(self, queries: Vectors, floor: float) -> None:
        """Double the effort until the recall reaches `floor`, or the effort its maximum."""
        if not len(queries):
            return
        least = self._last_similarity(queries)
        while not self._reaches(floor, queries, least) and self.effort < self._most_effort():
            self.effort = min(2 * self.effort, self._most_effort())

    def _last_similarity(self, queries: Vectors) -> NDArray[np.float32]:
        """(m, 1): of the last true neighbour. Rows as similar count as found, so that ties do not lower the recall."""
        similarity: NDArray[np.float32] = self._search_all(queries, self._measured_at())[0][:, -1:] - ROUNDING
        return similarity

    def _reaches(self, floor: float, queries: Vectors, least: NDArray[np.float32]) -> bool:
        """Measure the recall, and tell whether it is at least `floor` with 95 % confidence."""
        found, _ = self._search(queries, self._measured_at(), self.effort)
        shares = (found >= least).mean(1)
        self.recall = float(shares.mean())
        return self.recall - _CONFIDENCE * float(shares.std()) / sqrt(len(shares)) >= floor

    def _measured_at(self) -> int:
        return min(RECALL_AT, int(self.faiss_index.ntotal))

    def _most_effort(self) -> int:
        return int(self.faiss_index.nlist) if self.structure == "ivf" else MOST_CANDIDATES

    def _search(self, queries: Vectors, k: int, effort: int) -> Found:
        faiss = import_faiss()
        selector = self._selector()
        if self.structure == "ivf":
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=effort)
        else:
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(effort, k))
        similarity, rows = self.faiss_index.search(queries, k, params=parameters)
        return similarity, rows

    def _search_all(self, queries: Vectors, k: int) -> Found:
        flat = self._flat()
        if flat is None:
            return self._search(queries, k, self.faiss_index.nlist)
        return search_flat(flat, queries, k, self._selector())

    def _flat(self) -> Any:
        """The IndexFlat that holds the vectors; None of inverted lists, which hold them themselves."""
        return None if self.structure == "ivf" else import_faiss().downcast_index(self.faiss_index.storage)

    def _selector(self) -> Any:
        """FAISS's filter for removed rows; None without any, which is faster."""
        faiss = import_faiss()
        return faiss.IDSelectorNot(faiss.IDSelectorBitmap(self._gone)) if self.removed else None


def _new_lists(vectors: Vectors) -> Any:
    faiss = import_faiss()
    n, width = vectors.shape
    lists = max(1, min(int(2 * np.sqrt(n)), n // _LIST_AT_LEAST))
    # Without vectors, any direction serves as the centre of the one list.
    learned_from = vectors if n else np.eye(1, width, dtype=np.float32)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = _LIST_LEARNS_FROM
    index.cp.min_points_per_centroid = 1 if lists == 1 else _LIST_AT_LEAST
    index.train(learned_from)
    index.set_direct_map_type(faiss.DirectMap.Array)  # needed to reconstruct a vector by its row
    return index


def _new_graph(width: int) -> Any:
    faiss = import_faiss()
    index = faiss.IndexHNSWFlat(width, _LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _BUILD_EFFORT
    return index
