"""Which structure an index takes, by the number of vectors and the memory that is allowed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from sys import getsizeof
from typing import cast

import numpy as np
from numpy.typing import NDArray

from fewshot.search.engines import (
    QUANTISED_FROM,
    Approximate,
    Engine,
    Exact,
    Structure,
    Vectors,
    build,
    code_bytes,
)
from fewshot.search.faiss_format import MOST_WIDTH
from finetune.errors import InputError

# "auto" tries codes from this number of vectors on: below, exact search answers one query in a few milliseconds, which
# no approximation is worth. It keeps exact search if the codes would cost more than AUTO_SHARE of one in a batch of
# queries; for a single query they cost far less. Codes must find AUTO_RECALL of the neighbours, since they take the
# place of exact search. For 100,000 drawings and photographs, codes are 7 to 8 times as fast as exact in batches,
# and 113 and 62 times for one query; for 30,000, they are 3 to 6, and 61 and 34 times as fast ("rule" in the results of
# benchmarks/index_table.py).
AUTO_FROM = 100_000
AUTO_SHARE = 1 / 4
AUTO_RECALL = 0.99

_LINK_BYTES = 4 * 2 * 32 + 4 + 8  # of a graph: 64 links of a vector on the lowest level, its level and its offset
_ID_BYTES = 8  # of a row in an inverted list; as much again for its place
KEY_BYTES = 240  # of a key without its text: two dictionaries, a number, a place in a list


def memory_of(structure: Structure, n: int, width: int, *, mapped: bool = False) -> int:
    """Bytes that n vectors take in a process that searches them. mapped: The exact vectors are left in their file."""
    vectors = 0 if mapped else 4 * n * width
    if structure == "pq":
        return vectors + n * (code_bytes(width) + _ID_BYTES)
    if structure == "hnsw":
        return vectors + n * _LINK_BYTES
    return vectors + (2 * n * _ID_BYTES if structure == "ivf" else 0)


def memory_of_keys(texts: Iterable[str]) -> int:
    """Bytes of keys, given the text of each with that of its metadata."""
    return sum(getsizeof(text) + KEY_BYTES for text in texts)


def check_limits(width: int, least_recall: float, memory: int | None) -> None:
    """InputError for a width, a floor of the recall or a memory that makes no sense."""
    if not 1 <= width <= MOST_WIDTH:
        bound = ">= 1" if width < 1 else f"<= {MOST_WIDTH}"
        raise InputError(f"width must be {bound}, not {width}")
    if not 0 < least_recall <= 1:
        raise InputError(f"least_recall must be above 0 and at most 1, not {least_recall}")
    if memory is not None and memory < 1:
        raise InputError(f"memory must be >= 1 byte, not {memory}")


@dataclass(frozen=True)
class Choice:
    """Chooses and builds the engine of an index; the fields are those of `Index`.

    Bytes of keys count where there is a limit of memory; give 0 otherwise.
    """

    kind: str
    width: int
    least_recall: float
    memory: int | None
    gpu: bool

    def structure(self, n: int, key_bytes: int) -> Structure:
        """For n vectors. InputError if none fits in the memory."""
        if self.kind == "auto":
            wanted: Structure = "pq" if n >= AUTO_FROM and not self.gpu else "exact"
        else:
            wanted = "exact" if self.kind == "pq" and n < QUANTISED_FROM else cast(Structure, self.kind)
        if self.fits(wanted, n, key_bytes):
            return wanted
        quantised = n >= QUANTISED_FROM and self.kind in ("auto", "pq")
        if quantised and self.fits("pq", n, key_bytes):
            return "pq"
        smallest: Structure = "pq" if quantised else wanted
        takes = (
            f"{n:,} vectors of {self.width} numbers and their keys take {shown(self._takes(smallest, n) + key_bytes)}"
        )
        how = " as codes, with the vectors on disk" if quantised else f" in kind {wanted}"
        raise InputError(
            f"memory {shown(self.memory or 0)} is too little: {takes}{how}; give more"
            + (", take kind auto" if self.kind not in ("auto", "pq") else "")
            + ", or keep them in a Lance table on disk (pip install 'fewtune[lance]')"
        )

    def fits(self, structure: Structure, rows: int, key_bytes: int) -> bool:
        """Whether so many rows, with removed ones, fit in the memory; those of "pq" with their vectors on disk."""
        return self.memory is None or self._takes(structure, rows) + key_bytes <= self.memory

    def outgrown(self, engine: Engine, n: int, new: int, changed: int, built_at: int, key_bytes: int) -> bool:
        """Whether the engine must be rebuilt for n vectors: as many have changed as it was built with, or more are
        removed than remain, or `new` more rows take it beyond the memory. InputError if no structure fits.
        """
        structure = self.structure(n, key_bytes)
        if not self.fits(engine.structure, engine.faiss_index.ntotal + new, key_bytes):
            return True
        if engine.structure == "exact":
            return structure != "exact" and n >= 2 * built_at
        return changed > built_at or engine.removed > n

    def build(self, vectors: Vectors, key_bytes: int) -> tuple[Engine, NDArray[np.int64]]:
        """The engine that suits the vectors (n, width), and the vector of each of its rows."""
        n = len(vectors)
        structure = self.structure(n, key_bytes)
        if structure != "exact":
            order = np.random.default_rng(0).permutation(n)
            floor = max(self.least_recall, AUTO_RECALL) if self.kind == "auto" else self.least_recall
            engine = build(structure, vectors[order], floor=floor, gpu=self.gpu)
            slow = self.kind == "auto" and isinstance(engine, Approximate) and engine.share_compared() > AUTO_SHARE
            if not (slow and self.fits("exact", n, key_bytes)):
                return engine, order
        return Exact.of(vectors, self.gpu), np.arange(n)

    def explained(self, structure: Structure, rows: int, key_bytes: int) -> str:
        """One sentence: what was chosen for the memory, and why."""
        vectors = memory_of(structure, rows, self.width) + key_bytes
        limit = shown(self.memory or 0)
        if self.memory is None or vectors <= self.memory:
            return f"structure {structure}: vectors and keys take {shown(vectors)} of the {limit} allowed"
        return (
            f"structure {structure}: vectors and keys take {shown(vectors)}, more than the {limit} allowed; memory "
            f"holds codes and keys, {shown(self._takes(structure, rows) + key_bytes)}, and searches read the "
            "vectors of the best candidates from disk"
        )

    def _takes(self, structure: Structure, rows: int) -> int:
        return memory_of(structure, rows, self.width, mapped=structure == "pq")


def shown(size: int) -> str:
    """A number of bytes for people, rounded up so that it is enough when given back."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "KB")):
        if size >= unit:
            return f"{-(-size * 10 // unit) / 10:g} {name}"
    return f"{size} bytes"
