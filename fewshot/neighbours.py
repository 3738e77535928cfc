"""Exact nearest neighbours by cosine, from a plain product of matrices: what the index is checked against."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from finetune.errors import InputError

Vectors = NDArray[np.float32]
Found = tuple[NDArray[np.float32], NDArray[np.int64]]

# What two similarities may differ by and still tie. Each engine adds up a product of unit vectors in its own order,
# with an error of about float32's 6e-8 times the root of the width: 1e-6 at 256.
ROUNDING = 2e-6


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
