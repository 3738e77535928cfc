"""Heads that learn from unlabelled pictures too: labels are propagated to them, a second head learns from these soft
labels, and cross-validation says how much of it is mixed into the head of the labelled pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from finetune.linear.head import Heads, LinearHead, solve_heads
from finetune.linear.logistic import Logistic, folds_of, spread
from finetune.linear.propagation import PictureGraph, SoftLabels, last_depths, propagated, unit_vectors
from finetune.metrics import accuracy
from finetune.models.depth_head import unit_depths
from finetune.strategies import ENOUGH_TO_CHOOSE

# Shares of the second head in the mixture. More than MODERATE needs evidence beyond chance, and LEAST is the most where
# the classes of the unlabelled pictures are much less even than those of the labelled ones: labels then spread from
# classes that have few pictures to those that have many.
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
MODERATE, LEAST, UNEVEN = 0.5, 0.25, 0.35
# Inverse L2 strength of the second head on rows of mean square length 1, and the principal axes that it reads.
_STRENGTH, _AXES = 10.0, 200
# Folds of labelled pictures, each held out in turn. Beyond so many pictures this takes long, and the validation
# pictures judge alone.
FOLDS, MOST_CROSS_VALIDATED = 5, 1500
# Temperatures of held-out logits. Unlabelled pictures should make a head right more often; a temperature alone would
# make it surer.
_TEMPERATURES = torch.logspace(-1, 1, 21)


@dataclass(frozen=True)
class Mixture:
    """What unlabelled pictures did to the head.

    Attributes:
        strength: Share of the second head, 0 to 1; 0 where they did not help.
        alike: Whether they are like the labelled pictures; if not, they do not count.
        judged: Number of labelled pictures that chose it, each held out; 0 where there is one picture a class.
        without: Accuracy of the head of the labelled pictures on these, in [0, 1]; None where none judged.
        accuracy: Accuracy of the mixture on these.
        weights: Shape (m,), how much each unlabelled picture counted; near 0 for one that is like no labelled picture.
    """

    strength: float
    alike: bool
    judged: int
    without: float | None
    accuracy: float | None
    weights: Tensor


def refine_heads(
    heads: Heads,
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    unlabelled: Tensor,
    widths: Sequence[int],
    class_weights: Tensor | None = None,
) -> tuple[Heads, Mixture]:
    """Mix into each of `heads` a second head that has learned from unlabelled pictures too.

    Args:
        heads: What `solve_heads` returned for the labelled pictures.
        train: Pooled activations (n, sum of widths), the features last, and labels (n,) int64 with every class present.
        val: The same of the validation pictures.
        unlabelled: Pooled activations (m, sum of widths), m >= 1.
        widths: Number of activations of each depth.
        class_weights: Shape (classes,). None for equal weights.

    Returns:
        Linear heads as before, equal to `heads` where the unlabelled pictures do not help; and the mixture.
    """
    labelled, labels = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    pictures = _Pictures(labelled, labels, unlabelled, tuple(widths), class_weights)
    judged = pictures.judged(len(train[1]))
    of_train, known = torch.arange(len(train[1])), torch.arange(len(labels if heads.learned_from_val else train[1]))
    soft = pictures.soft_labels(known, heads.kept)
    strength = MODERATE if judged is None else judged.strength()
    if soft.shift > UNEVEN:
        strength = min(strength, LEAST)
    alike = pictures.alike()
    if not alike:
        strength = 0.0
    mixture = Mixture(
        strength,
        alike,
        0 if judged is None else len(judged.labels),
        None if judged is None else accuracy(judged.mixed(0.0), judged.labels),
        None if judged is None else accuracy(judged.mixed(strength), judged.labels),
        pictures.weights(soft),
    )
    if strength == 0:
        return heads, mixture
    kept = _mixed(heads.kept, pictures.deep_head(known, soft), strength, unlabelled)
    val_logits = kept(val[0])
    if heads.learned_from_val and judged is not None and len(val[1]):
        val_logits = (1 - strength) * heads.val_logits + strength * judged.second[-len(val[1]) :]
    from_train = pictures.features_head(of_train, pictures.soft_labels(of_train, heads.features))
    refined = replace(
        heads,
        features=_mixed(heads.features, from_train, strength, unlabelled),
        kept=kept,
        val_logits=val_logits,
        error=heads.error if mixture.accuracy is None else 1 - mixture.accuracy,
    )
    return refined, mixture


@dataclass(frozen=True)
class _Judged:
    """Held-out logits (n, classes) of labelled pictures by the head of these alone and by the second head."""

    labels: Tensor
    base: Tensor
    second: Tensor

    def mixed(self, strength: float) -> Tensor:
        return (1 - strength) * self.base + strength * self.second

    def strength(self) -> float:
        """The strength of least loss at its best temperature, among those that the evidence allows."""
        losses = {strength: self._losses(strength) for strength in STRENGTHS}
        best = min(losses, key=lambda strength: float(losses[strength].mean()))
        return best if best <= MODERATE or _beyond_chance(losses[0.0] - losses[best]) else MODERATE

    def _losses(self, strength: float) -> Tensor:
        logits = self.mixed(strength).double()
        found = [
            nn.functional.cross_entropy(logits * scale, self.labels, reduction="none")
            for scale in _TEMPERATURES.tolist()
        ]
        return min(found, key=lambda losses: float(losses.mean()))


def _beyond_chance(gains: Tensor) -> bool:
    """Whether their mean is above 0 by more than a standard error."""
    return float(gains.mean()) > float(gains.std(correction=min(1, len(gains) - 1))) / math.sqrt(len(gains))


class _Pictures:
    """Labelled and unlabelled pictures as nodes of one graph, the labelled ones first."""

    def __init__(
        self,
        labelled: Tensor,
        labels: Tensor,
        unlabelled: Tensor,
        widths: tuple[int, ...],
        class_weights: Tensor | None,
    ):
        self._labelled, self._labels, self._unlabelled = labelled, labels, unlabelled
        self._widths, self._class_weights, self._classes = widths, class_weights, int(labels.max()) + 1
        nodes = torch.cat([labelled, unlabelled])
        self._vectors = unit_vectors(nodes, widths)
        self._graph = PictureGraph.of(nn.functional.normalize(self._vectors - self._vectors.mean(0)))
        self._deep = _Axes.of_depths(nodes, widths)

    def alike(self) -> bool:
        """Whether at least a quarter of the unlabelled pictures is nearer to a labelled one than labelled ones of two
        classes are to each other."""
        known = self._vectors[: len(self._labels)]
        other = (known @ known.T).masked_fill(self._labels[:, None] == self._labels, -1.0)
        nearest = (self._vectors[len(self._labels) :] @ known.T).amax(1)
        return bool(nearest.quantile(0.75) > other.amax(1).median())

    def soft_labels(self, known: Tensor, alone: LinearHead) -> SoftLabels:
        """Labels of all pictures, spread from the labelled pictures `known`. alone: a head that learned from these."""
        opinions = alone(torch.cat([self._labelled, self._unlabelled])).softmax(1)
        return propagated(self._graph, known, self._labels[known], self._classes, opinions)

    def deep_head(self, known: Tensor, soft: SoftLabels) -> LinearHead:
        """A head on the last depths that learned from the labelled pictures `known` and from all unlabelled ones."""
        return self._learned(self._deep, known, soft)

    def features_head(self, known: Tensor, soft: SoftLabels) -> LinearHead:
        """The same on the features alone."""
        nodes = torch.cat([self._labelled, self._unlabelled])
        return self._learned(_Axes.of_features(nodes, self._widths), known, soft)

    def weights(self, soft: SoftLabels) -> Tensor:
        """How much each unlabelled picture counts, (m,)."""
        return soft.weights[len(self._labels) :]

    def _learned(self, axes: _Axes, known: Tensor, soft: SoftLabels) -> LinearHead:
        free = torch.arange(len(self._labels), len(soft.weights))
        given = nn.functional.one_hot(self._labels[known], self._classes)
        targets = torch.cat([given, soft.probabilities[free] * soft.weights[free, None]])
        rows = axes.rows[torch.cat([known, free])]
        return axes.head(*Logistic(rows, targets, self._classes, self._class_weights).solve(_STRENGTH))

    def judged(self, train: int) -> _Judged | None:
        """Held-out logits: of the validation pictures where these are many, else of all, in folds; None where every
        labelled picture is the only one of its class."""
        labels = self._labels
        if len(labels) - train >= ENOUGH_TO_CHOOSE or len(labels) > MOST_CROSS_VALIDATED:
            folds = torch.where(torch.arange(len(labels)) < train, -1, 0)
        else:
            folds = folds_of(labels, FOLDS)
        base, second = (torch.zeros(len(labels), self._classes) for _ in range(2))
        for number in range(int(folds.max()) + 1):
            fitted, held_out = (folds != number).nonzero()[:, 0], folds == number
            asked = self._labelled[held_out]
            alone = solve_heads(
                (self._labelled[fitted], labels[fitted]), (asked[:0], labels[:0]), self._widths, self._class_weights
            ).kept
            base[held_out] = alone(asked)
            learned = self.deep_head(fitted, self.soft_labels(fitted, alone))
            second[held_out] = _scaled(learned, alone, self._unlabelled)(asked)
        rated = folds >= 0
        return _Judged(labels[rated], base[rated], second[rated]) if bool(rated.any()) else None


@dataclass(frozen=True)
class _Axes:
    """Activations along their first principal axes, rows (n, axes), and the way back to a head on the activations.

    depths: widths of the depths whose unit vectors are read; empty for the features as they are.
    """

    rows: Tensor
    mean: Tensor
    depths: tuple[int, ...]
    _way_back: Tensor

    @classmethod
    def of_depths(cls, pooled: Tensor, widths: Sequence[int]) -> _Axes:
        """The unit vectors of the last depths, each depth scaled to its factor."""
        read, factors = last_depths(widths)
        parts = unit_depths(pooled[:, -sum(read) :], read).split(read, 1)
        length = sum(factor**2 for factor in factors) ** 0.5
        scales = [
            (spread(part) * length / factor).expand(part.shape[1]) for part, factor in zip(parts, factors, strict=True)
        ]
        return cls._of(torch.cat(parts, 1), torch.cat(scales), tuple(read))

    @classmethod
    def of_features(cls, pooled: Tensor, widths: Sequence[int]) -> _Axes:
        features = pooled[:, -widths[-1] :]
        return cls._of(features, spread(features).expand(features.shape[1]), ())

    @classmethod
    def _of(cls, values: Tensor, scale: Tensor, depths: tuple[int, ...]) -> _Axes:
        mean = values.mean(0)
        centred = (values - mean) / scale
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            _, _, axes = torch.svd_lowrank(centred, min(_AXES, *centred.shape))
        return cls(centred @ axes, mean, depths, (axes / scale[:, None]).T)

    def head(self, weight: Tensor, bias: Tensor) -> LinearHead:
        raw = weight @ self._way_back
        bias = bias - raw @ self.mean
        if not self.depths:
            return LinearHead(raw, bias)
        return LinearHead(torch.zeros(len(raw), self.depths[-1]), bias, raw, self.depths)


def _scaled(second: LinearHead, base: LinearHead, pooled: Tensor) -> LinearHead:
    """`second` with logits of the same spread as those of `base`, so that a share of it is a share of the decision."""
    factor = _spread_of_logits(base, pooled) / _spread_of_logits(second, pooled)
    units = None if second.unit_weight is None else second.unit_weight * factor
    return replace(second, weight=second.weight * factor, bias=second.bias * factor, unit_weight=units)


def _spread_of_logits(head: LinearHead, pooled: Tensor) -> float:
    logits = head(pooled)
    return max(1e-9, float((logits - logits.mean(1, keepdim=True)).square().mean().sqrt()))


def _mixed(base: LinearHead, second: LinearHead, strength: float, pooled: Tensor) -> LinearHead:
    """The head whose logits are (1 - strength) times those of `base` plus strength times those of `second`, scaled."""
    scaled = _scaled(second, base, pooled)
    widths = max(base.widths, scaled.widths, key=len)
    units = torch.zeros(len(base.bias), sum(widths)) if widths else None
    for share, head in ((1 - strength, base), (strength, scaled)):
        if units is not None and head.unit_weight is not None:
            units[:, -head.unit_weight.shape[1] :] += share * head.unit_weight
    return LinearHead(
        (1 - strength) * base.weight + strength * scaled.weight,
        (1 - strength) * base.bias + strength * scaled.bias,
        units,
        widths,
    )
