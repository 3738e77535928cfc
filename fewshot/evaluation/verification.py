"""Same or different: pairs drawn and scored, the threshold, the ROC and its equal error rate."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from fewshot.evaluation.embedded import EmbeddedDrawings
from fewshot.evaluation.episodes import METRICS, Metric
from finetune.errors import InputError

AT_ONCE = 65_536  # pairs scored, so that memory does not grow with their number
CURVES = 500  # resampled for an interval; each is a sort of all pairs


@dataclass(frozen=True, eq=False)
class Pairs:
    """rows: (n, 2) int64. same: (n,) bool, whether both show one class. alphabet: (n,) int64, where both lie."""

    rows: Tensor
    same: Tensor
    alphabet: Tensor


@dataclass(frozen=True)
class RocCurve:
    """The ROC of scores in numbers: the area under it, and the rate at which false accepts equal false rejects."""

    auc: float
    eer: float


def draw_pairs(embedded: EmbeddedDrawings, pairs: int, generator: torch.Generator) -> Pairs:
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


def labelled_pairs(labels: Sequence[Hashable] | Tensor, *, most: int = 100_000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs of a labelled set: rows (n, 2) int64, no pair twice, and same (n,) bool, whether both have one label.

    labels: (pictures,). All pairs where there are no more than `most`. Else a sample of `most`: the pairs of one label
    are all kept as long as they are half of it or the pairs of different labels leave room, so that few of them do not
    drown; rates of each kind stay unbiased. A class of many pictures has many pairs, and counts accordingly.

    InputError where one of the two kinds is missing, or for `most` below 2.
    """
    if most < 2:
        raise InputError(f"most is {most}; one pair of each kind takes 2")
    number: dict[Hashable, int] = {}
    classes = [number.setdefault(label, len(number)) for label in _plain(labels)]
    order = np.argsort(classes, kind="stable")
    place = np.arange(len(order))
    # In that order a picture is alike with those between the start of its class and itself, and unlike those before.
    sizes = np.bincount(classes, minlength=1)
    start = np.repeat(sizes.cumsum() - sizes, sizes)
    alike, unlike = int((place - start).sum()), int(start.sum())
    if not alike or not unlike:
        missing = "no two pictures of one class" if not alike else "no pictures of different classes"
        raise InputError(f"{len(order)} pictures make no pairs to calibrate on: {missing}")
    wanted = min(alike, max(most // 2, most - unlike))
    random = np.random.default_rng(seed)
    rows = np.concatenate(
        [
            _some_pairs(place - start, start, wanted, random),
            _some_pairs(start, np.zeros_like(start), min(unlike, most - wanted), random),
        ]
    )
    return torch.from_numpy(order[rows]), torch.arange(len(rows)) < wanted


@torch.inference_mode()
def similarity(vectors: Tensor, rows: Tensor, metric: Metric = "cosine") -> Tensor:
    """How alike the vectors (n, d) of each pair (pairs, 2) are, (pairs,) float64 on the CPU: larger is more alike.

    The cosine, or the Euclidean distance made negative. InputError for what is not a finite number.
    """
    if metric not in METRICS:
        raise InputError(f"metric {metric!r}; there are {' and '.join(METRICS)}")
    scores = torch.cat([_similarity(vectors, part.to(vectors.device), metric) for part in rows.split(AT_ONCE)])
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise InputError(f"{bad} of {len(scores)} pairs have no finite similarity; are the weights finite?")
    return scores.cpu()


def best_threshold(scores: Tensor, same: Tensor) -> float:
    """What to be at or above to be called the same, for the most right answers on these pairs: choose it on pairs that
    are not tested on. Half-way to the next score below, which the nearest of other pairs may fall short of."""
    false, true, thresholds = roc(scores, same)
    positives = int(same.sum())
    right = true * positives + (1 - false) * (len(same) - positives)
    best = int(right.argmax())
    # The first threshold is infinite: nothing is the same. The last calls all the same; none is below.
    lower = thresholds[min(best + 1, len(thresholds) - 1)]
    return float((thresholds[best] + lower) / 2)


def curve(scores: Tensor, same: Tensor) -> RocCurve:
    """AUC and EER of scores (n,), larger for the same; between two points the ROC is a straight line."""
    from sklearn.metrics import auc  # here, because it takes a second to import

    false, true, _ = roc(scores, same)
    excess = false - (1 - true)  # grows from -1 to 1 along the curve
    after = int((excess >= 0).argmax())
    step = excess[after - 1] / (excess[after - 1] - excess[after])
    return RocCurve(float(auc(false, true)), float(false[after - 1] + step * (false[after] - false[after - 1])))


def pairs_within(labels: Tensor, groups: Tensor, *, most: int = 400_000) -> tuple[Tensor, Tensor]:
    """Pairs of a labelled set within its groups, such as alphabets: rows (n, 2) int64 and same (n,) bool.

    labels, groups: (pictures,). As `labelled_pairs`, of each group its share of `most`. A group that lacks one of the
    two kinds of pairs is left out. InputError where every group does.
    """
    rows, same = [], []
    names = groups.unique()
    for name in names:
        inside = (groups == name).nonzero()[:, 0]
        counts = labels[inside].unique(return_counts=True)[1]
        if len(counts) > 1 and int(counts.max()) > 1:
            pairs, alike = labelled_pairs(labels[inside], most=max(2, most // len(names)))
            rows.append(inside[pairs])
            same.append(alike)
    if not rows:
        raise InputError(f"{len(labels)} pictures make no pairs to calibrate on within their groups")
    return torch.cat(rows), torch.cat(same)


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


def roc(scores: Tensor, same: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """False and true accepts as shares, and the falling thresholds, the first of which nothing reaches.

    One of each for every score that occurs, and the first. InputError for pairs of one kind alone.
    """
    from sklearn.metrics import roc_curve

    if same.all() or not same.any():
        raise InputError("pairs of the same and of different classes are wanted, not of one kind alone")
    false, true, thresholds = roc_curve(same.numpy(), scores.numpy(), drop_intermediate=False)
    return false, true, thresholds


def _plain(labels: Sequence[Hashable] | Tensor) -> Sequence[Hashable]:
    return labels.tolist() if isinstance(labels, Tensor) else labels  # tensors with one value are different keys


def _some_pairs(
    partners: NDArray[np.int64], first: NDArray[np.int64], wanted: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """`wanted` pairs, (wanted, 2), where picture i has `partners[i]` partners, counted from `first[i]`."""
    end = partners.cumsum()
    total = int(end[-1])
    rank = np.arange(total) if wanted == total else np.sort(random.choice(total, wanted, replace=False, shuffle=False))
    one = np.searchsorted(end, rank, side="right")
    return np.stack([first[one] + rank - (end - partners)[one], one], axis=1)


def _similarity(vectors: Tensor, rows: Tensor, metric: Metric) -> Tensor:
    one, other = (vectors[rows[:, side]].double() for side in (0, 1))
    return F.cosine_similarity(one, other) if metric == "cosine" else -(one - other).square().sum(1).sqrt()
