"""The map of a report: pictures projected to two dimensions by t-SNE or PCA."""

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
from fewshot.report.held_out import HeldOutPictures
from finetune.errors import InputError
from finetune.report.charts import Point, scatter

Method = Literal["t-sne", "pca"]
METHODS: tuple[Method, ...] = ("t-sne", "pca")

# Most vectors of a projection: t-SNE takes some seconds on one core.
MOST = 1200
# Approximate number of neighbours in t-SNE (van der Maaten & Hinton 2008, section 2: 5 to 50).
PERPLEXITY = 30.0
# Dimensions that PCA keeps before t-SNE (section 4.2 of the same).
BEFORE = 50
# Neighbours for the trustworthiness of a map.
JUDGED = 10

# Groups and pictures of a map: as many as colours are easy to distinguish, and as dots can be pointed at.
_GROUPS, _MOST_PICTURES = 6, 600


@dataclass(frozen=True, eq=False)
class Projection:
    """Vectors in two dimensions.

    Attributes:
        places: Shape (n, 2), float64, from 0 to 1, with one scale for both axes.
        method: That was used.
        trust: Trustworthiness with 10 neighbours, 1 if all neighbours on the map are neighbours among the vectors; None
            for too few points. Source: Venna & Kaski (2001).
        variance: Share of the variance that PCA keeps; None for t-SNE.
    """

    places: NDArray[np.float64]
    method: Method
    trust: float | None
    variance: float | None = None


@dataclass(frozen=True, eq=False)
class Map:
    """A map: the rows shown, and the names of the groups in the order of their colours."""

    projection: Projection
    rows: Tensor
    groups: tuple[str, ...]
    chart: Markup


def draw_map(tested: HeldOutPictures, by_difficulty: Sequence[HardAlphabet] = (), seed: int = 0) -> Map:
    """Draw the map: alphabets from the hardest to the easiest at even steps, or classes of a folder.

    Every class shows its first pictures, equally many.
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
        Point(float(x), float(y), tested.captions[row], names[int(of[row])], tested.picture(row))
        for (x, y), row in zip(projection.places.tolist(), rows.tolist(), strict=True)
    ]
    title = "Map of the embedding: near means similar"
    return Map(projection, rows, groups, scatter(points, title=title, groups=groups))


def _spaced(order: Sequence[int]) -> list[int]:
    count = min(_GROUPS, len(order))
    places = torch.linspace(0, len(order) - 1, count).round().long().tolist() if count else []
    return [order[place] for place in places]


def _first(rows: Tensor, label: Tensor) -> Tensor:
    """The first pictures of each class among `rows`, equally many, within the limit."""
    each = max(1, _MOST_PICTURES // max(1, len(label[rows].unique())))
    seen: dict[int, int] = {}
    kept = []
    for row in rows.tolist():
        number = int(label[row])
        seen[number] = seen.get(number, 0) + 1
        if seen[number] <= each:
            kept.append(row)
    return torch.tensor(kept[:_MOST_PICTURES], dtype=torch.int64)


def project(vectors: NDArray[np.float32], method: Method = "t-sne", seed: int = 0) -> Projection:
    """Project vectors to two dimensions.

    Args:
        vectors: Shape (n, d), n from 1 to MOST. Fewer than four, or all equal, are projected by PCA.
        method: "t-sne" or "pca".
        seed: Of t-SNE.

    Raises:
        InputError: For other shapes, and numbers that are not finite.
    """
    if method not in METHODS:
        raise InputError(f"method must be {' or '.join(METHODS)}, not {method!r}")
    if vectors.ndim != 2 or not len(vectors) or len(vectors) > MOST:
        raise InputError(f"the vectors of a map must have shape (n, d) with n from 1 to {MOST}, not {vectors.shape}")
    if not np.isfinite(vectors).all():
        raise InputError("the vectors of a map must be finite; check that the weights are finite")
    centred = vectors.astype(np.float64) - vectors.mean(0, dtype=np.float64)
    # Equal vectors differ by rounding alone.
    if np.linalg.norm(centred, axis=1).max() <= 1e-6 * max(1.0, float(np.abs(vectors).max())):
        return Projection(np.full((len(vectors), 2), 0.5), "pca", None)
    axes, shares = _principal(centred, BEFORE)
    if method == "t-sne" and len(vectors) > 3:
        flat = _t_sne(axes, seed)
        return Projection(_boxed(flat), "t-sne", _trust(centred, flat))
    flat = axes[:, :2] if axes.shape[1] > 1 else np.pad(axes, ((0, 0), (0, 1)))
    return Projection(_boxed(flat), "pca", _trust(centred, flat), float(shares[:2].sum()))


def _principal(centred: NDArray[np.float64], most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Principal components (n, k), at most `most`, and their shares of the variance."""
    from sklearn.decomposition import PCA  # here, because it takes a second to import

    found = PCA(n_components=min(most, *centred.shape), svd_solver="full").fit(centred)
    return found.transform(centred), found.explained_variance_ratio_


def _t_sne(axes: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    from sklearn.manifold import TSNE

    # Starting from the principal axes makes the global layout reproducible (Kobak & Berens 2019).
    perplexity = min(PERPLEXITY, (len(axes) - 1) / 3)
    start = "pca" if axes.shape[1] > 1 else "random"
    found = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(axes.astype(np.float32))
    return np.asarray(found, np.float64)


def _trust(vectors: NDArray[np.float64], flat: NDArray[np.float64]) -> float | None:
    from sklearn.manifold import trustworthiness

    neighbours = min(JUDGED, (len(flat) - 1) // 2)
    return float(trustworthiness(vectors, flat, n_neighbors=neighbours)) if neighbours >= 1 else None


def _boxed(flat: NDArray[np.float64]) -> NDArray[np.float64]:
    """Places moved and scaled into the unit square, centred on the shorter side."""
    low, high = flat.min(0), flat.max(0)
    placed: NDArray[np.float64] = 0.5 + (flat - (low + high) / 2) / max(float((high - low).max()), 1e-12)
    return placed
