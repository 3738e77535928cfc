"""Same or different: pairs of drawings drawn and scored, the threshold, the ROC and its equal error rate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fewshot.embedded import Embedded
from fewshot.episodes import METRICS, Metric
from finetune.errors import InputError

CURVES = 500  # resampled for an interval; each is a sort of all pairs


@dataclass(frozen=True, eq=False)
class Pairs:
    """rows: (n, 2) int64. same: (n,) bool, whether both show one class. alphabet: (n,) int64, where both lie."""

    rows: Tensor
    same: Tensor
    alphabet: Tensor


@dataclass(frozen=True)
class Curve:
    """The ROC of scores in numbers: the area under it, and the rate at which false accepts equal false rejects."""

    auc: float
    eer: float


def draw_pairs(embedded: Embedded, pairs: int, generator: torch.Generator) -> Pairs:
    """Pairs as Koch et al. (2015, section 4.2) draw them: half of them the same character and half different ones, as
    many from every alphabet; one that is drawn may be drawn again.

    What the paper leaves open is read such that nothing but the character tells: both drawings of a pair, the same
    or not, are by different drawers of one alphabet. InputError where an alphabet has no such pair.
    """
    alphabets = embedded.alphabet.unique().tolist()
    each = pairs // (2 * len(alphabets))
    if not each:
        raise InputError(f"{pairs} pairs are too few for one of each kind from each of {len(alphabets)} alphabets")
    rows = []
    for alphabet in alphabets:
        inside = (embedded.alphabet == alphabet).nonzero()[:, 0]
        drawer, label = embedded.drawer[inside], embedded.label[inside]
        apart = (drawer[:, None] != drawer).triu(1)
        alike = label[:, None] == label
        for kind in (apart & alike, apart & ~alike):
            candidates = kind.nonzero()
            if not len(candidates):
                raise InputError("an alphabet has no two drawings of one character, or of two, by different drawers")
            rows.append(inside[candidates[torch.randint(len(candidates), (each,), generator=generator)]])
    return Pairs(
        rows=torch.cat(rows),
        same=torch.tensor([True, False]).repeat_interleave(each).repeat(len(alphabets)),
        alphabet=torch.tensor(alphabets).repeat_interleave(2 * each),
    )


@torch.inference_mode()
def similarity(vectors: Tensor, rows: Tensor, metric: Metric = "cosine") -> Tensor:
    """How alike the vectors (n, d) of each pair (pairs, 2) are, (pairs,) float64 on the CPU: larger is more alike.

    The cosine, or the Euclidean distance made negative. InputError for what is not a finite number.
    """
    if metric not in METRICS:
        raise InputError(f"metric {metric!r}; there are {' and '.join(METRICS)}")
    one, other = (vectors[rows[:, side].to(vectors.device)].double() for side in (0, 1))
    scores = F.cosine_similarity(one, other) if metric == "cosine" else -(one - other).square().sum(1).sqrt()
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise InputError(f"{bad} of {len(scores)} pairs have no finite similarity; are the weights finite?")
    return scores.cpu()


def best_threshold(scores: Tensor, same: Tensor) -> float:
    """What to be at or above to be called the same, for the most right answers on these pairs: choose it on pairs that
    are not tested on. Half-way to the next score below, which the nearest of other pairs may fall short of."""
    false, true, thresholds = _roc(scores, same)
    positives = int(same.sum())
    right = true * positives + (1 - false) * (len(same) - positives)
    best = int(right.argmax())
    # The first threshold is infinite: nothing is the same. The last calls all the same; none is below.
    lower = thresholds[min(best + 1, len(thresholds) - 1)]
    return float((thresholds[best] + lower) / 2)


def curve(scores: Tensor, same: Tensor) -> Curve:
    """AUC and EER of scores (n,), larger for the same; between two points the ROC is a straight line."""
    from sklearn.metrics import auc  # here, because it takes a second to import

    false, true, _ = _roc(scores, same)
    excess = false - (1 - true)  # grows from -1 to 1 along the curve
    after = int((excess >= 0).argmax())
    step = excess[after - 1] / (excess[after - 1] - excess[after])
    return Curve(float(auc(false, true)), float(false[after - 1] + step * (false[after] - false[after - 1])))


def curve_intervals(
    groups: Sequence[tuple[Tensor, Tensor]], seed: int = 0
) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % intervals of AUC and EER for other groups like these, resampled whole: (scores, same) of each group."""
    random, found = np.random.default_rng(seed), []
    for _ in range(CURVES):
        drawn = [groups[i] for i in random.integers(len(groups), size=len(groups))]
        shape = curve(torch.cat([scores for scores, _ in drawn]), torch.cat([same for _, same in drawn]))
        found.append((shape.auc, shape.eer))
    (low_auc, low_eer), (high_auc, high_eer) = np.quantile(np.array(found), (0.025, 0.975), axis=0)
    return (float(low_auc), float(high_auc)), (float(low_eer), float(high_eer))


def _roc(scores: Tensor, same: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """False and true accepts as shares, and the falling thresholds, the first of which nothing reaches."""
    from sklearn.metrics import roc_curve

    if same.all() or not same.any():
        raise InputError("pairs of the same and of different classes are wanted, not of one kind alone")
    false, true, thresholds = roc_curve(same.numpy(), scores.numpy(), drop_intermediate=False)
    return false, true, thresholds
