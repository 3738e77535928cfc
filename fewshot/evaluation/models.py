"""What can be measured: an encoder that ships or that a run has left, or a baseline that learned nothing, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fewshot.embedding.embedder import Embedder
from fewshot.evaluation.affine import affine_alignment, affine_alignment_of_pairs
from fewshot.evaluation.embedded import Embed
from fewshot.evaluation.protocols import Distance, distance_by
from fewshot.omniglot.dataset import Character
from finetune.errors import InputError

# Pictures (n, 105, 105) and as many others, uint8, ink 255 on 0, to (n,): of each and the other at its place.
PairDistance = Callable[[Tensor, Tensor], Tensor]

# Chosen on runs made like Lake's of the alphabets in splits.VALIDATION, by an encoder that was not trained on them.
NEAREST, WEIGHT = 5, 0.15


@dataclass(frozen=True, eq=False)
class Model:
    """distance: between pictures, for Lake's runs. embed: for everything else; None for a distance that comes from no
    embedding. trained_on: the characters it learned from. fingerprint: of its weights; None without any. again: what
    the pictures of few pairs are compared by besides their vectors; `distance` makes use of it already."""

    name: str
    distance: Distance
    embed: Embed | None = None
    trained_on: frozenset[Character] = frozenset()
    fingerprint: str | None = None
    again: PairDistance | None = None


def by_embedding(
    name: str, embed: Embed, trained_on: frozenset[Character] = frozenset(), fingerprint: str | None = None
) -> Model:
    """A model that is an embedding alone, compared by the cosine."""
    return Model(name, distance_by(embed), embed, trained_on, fingerprint)


def open_model(source: str, *, views: int = 1, rerank: bool = False, device: str = "auto") -> Model:
    """`source`: "pixels", "hausdorff" or "affine", "omniglot" for the encoder that ships, or a run's folder.

    views: what the vector of a picture is averaged over, 1 being the picture alone. rerank: the few nearest are
    compared again by affine alignment, which protocols of few comparisons alone can measure. InputError for anything
    else.
    """
    if source in BASELINES:
        if rerank or views > 1:
            raise InputError(f"--views and --rerank are for encoders; {source} has learned nothing")
        return BASELINES[source]()
    embedder = Embedder.load(source, views=views, device=device)
    name = source if views == 1 else f"{source}, {views} views"
    plain = by_embedding(name, embedder.embed_drawings, embedder.trained_on, embedder.fingerprint)
    if not rerank:
        return plain
    return replace(
        plain,
        name=f"{name}, compared again by affine alignment",
        distance=reranked(plain.distance, affine_alignment_of_pairs),
        again=affine_alignment_of_pairs,
    )


def _pixels(drawings: Tensor) -> Tensor:
    """Halved, which spares memory: 32,460 drawings as they are would take 1.4 GB."""
    return F.avg_pool2d(drawings[:, None].float(), 2, ceil_mode=True).flatten(1)


BASELINES: dict[str, Callable[[], Model]] = {
    "pixels": lambda: Model("pixels", pixel_distance, _pixels),
    "hausdorff": lambda: Model("hausdorff", modified_hausdorff),
    "affine": lambda: Model("affine", affine_alignment),
}


def pixel_distance(test: Tensor, train: Tensor) -> Tensor:
    """Cosine distance, 1 - cos, between pictures as vectors of pixels, (n_test, n_train) float64.

    test, train: (n, height, width). The angle rather than the Euclidean distance, to which thin strokes are near to
    everything. Right on 21.75 % of Lake's 400 questions; published for pixels is 21.7 % (Koch et al. 2015, table 2). A
    picture without ink is at distance 1 from all.
    """
    a, b = test.flatten(1).double(), train.flatten(1).double()
    lengths = a.square().sum(1)[:, None] * b.square().sum(1)
    return 1 - a @ b.T / lengths.sqrt().clamp_min(torch.finfo(torch.float64).tiny)


def modified_hausdorff(test: Tensor, train: Tensor) -> Tensor:
    """Modified Hausdorff distance of Dubuisson & Jain (1994), (n_test, n_train) float64, in pixels.

    test, train: (n, height, width), ink where not 0. The inked pixels, their centre of gravity moved to the origin, are
    compared: the mean distance to the other picture's nearest, the larger of the two ways. InputError without ink.
    """
    from sklearn.neighbors import KDTree  # here, because it takes a second to import

    points = [_centred_ink(picture, "test", row) for row, picture in enumerate(test)]
    others = [_centred_ink(picture, "training", row) for row, picture in enumerate(train)]
    there, back = np.empty((len(points), len(others))), np.empty((len(others), len(points)))
    # One tree answers for all the pictures of the other side at once. Its distances are exact.
    for targets, queries, means in ((others, points, there.T), (points, others, back.T)):
        every, cuts = np.concatenate(queries), np.cumsum([len(query) for query in queries])[:-1]
        for row, target in enumerate(targets):
            nearest = KDTree(target).query(every)[0][:, 0]
            means[row] = [block.mean() for block in np.split(nearest, cuts)]
    return torch.from_numpy(np.maximum(there, back.T))


def _centred_ink(picture: Tensor, kind: str, row: int) -> NDArray[np.float64]:
    """(points, 2): row and column of every inked pixel, less their mean."""
    points = picture.nonzero().double()
    if not len(points):
        raise InputError(f"{kind} picture {row} has no ink, so that no distance to it is defined")
    centred: NDArray[np.float64] = (points - points.mean(0)).numpy()
    return centred


def reranked(fast: Distance, slow: PairDistance, *, nearest: int = NEAREST, weight: float = WEIGHT) -> Distance:
    """`fast`, with `weight` times `slow` added for the `nearest` training pictures of each test picture; those stay
    before all others, whatever comes out.

    The defaults are for the cosine distance of an encoder and for fewshot.evaluation.affine.affine_alignment_of_pairs.
    """
    if nearest < 1:
        raise InputError(f"{nearest} nearest to look at again; at least 1 is wanted")

    def distance(test: Tensor, train: Tensor) -> Tensor:
        first = fast(test, train).double().cpu()
        rows = first.topk(min(nearest, len(train)), largest=False).indices
        again = slow(test.repeat_interleave(rows.shape[1], 0), train[rows.flatten()]).double().cpu().view(rows.shape)
        sums = first.gather(1, rows) + weight * again
        # Further ones begin after the last of these, in their own order.
        gap = (sums.max(1, keepdim=True).values - first.min(1, keepdim=True).values).clamp_min(0) + 1
        return (first + gap).scatter(1, rows, sums)

    return distance
