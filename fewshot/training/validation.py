"""Validation of a Siamese network during training, on held-out pictures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from fewshot.embedding.framing import FramedPictures, frame_drawings
from fewshot.evaluation.embedded import EmbeddedDrawings, turned
from fewshot.evaluation.episodes import Episodes, arrange, sample, score_episodes
from fewshot.evaluation.verification import Pairs, best_threshold, draw_pairs, similarity
from fewshot.omniglot.dataset import Omniglot

# Episodes or pairs of a validation, and most classes of an episode.
EPISODES, MOST_WAYS = 4000, 20


class Validation(Protocol):
    """Measures the embeddings of held-out pictures. name: such as "20-way 1-shot"."""

    @property
    def name(self) -> str: ...
    @property
    def pictures(self) -> FramedPictures: ...

    def accuracy(self, vectors: Tensor) -> float:
        """Accuracy, in [0, 1], of the embeddings (n, d) of the pictures, of unit length."""
        ...


@dataclass(frozen=True, eq=False)
class OneShotValidation:
    """Classification from one example, on episodes that are drawn once."""

    name: str
    pictures: FramedPictures
    episodes: Episodes

    def accuracy(self, vectors: Tensor) -> float:
        """Share of queries whose nearest example is of their class."""
        return float(score_episodes(vectors, self.episodes).credit.mean())


@dataclass(frozen=True, eq=False)
class PairValidation:
    """Same or different, on pairs that are drawn once."""

    pictures: FramedPictures
    pairs: Pairs
    name: str = "same or different"

    def accuracy(self, vectors: Tensor) -> float:
        """Share of pairs that the best threshold decides correctly."""
        scores = similarity(vectors, self.pairs.rows)
        return float(((scores >= best_threshold(scores, self.pairs.same)) == self.pairs.same).float().mean())


def one_shot_validation(pictures: FramedPictures, labels: Tensor, groups: Tensor | None) -> OneShotValidation:
    """Episodes of 20 classes of one group, or of all where a group has fewer. labels, groups: (n,) int64."""
    pool = arrange(labels, groups)
    way = min(MOST_WAYS, int(pool.member_sizes.min()))
    episodes = sample(pool, EPISODES, way=way, shot=1, generator=torch.Generator().manual_seed(0))
    return OneShotValidation(f"{way}-way 1-shot", pictures, episodes)


def omniglot_validation(omniglot: Omniglot, split: str, pictures: FramedPictures, side: int) -> Validation:
    """What the protocol of `split` measures, on held-out drawings. pictures: the drawings, framed for `side`."""
    if split == "koch":
        unembedded = EmbeddedDrawings(
            vectors=torch.empty(len(omniglot), 0),
            character=omniglot.character,
            drawer=omniglot.drawer,
            turn=torch.zeros_like(omniglot.character),
            characters=omniglot.characters,
        )
        return PairValidation(pictures, draw_pairs(unembedded, EPISODES, torch.Generator().manual_seed(0)))
    if split == "vinyals":
        drawings, labels = turned(omniglot.pictures, omniglot.character, len(omniglot.characters))
        return one_shot_validation(frame_drawings(drawings, side), labels, None)
    return one_shot_validation(pictures, omniglot.character, omniglot.alphabet)
