"""Vectors laid out in two dimensions, to be looked at: by PCA, or by t-SNE so that neighbours stay neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from finetune.errors import InputError

Method = Literal["t-sne", "pca"]
METHODS: tuple[Method, ...] = ("t-sne", "pca")

# So many take t-SNE some seconds on one core.
MOST = 1200
# Of t-SNE: neighbours that count, about (van der Maaten & Hinton 2008, section 2: 5 to 50).
PERPLEXITY = 30.0
# Dimensions that t-SNE is given, the others being left out by PCA before (section 4.2 of the same).
BEFORE = 50
# Neighbours by which a map is judged.
JUDGED = 10


@dataclass(frozen=True, eq=False)
class Projection:
    """places: (n, 2) float64, from 0 to 1 both ways, one scale for both. method: what laid them out.

    trust: trustworthiness by 10 neighbours (Venna & Kaski 2001), 1 where those who are neighbours on the map are
    neighbours among the vectors too; None where there are too few points to say. variance: of PCA, the share of the
    vectors' variance that the map shows; None for t-SNE.
    """

    places: NDArray[np.float64]
    method: Method
    trust: float | None
    variance: float | None = None


def project(vectors: NDArray[np.float32], method: Method = "t-sne", seed: int = 0) -> Projection:
    """Vectors (n, d) as points of a map. Fewer than four, or all in one place, are laid out by PCA whatever is asked.

    InputError for other shapes, for more than MOST vectors, and for what is not finite.
    """
    if method not in METHODS:
        raise InputError(f"method {method!r}; there are {' and '.join(METHODS)}")
    if vectors.ndim != 2 or not len(vectors) or len(vectors) > MOST:
        raise InputError(f"a map of vectors of shape {vectors.shape}; from 1 to {MOST} rows are wanted")
    if not np.isfinite(vectors).all():
        raise InputError("a map of vectors that are not finite; are the weights finite?")
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    # What rounding leaves of vectors that are all the same is no spread.
    if np.linalg.norm(centred, axis=1).max() <= 1e-6 * max(1.0, float(np.abs(vectors).max())):
        return Projection(np.full((len(vectors), 2), 0.5), "pca", None)
    axes, shares = _principal(centred, BEFORE)
    if method == "t-sne" and len(vectors) > 3:
        flat = _neighbours_kept(axes, seed)
        return Projection(_boxed(flat), "t-sne", _trust(centred, flat))
    flat = axes[:, :2] if axes.shape[1] > 1 else np.pad(axes, ((0, 0), (0, 1)))
    return Projection(_boxed(flat), "pca", _trust(centred, flat), float(shares[:2].sum()))


def _principal(centred: NDArray[np.float64], most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Coordinates (n, k) along the directions of most variance, at most so many, and the share that each shows."""
    from sklearn.decomposition import PCA  # here, because it takes a second to import

    found = PCA(n_components=min(most, *centred.shape), svd_solver="full").fit(centred)
    return found.transform(centred), found.explained_variance_ratio_


def _neighbours_kept(axes: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE

    # A start along the main axes keeps the map's large shape from being chance (Kobak & Berens 2019).
    perplexity = min(PERPLEXITY, (len(axes) - 1) / 3)
    start = "pca" if axes.shape[1] > 1 else "random"
    found = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(axes.astype(np.float32))
    return np.asarray(found, np.float64)


def _trust(vectors: NDArray[np.float64], flat: NDArray[np.float64]) -> float | None:
    from sklearn.manifold import trustworthiness

    neighbours = min(JUDGED, (len(flat) - 1) // 2)
    return float(trustworthiness(vectors, flat, n_neighbors=neighbours)) if neighbours >= 1 else None


def _boxed(flat: NDArray[np.float64]) -> NDArray[np.float64]:
    """Moved and scaled into the unit square, in the middle of the shorter side."""
    low, high = flat.min(0), flat.max(0)
    placed: NDArray[np.float64] = 0.5 + (flat - (low + high) / 2) / max(float((high - low).max()), 1e-12)
    return placed
