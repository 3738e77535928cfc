"""The unlabelled pictures that would teach most if they had labels: doubtful ones that differ from one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.linear.head import FALLING
from finetune.linear.propagation import unit_vectors


@dataclass(frozen=True)
class Teaching:
    """An unlabelled picture by its row, and why a label for it would teach.

    Attributes:
        row: Row of the picture.
        predicted: Most probable class.
        probability: Of that class, in [0, 1].
        second: Class that is next in probability.
        doubt: 1 minus the difference of both probabilities, in [0, 1].
        novelty: 1 minus the cosine with the nearest picture that is labelled or listed before it, 0 or more.
        score: doubt times novelty, times the weight of the picture among the unlabelled ones.
    """

    row: int
    predicted: int
    probability: float
    second: int
    doubt: float
    novelty: float
    score: float


def label_next(
    labelled: Tensor,
    unlabelled: Tensor,
    widths: Sequence[int],
    probabilities: Tensor,
    weights: Tensor,
    count: int,
) -> list[Teaching]:
    """Choose the unlabelled pictures to label next, the one that teaches most first.

    Each choice has the highest product of doubt, novelty and weight, given those before it: a greedy form of the
    sampling of k-means++ over uncertain pictures.

    Args:
        labelled: Pooled activations (n, sum of widths) of the labelled pictures.
        unlabelled: The same of the unlabelled ones, m of them.
        widths: Number of activations of each depth.
        probabilities: Shape (m, classes), by the head.
        weights: Shape (m,), how much each picture counts as one of the classes, see `Mixture.weights`.
        count: Number of pictures wanted; fewer where there are fewer.

    Source: Ash et al. (2020), Deep Batch Active Learning by Diverse, Uncertain Gradient Lower Bounds, section 3, with
    doubt and distance in features in place of gradients.
    """
    vectors = unit_vectors(torch.cat([labelled, unlabelled]), widths, FALLING)
    vectors = nn.functional.normalize(vectors - vectors.mean(0))
    known, free = vectors[: len(labelled)], vectors[len(labelled) :]
    first, second = probabilities.topk(2, 1).values.T
    doubt = 1 - (first - second)
    ranks = probabilities.topk(2, 1).indices
    importance = doubt * (weights / weights.median().clamp_min(1e-12)).clamp(max=1)
    nearest = (free @ known.T).amax(1)
    found: list[Teaching] = []
    chosen = torch.zeros(len(free), dtype=torch.bool)
    for _ in range(min(count, len(free))):
        novelty = (1 - nearest).clamp_min(0)
        scores = (importance * novelty).masked_fill(chosen, -1.0)
        row = int(scores.argmax())
        found.append(
            Teaching(
                row,
                int(ranks[row, 0]),
                float(first[row]),
                int(ranks[row, 1]),
                float(doubt[row]),
                float(novelty[row]),
                float(scores[row]),
            )
        )
        chosen[row] = True
        nearest = torch.maximum(nearest, free @ free[row])
    return found
