"""Exact search by a product of matrices, for several queries that FAISS would compare one by one."""

from __future__ import annotations

from functools import cache
from math import isqrt

import numpy as np
import torch
from torch import Tensor

from fewshot.search.engines.library import Found, Vectors, import_faiss

_AT_ONCE = 1 << 22  # similarities in memory at once: 16 MiB, whatever the gallery; they stay in a processor's cache
_LEAST_ROWS = 1 << 15  # of a block, so that few of its similarities have to be sorted
_LEAST_GROUP = 8  # similarities; smaller groups cost more than sorting all
_FEW = 100_000  # similarities that are sorted as fast as groups of them are found


def by_product(queries: int, width: int) -> bool:
    """Whether a product is faster than FAISS, which reads vectors once for each query, and multiplies matrices itself
    from a size on that it tells.
    """
    return queries > 1 and queries * width < _multiplied_from()


@cache
def _multiplied_from() -> int:
    return int(import_faiss().cvar.distance_compute_blas_threshold)


def search_product(gallery: Vectors, queries: Vectors, k: int) -> Found:
    """The k most similar of `gallery` (n, d) for each of `queries` (m, d), k <= n. Of ties, the order is not defined.

    Similarities are float32 sums in another order than FAISS's: they differ by less than ROUNDING.
    """
    vectors = torch.from_numpy(gallery)
    asked = torch.from_numpy(queries if queries.flags.writeable else np.array(queries))
    if len(asked) * len(vectors) <= _AT_ONCE:
        similarity, found = _best(asked @ vectors.T, k)
        return similarity.numpy(), found.numpy()
    rows = min(max(_AT_ONCE // len(asked), _LEAST_ROWS), len(vectors))
    height = max(1, _AT_ONCE // rows)
    memory = torch.empty(min(height, len(asked)) * rows)  # one for all blocks: new memory costs as much as a product
    parts = [_search_blocks(vectors, part, k, rows, memory) for part in asked.split(height)]
    return torch.cat([part[0] for part in parts]).numpy(), torch.cat([part[1] for part in parts]).numpy()


def _search_blocks(vectors: Tensor, asked: Tensor, k: int, rows: int, memory: Tensor) -> tuple[Tensor, Tensor]:
    """As `search_product`, over blocks of so many rows of `vectors`. memory: For the similarities of one block."""
    best: list[Tensor] = []
    places: list[Tensor] = []
    for first in range(0, len(vectors), rows):
        part = vectors[first : first + rows]
        product = torch.mm(asked, part.T, out=memory[: len(asked) * len(part)].view(len(asked), len(part)))
        similarity, found = _best(product, min(k, len(part)))
        best.append(similarity)
        places.append(found + first)
    if len(best) == 1:
        return best[0], places[0]
    similarity, chosen = torch.cat(best, 1).topk(k, dim=1)
    return similarity, torch.cat(places, 1).gather(1, chosen)


def _best(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of each row (m, n), the largest first, and where they are.

    They lie in the k groups with the largest maxima. So all are read once and few are sorted: the maxima, and the
    members of k groups, which are fewest in groups of the square root of n / k.
    """
    m, n = similarity.shape
    size = isqrt(n // k)
    if size < _LEAST_GROUP or m * n < _FEW:
        values, places = similarity.topk(k, dim=1)
        return values, places
    groups = n // size
    end = groups * size
    largest = similarity[:, :end].unflatten(1, (size, groups)).amax(1)
    chosen = largest.topk(k, dim=1, sorted=False).indices
    inside = (chosen[:, None, :] + groups * torch.arange(size)[None, :, None]).flatten(1)
    if end < n:
        inside = torch.cat([inside, torch.arange(end, n).expand(m, -1)], 1)
    values, places = similarity.gather(1, inside).topk(k, dim=1)
    return values, inside.gather(1, places)
