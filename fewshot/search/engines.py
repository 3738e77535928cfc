"""Search engines of an index, by FAISS: exact search, and approximate search by inverted lists or a graph."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from finetune.errors import InputError

Structure = Literal["exact", "ivf", "hnsw"]
RECALL_AT = 10  # neighbours
MEASURED_ON = 500  # vectors, or a fifth of them

# Largest difference between equal similarities. Each engine sums a product of unit vectors in its own order, with an
# error of about 6e-8 times the square root of the width in float32: 1e-6 at 256.
ROUNDING = 2e-6

_MOST_ON_GPU = 2048  # neighbours: FAISS's limit on a GPU
_LEAST_EFFORT: dict[Structure, int] = {"ivf": 1, "hnsw": 16}  # lists probed; candidates kept in a graph's search
_MOST_CANDIDATES = 4096
_LINKS, _BUILD_EFFORT = 32, 80  # of a graph: links of a vector, and candidates examined for them
# Vectors of a list: FAISS warns below the first number, and k-means gains little beyond the second.
_LIST_AT_LEAST, _LIST_LEARNS_FROM = 39, 64

Vectors = NDArray[np.float32]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]  # similarities and rows, both (m, k), the most similar first


def import_faiss() -> Any:
    """Import FAISS on first use, since it takes a second. Any: its type hints are incomplete."""
    import faiss

    return faiss


def on_gpu(device: str) -> bool:
    """Whether FAISS searches on a GPU, for the device "auto", "cpu" or "cuda". InputError if "cuda" is missing."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be one of auto, cpu, cuda, not {device!r}")
    if device == "cpu":
        return False
    faiss = import_faiss()
    found = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    if device == "cuda" and not found:
        raise InputError("device cuda: FAISS finds no CUDA device; use cpu or auto")
    return bool(found)


class Exact:
    """Compares every vector. Rows are 0 to n - 1; the last row takes the place of a removed one."""

    structure: Structure = "exact"
    removed = 0
    effort = 0
    recall = 1.0

    def __init__(self, flat: Any, gpu: bool = False):
        self.faiss_index = flat
        self._mirror = GpuMirror(flat) if gpu else None

    @classmethod
    def of(cls, vectors: Vectors, gpu: bool = False) -> Exact:
        faiss = import_faiss()
        engine = cls(faiss.IndexFlatIP(vectors.shape[1]), gpu)
        engine.add(vectors)
        return engine

    def add(self, vectors: Vectors) -> None:
        self.faiss_index.add(vectors)
        self._changed()

    def remove(self, rows: Sequence[int]) -> list[tuple[int, int]]:
        """Remove rows, in time proportional to their number. Returns the rows that moved, (from, to), in order."""
        memory, left, moved = self._memory(), len(self._memory()), []
        # From the highest row down, so that the last row is never one to be removed later.
        for row in sorted(rows, reverse=True):
            left -= 1
            if row != left:
                memory[row] = memory[left]
                moved.append((left, row))
        # FAISS's remove_ids visits all vectors.
        self.faiss_index.codes.resize(left * memory.shape[1] * memory.itemsize)
        self.faiss_index.ntotal = left
        self._changed()
        return moved

    def replace(self, rows: Sequence[int], vectors: Vectors) -> None:
        self._memory()[np.asarray(rows, np.int64)] = vectors
        self._changed()

    def vectors(self, rows: Sequence[int]) -> Vectors:
        return reconstructed(self.faiss_index, rows)

    def search(self, queries: Vectors, k: int) -> Found:
        if self._mirror is not None and k <= _MOST_ON_GPU:
            return self._mirror.search(queries, k)
        return search_flat(self.faiss_index, queries, k)

    def _memory(self) -> Vectors:
        """The vectors (n, d) in FAISS's own memory; valid until their number changes."""
        faiss = import_faiss()
        n, width = self.faiss_index.ntotal, self.faiss_index.d
        if not n:
            return np.empty((0, width), np.float32)
        memory: Vectors = faiss.rev_swig_ptr(self.faiss_index.get_xb(), n * width).reshape(n, width)
        return memory

    def _changed(self) -> None:
        if self._mirror is not None:
            self._mirror.forget()


class GpuMirror:
    """A copy of an exact index on the first GPU, renewed by the first search after a change.

    FAISS cannot remove vectors on a GPU. Searches take turns, since FAISS's GPU resources are not thread-safe.
    """

    def __init__(self, flat: Any):
        faiss = import_faiss()
        self._flat = flat
        self._resources = faiss.StandardGpuResources()
        self._mirrored: Any = None
        self._lock = threading.Lock()

    def search(self, queries: Vectors, k: int) -> Found:
        faiss = import_faiss()
        with self._lock:
            if self._mirrored is None:
                self._mirrored = faiss.index_cpu_to_gpu(self._resources, 0, self._flat)
            similarity, rows = self._mirrored.search(queries, k)
        return similarity, rows

    def forget(self) -> None:
        self._mirrored = None


class Approximate:
    """Inverted lists ("ivf") or a graph ("hnsw"): compares some of the vectors.

    The effort (lists probed, candidates kept) is raised until the recall, measured on some of the index's own vectors,
    reaches a floor. Rows are 0 to n - 1 in the order of adding. A removed row stays in FAISS and is skipped. If a
    search finds fewer than k rows, all vectors are compared.
    """

    def __init__(self, structure: Structure, index: Any, *, effort: int, recall: float, gone: Sequence[int] = ()):
        self.structure = structure
        self.faiss_index = index
        self.effort = effort
        self.recall = recall
        self.removed = 0
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
        k = min(RECALL_AT, self.faiss_index.ntotal)
        if not len(queries):
            return
        # A row as similar as the last true neighbour counts as found, so that ties do not lower the recall.
        least = self._search_all(queries, k)[0][:, -1:] - ROUNDING
        while True:
            found, _ = self._search(queries, k, self.effort)
            self.recall = float((found >= least).mean())
            if self.recall >= floor or self.effort >= self._most_effort():
                return
            self.effort = min(2 * self.effort, self._most_effort())

    def _most_effort(self) -> int:
        return int(self.faiss_index.nlist) if self.structure == "ivf" else _MOST_CANDIDATES

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
        faiss = import_faiss()
        if self.structure == "ivf":
            return self._search(queries, k, self.faiss_index.nlist)
        return search_flat(faiss.downcast_index(self.faiss_index.storage), queries, k, self._selector())

    def _selector(self) -> Any:
        """FAISS's filter for removed rows; None without any, which is faster."""
        faiss = import_faiss()
        return faiss.IDSelectorNot(faiss.IDSelectorBitmap(self._gone)) if self.removed else None


Engine = Exact | Approximate


def effort_bounds(structure: Structure, lists: int) -> tuple[int, int]:
    """Least and largest effort of an engine; `lists`: number of inverted lists."""
    return {"exact": (0, 0), "ivf": (1, lists), "hnsw": (1, _MOST_CANDIDATES)}[structure]


def build(structure: Structure, vectors: Vectors, *, floor: float, gpu: bool) -> Engine:
    """An engine with vectors (n, d) in rows 0 to n - 1; for an approximate one, give them in random order.

    floor: Of the recall of an approximate engine. gpu: Whether an exact one searches on a GPU.
    """
    return Exact.of(vectors, gpu) if structure == "exact" else Approximate.of(structure, vectors, floor)


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
    return Approximate(structure, faiss_index, effort=effort, recall=recall, gone=np.flatnonzero(gone).tolist())


def search_flat(flat: Any, queries: Vectors, k: int, selector: Any = None) -> Found:
    """Compare every vector of an IndexFlat."""
    parameters = None if selector is None else import_faiss().SearchParameters(sel=selector)
    similarity, rows = flat.search(queries, k, params=parameters)
    return similarity, rows


def reconstructed(index: Any, rows: Sequence[int]) -> Vectors:
    """Vectors (len(rows), d) of a FAISS index, bit for bit as they were added."""
    if not len(rows):
        return np.empty((0, index.d), np.float32)
    vectors: Vectors = index.reconstruct_batch(np.asarray(rows, np.int64))
    return vectors


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
