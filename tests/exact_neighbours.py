"""Exact nearest neighbours by a plain product, and a comparison that allows for ties."""

from __future__ import annotations

import numpy as np

from fewshot.search.engines import ROUNDING, Found, Vectors


def nearest(gallery: Vectors, queries: Vectors, k: int) -> Found:
    """Similarities and rows of the k nearest in `gallery` (n, d) of each of `queries` (m, d), both (m, k)."""
    similarity = queries @ gallery.T
    rows = np.argsort(-similarity, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(similarity, rows, axis=1), rows


def disagreements(one: Found, other: Found) -> int:
    """Number of queries whose neighbours differ. Rows whose similarities tie may be in any order."""
    (first, rows), (second, others) = one, other
    apart = np.abs(first - second) > ROUNDING * np.maximum(1, np.abs(first))
    tied = np.zeros(first.shape, bool)
    close = np.abs(np.diff(first, axis=1)) <= 2 * ROUNDING
    tied[:, 1:] |= close
    tied[:, :-1] |= close
    tied[:, -1] = True  # the last may tie with one that is not listed
    return int((apart | ((rows != others) & ~tied)).any(1).sum())
