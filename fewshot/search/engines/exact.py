"""Exact search: every vector is compared, on the CPU or on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from fewshot.search.engines.library import Found, Structure, Vectors, import_faiss, reconstructed, search_flat

_MOST_ON_GPU = 2048  # neighbours: FAISS's limit on a GPU


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
