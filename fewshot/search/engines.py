"""What an index searches with, through FAISS: every vector (exact), inverted lists or a graph (approximate)."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.errors import InputError

Structure = Literal["exact", "ivf", "hnsw"]
RECALL_AT = 10  # neighbours
MEASURED_ON = 500  # vectors, or a fifth of them

_MOST_ON_GPU = 2048  # neighbours that FAISS finds on a GPU
_LEAST_EFFORT: dict[Structure, int] = {"ivf": 1, "hnsw": 16}  # lists probed; candidates that a graph's search keeps
_MOST_CANDIDATES = 4096
_LINKS, _BUILD_EFFORT = 32, 80  # of a graph: links of a vector; candidates looked at for them
_LIST_AT_LEAST, _LIST_LEARNS_FROM = 39, 64  # vectors: below the first FAISS warns, past the second k-means gains little


Vectors = NDArray[np.float32]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]

# What two similarities may differ by and still tie. Each engine adds up a product of unit vectors in its own order,
# with an error of about float32's 6e-8 times the root of the width: 1e-6 at 256.
ROUNDING = 2e-6


def import_faiss() -> Any:
    """FAISS, when first needed: it takes a second to import. Any, since its own types name half of what it has."""
    import faiss

    return faiss


def on_gpu(device: str) -> bool:
    """Whether FAISS is to search on a GPU. device: "auto", "cpu" or "cuda"; InputError for "cuda" where there is none,
    and for other names."""
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"device must be one of auto, cpu, cuda, not {device!r}")
    if device == "cpu":
        return False
    faiss = import_faiss()
    found = hasattr(faiss, "StandardGpuResources") and faiss.get_num_gpus() > 0
    if device == "cuda" and not found:
        raise InputError("device cuda: FAISS sees no CUDA device here; use cpu or auto")
    return bool(found)


class Exact:
    """Every vector compared. Rows are 0 to n - 1; where one is removed, the last takes its place."""

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
        """Rows that moved, (from, to), in order. Takes time by how many are removed, not by how many there are."""
        memory, left, moved = self._memory(), len(self._memory()), []
        # From the highest down, so that the last is never one that has yet to go.
        for row in sorted(rows, reverse=True):
            left -= 1
            if row != left:
                memory[row] = memory[left]
                moved.append((left, row))
        # FAISS's own remove_ids passes over all of the vectors.
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
        """(n, d) the vectors where FAISS keeps them, until the next change of their number."""
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
    """An exact index's vectors on the first GPU, copied there when first asked after a change: FAISS cannot remove
    there. One search at a time, since FAISS's resources of a GPU are not for several threads."""

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
    """Inverted lists ("ivf") or a graph ("hnsw"): some of the vectors compared, by an effort (lists probed, candidates
    kept) that is raised until the recall reaches a floor, measured on some of its own vectors.

    Rows are 0 to n - 1 in order of adding. A removed one stays, and is passed over. A query that the effort finds fewer
    than k rows for is answered by comparing all.
    """

    def __init__(self, structure: Structure, index: Any, *, effort: int, recall: float, gone: Sequence[int] = ()):
        self.structure = structure
        self.faiss_index = index
        self.effort = effort
        self.recall = recall
        self.removed = 0
        self._gone = np.zeros(0, np.uint8)  # a bit for each row; rows past its end are there
        self.remove(gone)

    @classmethod
    def of(cls, structure: Structure, vectors: Vectors, floor: float) -> Approximate:
        """Built from (n, d) vectors in random order; n may be 0. floor: of the recall, in (0, 1].

        The last are asked for their neighbours before they are added: a graph finds what is in it far more easily than
        what is not.
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
        """Rows that moved: none do."""
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
        similarity, rows = self._look(queries, k, self.effort)
        short = rows[:, -1] < 0
        if short.any():
            similarity[short], rows[short] = self._look_at_all(queries[short], k)
        return similarity, rows

    def share_compared(self) -> float:
        """Share of the vectors that a search compares, about."""
        return self.effort / self._most_effort() if self.structure == "ivf" else self.effort / self.faiss_index.ntotal

    def _tune(self, queries: Vectors, floor: float) -> None:
        """The least effort whose recall reaches `floor`, each twice the one before; the greatest where none does."""
        k = min(RECALL_AT, self.faiss_index.ntotal)
        if not len(queries):
            return
        # As similar as the last of the true neighbours counts as one of them, so that ties cost nothing.
        least = self._look_at_all(queries, k)[0][:, -1:] - ROUNDING
        while True:
            found, _ = self._look(queries, k, self.effort)
            self.recall = float((found >= least).mean())
            if self.recall >= floor or self.effort >= self._most_effort():
                return
            self.effort = min(2 * self.effort, self._most_effort())

    def _most_effort(self) -> int:
        return int(self.faiss_index.nlist) if self.structure == "ivf" else _MOST_CANDIDATES

    def _look(self, queries: Vectors, k: int, effort: int) -> Found:
        faiss = import_faiss()
        selector = self._selector()
        if self.structure == "ivf":
            parameters = faiss.SearchParametersIVF(sel=selector, nprobe=effort)
        else:
            parameters = faiss.SearchParametersHNSW(sel=selector, efSearch=max(effort, k))
        similarity, rows = self.faiss_index.search(queries, k, params=parameters)
        return similarity, rows

    def _look_at_all(self, queries: Vectors, k: int) -> Found:
        faiss = import_faiss()
        if self.structure == "ivf":
            return self._look(queries, k, self.faiss_index.nlist)
        return search_flat(faiss.downcast_index(self.faiss_index.storage), queries, k, self._selector())

    def _selector(self) -> Any:
        """FAISS's way to pass over what was removed; None where nothing was, which is faster."""
        faiss = import_faiss()
        return faiss.IDSelectorNot(faiss.IDSelectorBitmap(self._gone)) if self.removed else None


Engine = Exact | Approximate


def build(structure: Structure, vectors: Vectors, *, floor: float, gpu: bool) -> Engine:
    """An engine with (n, d) `vectors` in rows 0 to n - 1; in random order, if approximate.

    floor: of the recall, if approximate. gpu: whether to search there, if exact.
    """
    return Exact.of(vectors, gpu) if structure == "exact" else Approximate.of(structure, vectors, floor)


def restore(
    structure: Structure, faiss_index: Any, rows: Sequence[int], *, effort: int, recall: float, gpu: bool
) -> Engine:
    """An engine from its FAISS index as it was saved, of which `rows` are there. ValueError where these disagree."""
    faiss = import_faiss()
    types = {"exact": faiss.IndexFlat, "ivf": faiss.IndexIVFFlat, "hnsw": faiss.IndexHNSWFlat}
    gone = np.ones(faiss_index.ntotal, bool)
    if rows and not 0 <= min(rows) <= max(rows) < len(gone):
        raise ValueError("a row that FAISS does not have")
    gone[list(rows)] = False
    if not isinstance(faiss_index, types[structure]) or len(set(rows)) != len(rows):
        raise ValueError("another structure, or two keys with one row")
    if structure == "exact":
        if gone.any():
            raise ValueError("a vector without a key")
        return Exact(faiss_index, gpu)
    return Approximate(structure, faiss_index, effort=effort, recall=recall, gone=np.flatnonzero(gone).tolist())


def search_flat(flat: Any, queries: Vectors, k: int, selector: Any = None) -> Found:
    """Every vector of an IndexFlat compared."""
    parameters = None if selector is None else import_faiss().SearchParameters(sel=selector)
    similarity, rows = flat.search(queries, k, params=parameters)
    return similarity, rows


def reconstructed(index: Any, rows: Sequence[int]) -> Vectors:
    """(len(rows), d) vectors of a FAISS index, bit for bit as they were added."""
    if not len(rows):
        return np.empty((0, index.d), np.float32)
    vectors: Vectors = index.reconstruct_batch(np.asarray(rows, np.int64))
    return vectors


def _new_lists(vectors: Vectors) -> Any:
    faiss = import_faiss()
    n, width = vectors.shape
    lists = max(1, min(int(2 * np.sqrt(n)), n // _LIST_AT_LEAST))
    # Any single direction stands for one list, even of none.
    learned_from = vectors if n else np.eye(1, width, dtype=np.float32)
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(width), width, lists, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid = _LIST_LEARNS_FROM
    index.cp.min_points_per_centroid = 1 if lists == 1 else _LIST_AT_LEAST
    index.train(learned_from)
    index.set_direct_map_type(faiss.DirectMap.Array)  # without it a vector cannot be had back by its row
    return index


def _new_graph(width: int) -> Any:
    faiss = import_faiss()
    index = faiss.IndexHNSWFlat(width, _LINKS, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = _BUILD_EFFORT
    return index


def nearest(gallery: Vectors, queries: Vectors, k: int) -> Found:
    """The k most similar to each of `queries` (m, d) in `gallery` (n, d), the most similar first: how similar they are,
    and their rows, both (m, k). Unit vectors are wanted.

    InputError for k out of range, other shapes, and vectors that are not of length 1.
    """
    if gallery.ndim != 2 or queries.ndim != 2 or gallery.shape[1] != queries.shape[1]:
        raise InputError(f"a gallery of shape {gallery.shape} cannot be asked by queries of shape {queries.shape}")
    if not 1 <= k <= len(gallery):
        raise InputError(f"{k} neighbours of {len(gallery)}; from 1 to as many as there are can be asked for")
    for name, vectors in (("gallery", gallery), ("queries", queries)):
        if not np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-3):
            raise InputError(f"{name}: vectors of length 1 are wanted; is one of them not a number, or not normalised?")
    held, asked = (torch.from_numpy(np.ascontiguousarray(vectors, np.float32)) for vectors in (gallery, queries))
    similarity, rows = (asked @ held.T).topk(k, dim=1)
    return similarity.numpy(), rows.numpy()


def disagreements(one: Found, other: Found) -> int:
    """How many queries' neighbours differ, ties aside: at some place the similarities differ by more than rounding
    does, or another row stands there though no other is as similar."""
    (first, rows), (second, others) = one, other
    apart = np.abs(first - second) > ROUNDING * np.maximum(1, np.abs(first))
    # A row may change places with those that tie with it; past the last place there is nothing to compare with.
    tied = np.zeros(first.shape, bool)
    close = np.abs(np.diff(first, axis=1)) <= 2 * ROUNDING
    tied[:, 1:] |= close
    tied[:, :-1] |= close
    tied[:, -1] = True
    return int((apart | ((rows != others) & ~tied)).any(1).sum())
