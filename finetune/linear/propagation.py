"""Label propagation: labels spread from labelled pictures to unlabelled ones, over a graph of nearest neighbours.

Zhou et al. (2004), Learning with Local and Global Consistency, NIPS; the graph and the confidence-weighted soft labels
as in Iscen et al. (2019), Label Propagation for Deep Semi-supervised Learning, CVPR, section 4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from finetune.linear.ridge import FALLING
from finetune.models.depth_head import unit_depths

if TYPE_CHECKING:
    from scipy.sparse import csr_array

# Neighbours of each picture, and the power of their cosine that is the weight of an edge.
NEIGHBOURS, POWER = 10, 3
# Exponent that sharpens soft labels before a head learns from them.
SHARPER = 2
# A picture that receives less than this share of the mean mass of its class hardly counts: it is far from all labels.
FAR = 0.1
# Bounds of the factor that makes the classes of the unlabelled pictures as frequent as those of the labelled ones.
_REBALANCED = (0.25, 4.0)

_ROWS = 1024  # of similarities computed at a time


@dataclass(frozen=True)
class PictureGraph:
    """A symmetric graph of nearest neighbours over n pictures, normalised by degree.

    Attributes:
        edges: Sparse matrix (n, n), float32.
    """

    edges: csr_array

    @classmethod
    def of(cls, vectors: Tensor) -> PictureGraph:
        """The graph of unit vectors (n, width)."""
        from scipy.sparse import coo_array  # imported here because it is slow to import

        n = len(vectors)
        count = min(NEIGHBOURS, n - 1)
        near, cosines = [], []
        for start in range(0, n, _ROWS):
            similar = vectors[start : start + _ROWS] @ vectors.T
            rows = torch.arange(len(similar))
            similar[rows, rows + start] = -torch.inf
            values, places = similar.topk(count, 1)
            near.append(places)
            cosines.append(values)
        weights = torch.cat(cosines).clamp_min(1e-3).pow(POWER).flatten().numpy()
        ends = np.repeat(np.arange(n), count), torch.cat(near).flatten().numpy()
        one_way = coo_array((weights, ends), shape=(n, n)).tocsr()
        both = (one_way + one_way.T) / 2
        root = np.sqrt(np.maximum(both.sum(1), 1e-12)).astype(np.float32)
        return cls((both / root[:, None] / root[None, :]).tocsr())

    def spread(self, seeds: Tensor, alpha: float) -> Tensor:
        """Mass (n, classes) that arrives from seeds (n, classes), of which a share `alpha` goes on at every step."""
        start = seeds.numpy()
        found = start
        for _ in range(round(3 / (1 - alpha))):
            found = alpha * (self.edges @ found) + start
        return torch.from_numpy(np.ascontiguousarray(found, dtype=np.float32))


@dataclass(frozen=True)
class SoftLabels:
    """Labels of n pictures by propagation.

    Attributes:
        probabilities: Shape (n, classes).
        weights: Shape (n,), how much each picture counts, near 0 for one that is far from all labels.
        shift: Difference of the frequencies of the classes between unlabelled and labelled pictures, 0 to 1: the share
            of the unlabelled pictures that would need another class.
    """

    probabilities: Tensor
    weights: Tensor
    shift: float


def propagated(graph: PictureGraph, labelled: Tensor, labels: Tensor, classes: int, opinions: Tensor) -> SoftLabels:
    """Soft labels of every picture of the graph.

    The more pictures of a class are labelled, the shorter is the way of their labels, and the more counts the opinion
    of a head that learned from them alone.

    Args:
        graph: Over n pictures.
        labelled: Positions (m,) of pictures with labels.
        labels: Their labels (m,), int64.
        classes: Number of classes.
        opinions: Probabilities (n, classes) by a head that learned from the labelled pictures.
    """
    per_class = len(labelled) / classes
    alpha = 0.95 - 0.1 * max(0.0, 1 - 4 / (per_class + 3))
    trust = 0.3 * max(0.0, per_class - 2) / (per_class + 4)
    seeds = torch.zeros(len(opinions), classes)
    seeds[labelled, labels] = 1
    mass = graph.spread(seeds, alpha)
    mixed = trust * opinions
    mixed[labelled] = seeds[labelled]
    shares = _shares(graph.spread(mixed, alpha) if trust else mass)
    unlabelled = torch.ones(len(opinions), dtype=torch.bool)
    unlabelled[labelled] = False
    arrived = mass[unlabelled]
    # The mean over the mass, which pictures of no class hardly receive, however many they are.
    typical = arrived.square().sum(0) / arrived.sum(0).clamp_min(1e-12)
    weights = (shares * mass / (mass + FAR * typical).clamp_min(1e-12)).sum(1)
    sharp = _shares(shares.clamp_min(1e-9) ** SHARPER)
    found = (sharp * weights[:, None])[unlabelled].sum(0)
    frequency = torch.bincount(labels, minlength=classes) / len(labels)
    found = found / found.sum().clamp_min(1e-12)
    factor = (frequency / found.clamp_min(1e-9)).clamp(*_REBALANCED)
    return SoftLabels(sharp, weights * (sharp @ factor), float((found - frequency).abs().sum()) / 2)


def _shares(mass: Tensor) -> Tensor:
    return mass / mass.sum(1, keepdim=True).clamp_min(1e-12)


def unit_vectors(pooled: Tensor, widths: Sequence[int]) -> Tensor:
    """Unit vectors (n, width) of the last depths of activations, each depth of unit length times its factor."""
    read, factors = last_depths(widths)
    parts = unit_depths(pooled[:, -sum(read) :], read).split(read, 1)
    return nn.functional.normalize(torch.cat([factor * part for part, factor in zip(parts, factors, strict=True)], 1))


def last_depths(widths: Sequence[int]) -> tuple[list[int], tuple[float, ...]]:
    """The widths of the last depths, and their factors."""
    depths = min(len(widths), len(FALLING))
    return list(widths[-depths:]), FALLING[-depths:]
