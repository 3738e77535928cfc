"""Exact search by a product of matrices, for few queries at once."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from fewshot.search.engines.library import Found, Vectors

MOST_QUERIES = 999  # FAISS multiplies matrices itself from 1,000 queries on; see benchmarks/index_table.py
LEAST_VECTORS = 20_000  # for one query alone, which FAISS compares faster in smaller galleries

_AT_ONCE = 1 << 22  # similarities in memory at once: 16 MiB, whatever the gallery
_LEAST_ROWS = 4096  # of a block, so that a product is worth its call
_GROUP = 64  # vectors of which the best is found first


def by_product(n: int, queries: int) -> bool:
    """Whether a product is faster than FAISS's exact search for so many vectors and queries."""
    return queries <= MOST_QUERIES and (queries > 1 or n >= LEAST_VECTORS)


def search_product(gallery: Vectors, queries: Vectors, k: int) -> Found:
    """The k most similar of `gallery` (n, d) for each of `queries` (m, d), k <= n. Of ties, the order is not defined.

    Similarities are float32 sums in another order than FAISS's: they differ by less than ROUNDING.
    """
    vectors, asked = (
        torch.from_numpy(gallery),
        torch.from_numpy(queries if queries.flags.writeable else np.array(queries)),
    )
    step = max(_AT_ONCE // len(queries), _LEAST_ROWS)
    if len(vectors) <= step:
        similarity, found = _best(asked @ vectors.T, k)
        return similarity.numpy(), found.numpy()
    best: list[Tensor] = []
    rows: list[Tensor] = []
    for first in range(0, len(vectors), step):
        part = vectors[first : first + step]
        similarity, found = _best(asked @ part.T, min(k, len(part)))
        best.append(similarity)
        rows.append(found + first)
    similarity, places = torch.cat(best, 1).topk(k, dim=1)
    return similarity.numpy(), torch.cat(rows, 1).gather(1, places).numpy()


def _best(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (m, n), the largest first, and where they are.

    They lie in the k groups with the largest maxima, which costs one pass over all and a search among few.
    """
    m, n = similarity.shape
    groups = n // _GROUP
    if groups <= 32 * k:
        values, places = similarity.topk(k, dim=1)
        return values, places
    end = groups * _GROUP
    largest = similarity[:, :end].unflatten(1, (_GROUP, groups)).amax(1)
    chosen = largest.topk(k, dim=1, sorted=False).indices
    inside = (chosen[:, None, :] + groups * torch.arange(_GROUP)[None, :, None]).flatten(1)
    candidates = torch.cat([inside, torch.arange(end, n).expand(m, -1)], 1)
    values, places = similarity.gather(1, candidates).topk(k, dim=1)
    return values, candidates.gather(1, places)
