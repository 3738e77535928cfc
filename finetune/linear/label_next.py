"""The unlabelled pictures that would teach most if they had labels: those that stand for many doubtful ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.linear.propagation import unit_vectors

# Importance of a picture without doubt, beside the doubt in [0, 1]. With few labels, doubt alone would choose odd
# pictures that stand for nothing but themselves.
_CERTAIN = 0.2
# Most pictures, evenly spread, that a choice can stand for: a matrix of so many columns is in memory.
_STOOD_FOR = 2000


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
        score: How much nearer the unlabelled pictures come to a picture with a label, by the cosine: their mean,
            weighted by importance.
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

    Each choice brings the unlabelled pictures nearest to one with a label, those most that are in doubt, given the
    choices before it: the greedy solution of a facility-location problem.

    Args:
        labelled: Pooled activations (n, sum of widths) of the labelled pictures.
        unlabelled: The same of the unlabelled ones, m of them.
        widths: Number of activations of each depth.
        probabilities: Shape (m, classes), by the head.
        weights: Shape (m,), how much each picture counts as one of the classes, see `Mixture.weights`.
        count: Number of pictures wanted; fewer where there are fewer.

    Source: Wei, Iyer & Bilmes (2015), Submodularity in Data Subset Selection and Active Learning, ICML, section 3.
    """
    vectors = unit_vectors(torch.cat([labelled, unlabelled]), widths)
    vectors = nn.functional.normalize(vectors - vectors.mean(0))
    known, free = vectors[: len(labelled)], vectors[len(labelled) :]
    (first, second), ranks = probabilities.topk(2, 1).values.T, probabilities.topk(2, 1).indices
    doubt = 1 - (first - second)
    importance = (_CERTAIN + doubt) * (weights / weights.median().clamp_min(1e-12)).clamp(max=1)
    some = torch.linspace(0, len(free) - 1, min(len(free), _STOOD_FOR)).round().long()
    similar = free @ free[some].T
    share = importance[some] / importance[some].sum().clamp_min(1e-12)
    nearest = (free @ known.T).amax(1)
    covered = nearest[some]
    found: list[Teaching] = []
    chosen = torch.zeros(len(free), dtype=torch.bool)
    for _ in range(min(count, len(free))):
        scores = ((similar - covered).clamp_min(0) @ share).masked_fill(chosen, -1.0)
        row = int(scores.argmax())
        found.append(
            Teaching(
                row,
                int(ranks[row, 0]),
                float(first[row]),
                int(ranks[row, 1]),
                float(doubt[row]),
                max(0.0, float(1 - nearest[row])),
                float(scores[row]),
            )
        )
        chosen[row] = True
        covered = torch.maximum(covered, similar[row])
        nearest = torch.maximum(nearest, free @ free[row])
    return found
