"""Models that can be measured, by name: encoders, with or without reranking, and baselines that need no training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor

from fewshot.embedding.embedder import Embedder
from fewshot.evaluation.affine import affine_alignment, affine_alignment_of_pairs
from fewshot.evaluation.embedded import Embed
from fewshot.evaluation.protocols import Distance, PairDistance, distance_by
from fewshot.omniglot.dataset import Character
from finetune.errors import InputError

# Neighbours that reranking compares again, and the weight of its distance. Chosen on runs like Lake's, drawn from the
# alphabets in splits.VALIDATION, with an encoder that was not trained on them.
NEAREST, WEIGHT = 5, 0.15


@dataclass(frozen=True, eq=False)
class Model:
    """A distance between drawings, and where it comes from.

    Attributes:
        name: As reports show it.
        distance: Between drawings, for Lake's runs.
        embed: For all other protocols; None if the distance comes from no embedding.
        trained_on: Characters that it was trained on.
        fingerprint: Of its weights; None without weights.
        reranker: The slow distance that `distance` adds for the nearest drawings, and that verification adds to the
            similarity of every pair; None without reranking.
    """

    name: str
    distance: Distance
    embed: Embed | None = None
    trained_on: frozenset[Character] = frozenset()
    fingerprint: str | None = None
    reranker: PairDistance | None = None


def by_embedding(
    name: str, embed: Embed, trained_on: frozenset[Character] = frozenset(), fingerprint: str | None = None
) -> Model:
    """The model that compares embeddings by their cosine."""
    return Model(name, distance_by(embed), embed, trained_on, fingerprint)


def open_model(source: str, *, views: int = 1, rerank: bool = False, device: str = "auto") -> Model:
    """Open a model by name.

    Args:
        source: A name in BASELINES, or an encoder as `Embedder.load` takes it.
        views: As for `Embedder.load`.
        rerank: Compare the nearest drawings again by affine alignment, which is slow.
        device: "auto", "cpu" or "cuda".

    Raises:
        InputError: For another source, and for `views` or `rerank` with a baseline.
    """
    if source in BASELINES:
        if rerank or views > 1:
            raise InputError(f"--views and --rerank are for encoders, not for the baseline {source}")
        return BASELINES[source]
    embedder = Embedder.load(source, views=views, device=device)
    name = source if views == 1 else f"{source}, {views} views"
    plain = by_embedding(name, embedder.embed_drawings, embedder.trained_on, embedder.fingerprint)
    if not rerank:
        return plain
    return replace(
        plain,
        name=f"{name}, reranked by affine alignment",
        distance=reranked(plain.distance, affine_alignment_of_pairs),
        reranker=affine_alignment_of_pairs,
    )


def reranked(fast: Distance, slow: PairDistance, *, nearest: int = NEAREST, weight: float = WEIGHT) -> Distance:
    """`fast`, plus `weight` times `slow` for the `nearest` training drawings of each test drawing.

    These stay nearer than all others. The defaults suit the cosine distance of an encoder and
    `affine_alignment_of_pairs`.
    """
    if nearest < 1:
        raise InputError(f"nearest must be >= 1, not {nearest}")

    def distance(test: Tensor, train: Tensor) -> Tensor:
        first = fast(test, train).double().cpu()
        rows = first.topk(min(nearest, len(train)), largest=False).indices
        second = slow(test.repeat_interleave(rows.shape[1], 0), train[rows.flatten()]).double().cpu().view(rows.shape)
        sums = first.gather(1, rows) + weight * second
        # All other drawings follow after the last of these, in their own order.
        gap = (sums.max(1, keepdim=True).values - first.min(1, keepdim=True).values).clamp_min(0) + 1
        return (first + gap).scatter(1, rows, sums)

    return distance


# --- baselines --------------------------------------------------------------------------------------------------------


def pixel_distance(test: Tensor, train: Tensor) -> Tensor:
    """Cosine distance between drawings as vectors of pixels.

    By the Euclidean distance, drawings with thin strokes would be near to everything. It answers 21.75 % of Lake's 400
    questions; Koch et al. (2015, table 2) give 21.7 % for pixels.

    Args:
        test: Shape (n_test, height, width).
        train: Shape (n_train, height, width).

    Returns:
        Shape (n_test, n_train), float64; 1 for a drawing without ink.
    """
    a, b = test.flatten(1).double(), train.flatten(1).double()
    lengths = a.square().sum(1)[:, None] * b.square().sum(1)
    return 1 - a @ b.T / lengths.sqrt().clamp_min(torch.finfo(torch.float64).tiny)


def modified_hausdorff(test: Tensor, train: Tensor) -> Tensor:
    """Modified Hausdorff distance between drawings whose centres of gravity coincide, in pixels.

    It is the mean distance from an inked pixel to the nearest one of the other drawing, the larger of both directions.

    Args:
        test: Shape (n_test, height, width), ink where not 0.
        train: Shape (n_train, height, width).

    Returns:
        Shape (n_test, n_train), float64.

    Raises:
        InputError: If a drawing has no ink.

    Source: Dubuisson & Jain (1994), "A modified Hausdorff distance for object matching".
    """
    points = [_centred_ink(picture, "test", row) for row, picture in enumerate(test)]
    others = [_centred_ink(picture, "training", row) for row, picture in enumerate(train)]
    there, back = np.empty((len(points), len(others))), np.empty((len(others), len(points)))
    # One tree for each drawing answers for all drawings of the other side at once.
    for targets, queries, means in ((others, points, there.T), (points, others, back.T)):
        every, cuts = np.concatenate(queries), np.cumsum([len(query) for query in queries])[:-1]
        for row, target in enumerate(targets):
            nearest = cKDTree(target, balanced_tree=False, compact_nodes=False).query(every)[0]
            means[row] = [block.mean() for block in np.split(nearest, cuts)]
    return torch.from_numpy(np.maximum(there, back.T))


def _centred_ink(picture: Tensor, kind: str, row: int) -> NDArray[np.float64]:
    """(points, 2): row and column of every inked pixel, relative to their mean."""
    points = picture.nonzero().double()
    if not len(points):
        raise InputError(f"{kind} picture {row} has no ink, so its distances are not defined")
    centred: NDArray[np.float64] = (points - points.mean(0)).numpy()
    return centred


def _pixels(drawings: Tensor) -> Tensor:
    """Vectors of pixels, of drawings at half their size: 32,460 drawings at full size would take 1.4 GB."""
    return F.avg_pool2d(drawings[:, None].float(), 2, ceil_mode=True).flatten(1)


BASELINES: Mapping[str, Model] = {
    "pixels": Model("pixels", pixel_distance, _pixels),
    "hausdorff": Model("hausdorff", modified_hausdorff),
    "affine": Model("affine", affine_alignment),
}
