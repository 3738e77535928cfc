"""Verification: pairs, their similarities, the best threshold, the ROC curve and its summary."""

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
from finetune.metrics import roc_thresholds

AT_ONCE = 65_536  # pairs scored at once, to bound the memory
CURVES = 500  # resampled curves for an interval; each sorts all pairs


@dataclass(frozen=True, eq=False)
class Pairs:
    """Pairs of drawings: rows (n, 2) int64, same (n,) bool, and their alphabet (n,) int64."""

    rows: Tensor
    same: Tensor
    alphabet: Tensor


@dataclass(frozen=True)
class RocSummary:
    """Summary of a ROC curve: its area, and the rate at which false accepts equal false rejects."""

    auc: float
    eer: float


def draw_pairs(embedded: EmbeddedDrawings, pairs: int, generator: torch.Generator) -> Pairs:
    """Sample pairs with replacement: half of one character, half of different ones, equally many from every alphabet.

    Both drawings of a pair are by different drawers of one alphabet, which the paper leaves open. InputError if an
    alphabet has no such pair.

    Source: Koch et al. (2015), section 4.2.
    """
    alphabets = embedded.alphabet.unique().tolist()
    each = pairs // (2 * len(alphabets))
    if not each:
        raise InputError(f"{pairs} pairs are too few: each of {len(alphabets)} alphabets needs one of each kind")
    rows = []
    for alphabet in alphabets:
        inside = (embedded.alphabet == alphabet).nonzero()[:, 0]
        drawer, label = embedded.drawer[inside], embedded.label[inside]
        apart = (drawer[:, None] != drawer).triu(1)
        alike = label[:, None] == label
        for kind in (apart & alike, apart & ~alike):
            candidates = kind.nonzero()
            if not len(candidates):
                raise InputError("an alphabet has no same or no different pair of drawings by different drawers")
            rows.append(inside[candidates[torch.randint(len(candidates), (each,), generator=generator)]])
    return Pairs(
        rows=torch.cat(rows),
        same=torch.tensor([True, False]).repeat_interleave(each).repeat(len(alphabets)),
        alphabet=torch.tensor(alphabets).repeat_interleave(2 * each),
    )


def labelled_pairs(labels: Sequence[Hashable] | Tensor, *, most: int = 100_000, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Pairs of a labelled set, without repetition.

    A sample keeps all same pairs as long as they are at most half of it, or different pairs leave room; the rates of
    each kind stay unbiased. A class with many pictures has many pairs and a larger weight.

    Args:
        labels: Of the pictures.
        most: Number of pairs; all pairs if there are fewer.
        seed: Of the sample.

    Returns:
        rows (n, 2) int64, and same (n,) bool.

    Raises:
        InputError: If one of the two kinds is missing, and for `most` below 2.
    """
    if most < 2:
        raise InputError(f"most must be >= 2, not {most}")
    number: dict[Hashable, int] = {}
    classes = [number.setdefault(label, len(number)) for label in _plain(labels)]
    order = np.argsort(classes, kind="stable")
    place = np.arange(len(order))
    # In this order, partners precede a picture: same ones from the start of its class, different ones before.
    sizes = np.bincount(classes, minlength=1)
    start = np.repeat(sizes.cumsum() - sizes, sizes)
    same, different = int((place - start).sum()), int(start.sum())
    if not same or not different:
        missing = "no two pictures of one class" if not same else "no pictures of different classes"
        raise InputError(f"{len(order)} pictures give no pairs for calibration: there are {missing}")
    wanted = min(same, max(most // 2, most - different))
    random = np.random.default_rng(seed)
    rows = np.concatenate(
        [
            _some_pairs(place - start, start, wanted, random),
            _some_pairs(start, np.zeros_like(start), min(different, most - wanted), random),
        ]
    )
    return torch.from_numpy(order[rows]), torch.arange(len(rows)) < wanted


@torch.inference_mode()
def similarity(vectors: Tensor, rows: Tensor, metric: Metric = "cosine") -> Tensor:
    """Similarity of pairs: the cosine, or the negative Euclidean distance.

    Args:
        vectors: Shape (n, d).
        rows: Shape (pairs, 2).
        metric: "cosine" or "euclidean".

    Returns:
        Shape (pairs,), float64, on the CPU; larger is more similar.

    Raises:
        InputError: For similarities that are not finite.
    """
    if metric not in METRICS:
        raise InputError(f"metric must be {' or '.join(METRICS)}, not {metric!r}")
    scores = torch.cat([_similarity(vectors, part.to(vectors.device), metric) for part in rows.split(AT_ONCE)])
    bad = int((~scores.isfinite()).sum())
    if bad:
        raise InputError(f"{bad} of {len(scores)} pairs have no finite similarity; check that the weights are finite")
    return scores.cpu()


def best_threshold(scores: Tensor, same: Tensor) -> float:
    """The threshold with the most correct answers on these pairs; pairs at or above it are called the same.

    It lies half-way to the next lower score, since the closest of other pairs may score slightly lower. Choose it on
    pairs that are not tested on.
    """
    false, true, thresholds = roc(scores, same)
    positives = int(same.sum())
    right = true * positives + (1 - false) * (len(same) - positives)
    best = int(right.argmax())
    # The first threshold is infinite and accepts nothing; the last accepts everything.
    lower = thresholds[min(best + 1, len(thresholds) - 1)]
    return float((thresholds[best] + lower) / 2)


def roc_summary(scores: Tensor, same: Tensor) -> RocSummary:
    """AUC and EER of scores (n,), larger for the same. Straight lines join the points of the ROC curve."""
    false, true, _ = roc(scores, same)
    excess = false - (1 - true)  # grows from -1 to 1 along the curve
    after = int((excess >= 0).argmax())
    step = excess[after - 1] / (excess[after - 1] - excess[after])
    return RocSummary(
        float(np.trapezoid(true, false)), float(false[after - 1] + step * (false[after] - false[after - 1]))
    )


def pairs_within(labels: Tensor, groups: Tensor, *, most: int = 400_000) -> tuple[Tensor, Tensor]:
    """Pairs within groups, such as alphabets.

    A group that has only one kind of pairs is left out.

    Args:
        labels, groups: Of the pictures, (n,) each.
        most: Number of pairs, shared equally by the groups; see `labelled_pairs`.

    Returns:
        rows (n, 2) int64, and same (n,) bool.

    Raises:
        InputError: If every group is left out.
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
        raise InputError(f"{len(labels)} pictures give no pairs for calibration within their groups")
    return torch.cat(rows), torch.cat(same)


def roc_summary_intervals(
    groups: Sequence[tuple[Tensor, Tensor]], seed: int = 0
) -> tuple[tuple[float, float], tuple[float, float]]:
    """95 % intervals of AUC and EER; resamples the groups, given as (scores, same)."""
    random, found = np.random.default_rng(seed), []
    for _ in range(CURVES):
        drawn = [groups[i] for i in random.integers(len(groups), size=len(groups))]
        summary = roc_summary(torch.cat([scores for scores, _ in drawn]), torch.cat([same for _, same in drawn]))
        found.append((summary.auc, summary.eer))
    (low_auc, low_eer), (high_auc, high_eer) = np.quantile(np.array(found), (0.025, 0.975), axis=0)
    return (float(low_auc), float(high_auc)), (float(low_eer), float(high_eer))


def roc(scores: Tensor, same: Tensor) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The ROC curve: rates of false and true accepts, and falling thresholds, one for every distinct score.

    The first threshold is infinite. InputError for pairs of one kind alone.
    """
    if same.all() or not same.any():
        raise InputError("there must be pairs of the same class and pairs of different classes")
    return roc_thresholds(same.numpy(), scores.numpy())


def _plain(labels: Sequence[Hashable] | Tensor) -> Sequence[Hashable]:
    return labels.tolist() if isinstance(labels, Tensor) else labels  # equal scalar tensors are different keys


def _some_pairs(
    partners: NDArray[np.int64], first: NDArray[np.int64], wanted: int, random: np.random.Generator
) -> NDArray[np.int64]:
    """A sample of pairs, (wanted, 2). Picture i has `partners[i]` partners, from position `first[i]` on."""
    end = partners.cumsum()
    total = int(end[-1])
    rank = np.arange(total) if wanted == total else np.sort(random.choice(total, wanted, replace=False, shuffle=False))
    one = np.searchsorted(end, rank, side="right")
    return np.stack([first[one] + rank - (end - partners)[one], one], axis=1)


def _similarity(vectors: Tensor, rows: Tensor, metric: Metric) -> Tensor:
    one, other = (vectors[rows[:, side]].double() for side in (0, 1))
    return F.cosine_similarity(one, other) if metric == "cosine" else -(one - other).square().sum(1).sqrt()
