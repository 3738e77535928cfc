"""Exact search: every vector is compared, on the CPU by FAISS or a product of matrices, or on a GPU."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from fewshot.search.engines.device_gallery import DeviceGallery
from fewshot.search.engines.library import (
    Found,
    Structure,
    Vectors,
    flat_vectors,
    import_faiss,
    reconstructed,
    search_flat,
)
from fewshot.search.engines.pages import LargePages
from fewshot.search.engines.products import by_product, search_product


class Exact:
    """Compares every vector. Rows are 0 to n - 1; the last row takes the place of a removed one."""

    structure: Structure = "exact"
    removed = 0
    effort = 0
    recall = 1.0

    def __init__(self, flat: Any, gpu: bool = False):
        self.faiss_index = flat
        self._searched: Vectors | None = None  # the vectors, as the first search after a change found them
        self._pages = LargePages()
        self._mirror = DeviceMirror(torch.device("cuda")) if gpu else None

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
        if self._mirror is not None:
            return self._mirror.search(self._memory(), queries, k)
        vectors = self._searched
        if vectors is None:
            vectors = self._searched = self._pages.of(self.faiss_index)
        if by_product(len(queries), vectors.shape[1]):
            return search_product(vectors, queries, k)
        return search_flat(self.faiss_index, queries, k)

    def _memory(self) -> Vectors:
        """The vectors (n, d) in FAISS's own memory; valid until their number changes."""
        return flat_vectors(self.faiss_index)

    def _changed(self) -> None:
        self._searched = None
        if self._mirror is not None:
            self._mirror.forget()


class DeviceMirror:
    """A copy of vectors on a device, renewed by the first search after a change.

    The product of matrices is torch's: FAISS finds no more than 2048 neighbours on a GPU, and its searches must take
    turns there.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._gallery: DeviceGallery | None = None
        self._lock = threading.Lock()

    def search(self, vectors: Vectors, queries: Vectors, k: int) -> Found:
        """The k nearest of `vectors`, those of the first search after `forget`."""
        with self._lock:
            if self._gallery is None:
                self._gallery = DeviceGallery(vectors, self._device)
            gallery = self._gallery
        return gallery.search(queries, k)

    def forget(self) -> None:
        self._gallery = None
