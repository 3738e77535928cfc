"""Which pictures a two-dimensional map of the embedding shows, and the map."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from markupsafe import Markup
from numpy.typing import NDArray
from torch import Tensor

from fewshot.report.hardest import HardAlphabet
from fewshot.report.held_out import Tested
from finetune.errors import InputError
from finetune.report.charts import Point, scatter

# As many as the page has colours for that a person still tells apart, and pictures such that each can be pointed at.
_GROUPS, _MOST = 6, 600


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
class Map:
    """rows: of what is shown. groups: their names, in the order of their colours."""

    projection: Projection
    rows: Tensor
    groups: tuple[str, ...]
    chart: Markup


def draw_map(tested: Tested, by_difficulty: Sequence[HardAlphabet] = (), seed: int = 0) -> Map:
    """Alphabets from the hardest to the easiest, evenly spaced, coloured by alphabet; or classes, coloured by class.

    Of each class as many pictures, the first ones, as keep the map within its bound.
    """
    embedded = tested.embedded
    if tested.grouped:
        order = [alphabet.group for alphabet in by_difficulty] or embedded.alphabet.unique().tolist()
        chosen = _spaced(order)
        groups, of = tuple(tested.groups[group] for group in chosen), embedded.alphabet
        names = tested.groups
    else:
        chosen = _spaced(embedded.character.unique().tolist())
        groups, of, names = tuple(tested.names[number] for number in chosen), embedded.character, tested.names
    rows = _first(torch.isin(of, torch.tensor(chosen)).nonzero()[:, 0], embedded.character)
    projection = project(embedded.vectors[rows.to(embedded.vectors.device)].float().cpu().numpy(), seed=seed)
    points = [
        Point(float(x), float(y), tested.described(row), names[int(of[row])], tested.picture(row))
        for (x, y), row in zip(projection.places.tolist(), rows.tolist(), strict=True)
    ]
    title = "Map of the embedding: near means similar"
    return Map(projection, rows, groups, scatter(points, title=title, groups=groups))


def _spaced(order: Sequence[int]) -> list[int]:
    count = min(_GROUPS, len(order))
    places = torch.linspace(0, len(order) - 1, count).round().long().tolist() if count else []
    return [order[place] for place in places]


def _first(rows: Tensor, label: Tensor) -> Tensor:
    """The first pictures of each class among `rows`, as many of each as the bound allows."""
    each = max(1, _MOST // max(1, len(label[rows].unique())))
    seen: dict[int, int] = {}
    kept = []
    for row in rows.tolist():
        number = int(label[row])
        seen[number] = seen.get(number, 0) + 1
        if seen[number] <= each:
            kept.append(row)
    return torch.tensor(kept[:_MOST], dtype=torch.int64)


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
