"""Approximate search by short codes in inverted lists; the exact vectors rank the candidates again."""

from __future__ import annotations

from typing import Any

import numpy as np

from fewshot.search.engines.approximate import MEASURED_ON, Approximate
from fewshot.search.engines.library import RECALL_AT, Found, Vectors, import_faiss, reconstructed

QUANTISED_FROM = 64  # vectors; 16 centroids of a part of a vector cannot be learned from fewer
MOST_FACTOR = 1024  # candidates for each neighbour
CODE_BITS = 4  # of a part; FAISS compares 32 such codes at once in registers

_PART = 4  # numbers of a vector that one code stands for, at most
_LIST_AT_LEAST, _LIST_LEARNS_FROM = 39, 64  # vectors, as for inverted lists without codes
_FIRST_FACTOR = 64

# Cost in a batch of queries, of scanning a code and of ranking a candidate by its exact vector, which is anywhere in
# memory. Unit: comparing one vector in an exact search, which is a product of matrices. Estimated shares are 1 to 1.5
# times those measured on 10,000 to 100,000 drawings (256 numbers) and photographs (1,024): "rule" in the results of
# benchmarks/index_table.py.
_SCAN_COST, _RANK_COST = 0.65, 55


class Quantised(Approximate):
    """Inverted lists of codes of 4 bits for every four numbers; the vectors themselves re-rank the candidates.

    Two numbers set the effort: the lists probed (`effort`), and the candidates that are ranked again for each neighbour
    (`factor`, which FAISS keeps in its file). Both are the least that reach the recall.
    """

    @classmethod
    def of_vectors(cls, vectors: Vectors, floor: float) -> Quantised:
        """Build from vectors (n, d) in random order, n >= QUANTISED_FROM; see `Approximate.of`."""
        n = len(vectors)
        kept = n - min(MEASURED_ON, n // 5)
        index = _new_codes(vectors[:kept])
        index.add(vectors[:kept])
        engine = cls("pq", index, effort=1, recall=1.0)
        engine._tune(vectors[kept:], floor)
        engine.add(vectors[kept:])
        return engine

    @property
    def factor(self) -> int:
        return int(self.faiss_index.k_factor)

    def vectors(self, rows: Any) -> Vectors:
        return reconstructed(self._flat(), rows)

    def share_compared(self) -> float:
        lists, n = self._most_effort(), self.faiss_index.ntotal
        cost = lists + _SCAN_COST * n * self.effort / lists + _RANK_COST * self.factor * RECALL_AT
        return float(cost / n)

    def _tune(self, queries: Vectors, floor: float) -> None:
        """Probe as few lists, then rank as few candidates, as reach `floor`."""
        most = min(MOST_FACTOR, self.faiss_index.ntotal)
        least = self._last_similarity(queries)
        self.faiss_index.k_factor = min(_FIRST_FACTOR, most)
        while not self._reaches(floor, queries, least) and (self.effort < self._most_effort() or self.factor < most):
            if self.effort < self._most_effort():
                self.effort = min(2 * self.effort, self._most_effort())
            else:
                self.faiss_index.k_factor = min(2 * self.factor, most)
        # Halve; where that is too few, take off a quarter. Ranking costs most, so steps of 2 would be coarse.
        for step in (2, 4 / 3):
            while self.factor > 1:
                factor, recall = self.factor, self.recall
                self.faiss_index.k_factor = int(factor / step)
                if not self._reaches(floor, queries, least):
                    self.faiss_index.k_factor, self.recall = factor, recall
                    break

    def _most_effort(self) -> int:
        return int(self._codes().nlist)

    def _search(self, queries: Vectors, k: int, effort: int) -> Found:
        faiss = import_faiss()
        probing = faiss.SearchParametersIVF(sel=self._selector(), nprobe=effort)
        # FAISS ranks k times the factor. The factor is for RECALL_AT neighbours, and fewer need as many candidates.
        candidates = min(self.factor * max(k, RECALL_AT), self.faiss_index.ntotal)
        factor = max(1.0, candidates / k)
        parameters = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=probing)
        similarity, rows = self.faiss_index.search(queries, k, params=parameters)
        return similarity, rows

    def _codes(self) -> Any:
        return import_faiss().downcast_index(self.faiss_index.base_index)

    def _flat(self) -> Any:
        return import_faiss().downcast_index(self.faiss_index.refine_index)


def parts_of(width: int) -> int:
    """Number of codes of a vector: the smallest divisor of the width that leaves parts of at most four numbers."""
    return next(parts for parts in range(-(-width // _PART), width + 1) if width % parts == 0)


def code_bytes(width: int) -> int:
    """Bytes of a vector's code in FAISS, which keeps an even number of codes."""
    return (parts_of(width) + 1) // 2


def _new_codes(vectors: Vectors) -> Any:
    faiss = import_faiss()
    n, width = vectors.shape
    lists = max(1, min(int(np.sqrt(n)), n // _LIST_AT_LEAST))
    centres = faiss.IndexFlatIP(width)
    codes = faiss.IndexIVFPQFastScan(centres, width, lists, parts_of(width), CODE_BITS, faiss.METRIC_INNER_PRODUCT)
    codes.by_residual = True  # of the list's centre: finds more at the same cost
    codes.cp.max_points_per_centroid = _LIST_LEARNS_FROM
    codes.cp.min_points_per_centroid = codes.pq.cp.min_points_per_centroid = 1
    codes.train(vectors)
    return faiss.IndexRefineFlat(codes)
