"""What can be measured: an encoder that ships or that a run has left, or a baseline that learned nothing, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch.nn.functional as F
from torch import Tensor

from fewshot.affine import affine_alignment, affine_alignment_of_pairs
from fewshot.baselines import modified_hausdorff, pixel_distance
from fewshot.embedded import Embed
from fewshot.embedding.embedder import Embedder
from fewshot.omniglot.dataset import Character
from fewshot.protocols import Distance, distance_by
from fewshot.reranking import PairDistance, reranked
from finetune.errors import InputError


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
