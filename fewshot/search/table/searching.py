"""Search of a table: exact in one pass over its vectors, or by its vector index."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewshot.search.engines import Vectors
from fewshot.search.faiss_format import SQUARED_WITHIN
from fewshot.search.table.columns import KEY, VECTOR, as_vectors, filterable, key_of
from fewshot.search.table.header import Tuning
from fewshot.search.table.library import lance_errors
from finetune.errors import InputError

# Similarities and keys, both (m, k), the most similar first; -inf and None where fewer are found.
Found = tuple[NDArray[np.float32], NDArray[np.object_]]

# Seconds of one core, measured on tables of 10,000 to 1,000,000 drawings (256 numbers each) and of photographs (1,024).
BY_INDEX = 4e-3  # a query by the vector index, whatever it compares
_COMPARED = {"pq": 1e-9, "ivf": 4e-10}  # a number of a vector that it compares: in codes, or as it is
_READ, _PRODUCT = 3e-9, 2.5e-11  # a number of any vector in a pass over all, and its product with one of a query
_ROWS_AT_ONCE, _QUERIES_AT_ONCE = 8192, 1024
_MOST_BUFFERED = 64 << 20  # bytes that Lance reads ahead; 2 GB without


def pays_index(queries: int, rows: int, width: int, tuning: Tuning) -> bool:
    """Whether the vector index answers so many queries sooner than a pass over all vectors does."""
    compared = rows * tuning.probes / tuning.lists
    by_index = queries * (BY_INDEX + compared * width * _COMPARED[tuning.structure])
    return by_index < rows * width * (_READ + queries * _PRODUCT)


def condition(where: str | None) -> str | None:
    """A user's condition, so that text behind its end is an error, which Lance would ignore."""
    return None if where is None else f"({where}\n)"


def check_condition(dataset: Any, where: str) -> None:
    """InputError unless `where` is a condition on the table's columns."""
    if not where.strip():
        raise InputError("where is empty; give a condition, such as label = 'oak'")
    with lance_errors(f"where {where!r} cannot be used (columns: {', '.join(filterable(dataset.schema))})"):
        dataset.scanner(columns=[KEY], filter=condition(where), limit=1).to_table()


def search(dataset: Any, queries: Vectors, k: int, where: str | None, tuning: Tuning | None, rows: int) -> Found:
    """Search by the vector index where there is one and it is faster, else exactly. rows: Number of vectors."""
    if tuning is None or not pays_index(len(queries), rows, queries.shape[1], tuning):
        return search_exact(dataset, queries, k, where)
    (similarity, keys), short = search_by_index(dataset, queries, k, where, tuning)
    if short.any():  # the lists that were compared hold fewer than k
        similarity[short], keys[short] = search_exact(dataset, queries[short], k, where)
    return similarity, keys


def search_exact(dataset: Any, queries: Vectors, k: int, where: str | None) -> Found:
    """Compare every vector in one pass; memory is that of a block of rows and the result."""
    similarity = np.full((len(queries), k), -np.inf, np.float32)
    offsets = np.full((len(queries), k), -1, np.int64)
    with lance_errors("the table cannot be searched"):
        batches = dataset.scanner(
            columns=[VECTOR, "_rowoffset"],
            filter=condition(where),
            batch_size=_ROWS_AT_ONCE,
            io_buffer_size=_MOST_BUFFERED,
            batch_readahead=2,
        ).to_batches()
        for batch in batches:
            vectors = as_vectors(batch, queries.shape[1])
            if not len(vectors):
                continue
            check_lengths(vectors)
            rows = batch.column("_rowoffset").to_numpy().astype(np.int64)
            for start in range(0, len(queries), _QUERIES_AT_ONCE):
                part = slice(start, start + _QUERIES_AT_ONCE)
                _keep_best(similarity[part], offsets[part], queries[part] @ vectors.T, rows)
    return similarity, _keys_at(dataset, offsets)


def search_by_index(
    dataset: Any, queries: Vectors, k: int, where: str | None, tuning: Tuning
) -> tuple[Found, NDArray[np.bool_]]:
    """Ask the vector index; rows that it does not hold yet are compared by Lance.

    Returns:
        What was found, and for which queries (m,) it is fewer than k.
    """
    similarity = np.full((len(queries), k), -np.inf, np.float32)
    keys = np.full((len(queries), k), None, object)
    short = np.zeros(len(queries), bool)
    for number, query in enumerate(queries):
        with lance_errors("the table cannot be searched"):
            found = dataset.scanner(
                columns=[KEY, "_distance"],
                nearest={
                    "column": VECTOR,
                    "q": query,
                    "k": k,
                    "metric": "cosine",
                    "nprobes": tuning.probes,
                    "refine_factor": tuning.refine,
                },
                filter=condition(where),
                prefilter=True,
                io_buffer_size=_MOST_BUFFERED,
                disable_scoring_autoprojection=True,
            ).to_table()
        n = len(found)
        short[number] = n < k
        similarity[number, :n] = 1 - found["_distance"].to_numpy()
        keys[number, :n] = [key_of(key) for key in found[KEY].to_pylist()]
    return (similarity, keys), short


def check_lengths(vectors: Vectors) -> None:
    """InputError unless all vectors (n, width) have length 1."""
    squared = np.einsum("ij,ij->i", vectors, vectors)
    if not (np.abs(squared - 1) <= SQUARED_WITHIN).all():
        raise InputError("the table holds a vector whose length is not 1; it is damaged")


def _keep_best(
    best: NDArray[np.float32], offsets: NDArray[np.int64], found: NDArray[np.float32], rows: NDArray[np.int64]
) -> None:
    """Replace the k best similarities and their rows by better ones of a block: found (m, n), rows (n,)."""
    k = best.shape[1]
    better = np.flatnonzero(found.max(axis=1) > best[:, -1])
    if not len(better):
        return
    found = found[better]
    if found.shape[1] > k:
        of_block = np.argpartition(-found, k - 1, axis=1)[:, :k]
        found, rows_found = np.take_along_axis(found, of_block, axis=1), rows[of_block]
    else:
        rows_found = np.broadcast_to(rows, found.shape)
    both = np.concatenate([best[better], found], axis=1)
    both_rows = np.concatenate([offsets[better], rows_found], axis=1)
    order = np.argsort(-both, axis=1, kind="stable")[:, :k]
    best[better] = np.take_along_axis(both, order, axis=1)
    offsets[better] = np.take_along_axis(both_rows, order, axis=1)


def _keys_at(dataset: Any, offsets: NDArray[np.int64]) -> NDArray[np.object_]:
    """Keys of rows (m, k); None for row -1."""
    wanted, at = np.unique(offsets, return_inverse=True)
    missing = int(len(wanted) > 0 and wanted[0] < 0)
    with lance_errors("the table cannot be read"):
        names = dataset.take(wanted[missing:].tolist(), columns=[KEY])[KEY].to_pylist() if missing < len(wanted) else []
    keys = np.array([*[None] * missing, *(key_of(name) for name in names)], object)
    found: NDArray[np.object_] = keys[at.reshape(offsets.shape)]
    return found
