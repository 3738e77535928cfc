"""The linear head on frozen activations: solved by logistic regression, with its input and its strength chosen by
validation or cross-validation."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from finetune.linear.logistic import Logistic, folds_of, principal_axes, spread
from finetune.metrics import accuracy

T = TypeVar("T")

# Inverse L2 strengths for features of unit mean square norm, from the most regularised model on: each solution starts
# the next one.
STRENGTHS = tuple(float(c) for c in np.geomspace(1, 10_000, 9))

# Factor of the cosine in the logits of nearest-class-mean classification.
COSINE_SCALE = 20.0

# Inputs of a head: factors of the last depths, the features last. FALLING is best nearly everywhere, so another input
# is chosen only where it is better by more than chance.
FEATURES, FALLING, EQUAL = (1.0,), (0.25, 0.5, 1.0), (1.0, 1.0, 1.0)

# A choice by fewer validation pictures than these is noise. All pictures then choose by cross-validation in FOLDS
# folds, unless there are so many that this takes long.
ENOUGH_TO_CHOOSE, FOLDS, MOST_CROSS_VALIDATED = 100, 5, 1500


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier of pooled activations: logits = activations @ weight.T + bias.

    Attributes:
        weight: Shape (classes, width). The head reads the last `width` activations: the features, or more depths.
        bias: Shape (classes,).
        strength: Chosen inverse L2 strength.
    """

    weight: Tensor
    bias: Tensor
    strength: float

    @property
    def width(self) -> int:
        """Number of activations that the head reads."""
        return int(self.weight.shape[1])

    def __call__(self, activations: Tensor) -> Tensor:
        """Logits (n, classes) of pooled activations (n, width or more)."""
        return activations[:, -self.width :] @ self.weight.T + self.bias

    def as_layer(self) -> nn.Linear:
        """The head as a trainable layer."""
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        layer.load_state_dict({"weight": self.weight, "bias": self.bias})
        return layer


@dataclass(frozen=True)
class Heads:
    """Heads of one folder of pictures.

    Attributes:
        features: Head on the features alone, from which training starts.
        best: The better of `features` and a head on more depths, both fitted on the training pictures.
        kept: The head to deploy: `best`, or `best` refitted on the training and validation pictures.
        val_logits: Logits (m, classes) of the validation pictures, each by a head like `kept` that was fitted without
            the picture.
        cross_validated: Whether input and strength were chosen by cross-validation instead of validation.
        error: Error rate of heads like `best` on the pictures that made the choice, each by a head that was fitted
            without the picture.
    """

    features: LinearHead
    best: LinearHead
    kept: LinearHead
    val_logits: Tensor
    cross_validated: bool
    error: float


def solve_heads(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    widths: Sequence[int],
    class_weights: Tensor | None = None,
    *,
    learn_from_val: bool = False,
) -> Heads:
    """Fit heads on pooled activations.

    Input and strength have the least log-loss on the validation pictures, or where these are few, in cross-validation
    on the training and validation pictures.

    Args:
        train: Pooled activations (n, sum of widths), the features last, and labels (n,) int64 with every class present.
        val: The same of the validation pictures.
        widths: Number of activations of each depth.
        class_weights: Shape (classes,). None for equal weights.
        learn_from_val: Whether the head to deploy is refitted on the validation pictures too.
    """
    both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    folds = folds_of(both[1], FOLDS)
    crossed = len(val[1]) < ENOUGH_TO_CHOOSE and len(both[1]) <= MOST_CROSS_VALIDATED and int(folds.max()) > 0

    if not crossed and len(val[1]) == 0:
        head = _nearest_mean_head(train[0][:, -widths[-1] :], train[1])
        return Heads(head, head, head, head(val[0]), False, math.nan)
    candidates = []
    for factors in (FEATURES, FALLING, EQUAL):
        inputs = _Inputs.of(factors, widths)
        if crossed:
            candidates.append(_cross_validated(*both, folds, len(train[1]), inputs, class_weights))
        else:
            candidates.append(_validated(train, val, inputs, class_weights))
    features, chosen, equal = candidates
    for other in (features, equal):
        if other.clearly_beats(chosen):
            chosen = other
    best = chosen.head
    rated = folds >= 0 if crossed else torch.arange(len(both[1])) >= len(train[1])
    error = 1 - accuracy(chosen.logits[rated[-len(chosen.logits) :]], both[1][rated])
    if not learn_from_val:
        return Heads(features.head, best, best, best(val[0]), crossed, error)
    kept = _solved(_Rows.of(both[0], chosen.inputs), both[1], best.strength, class_weights)
    return Heads(features.head, best, kept, chosen.logits[-len(val[1]) :], crossed, error)


def nearest_mean(features: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """Nearest-class-mean classification of queries (m, width) by the cosine: classes (m,)."""
    return (nn.functional.normalize(queries) @ _class_means(features, labels).T).argmax(1)


def _nearest_mean_head(features: Tensor, labels: Tensor) -> LinearHead:
    """The head that classifies as `nearest_mean`, for pictures of which none can be held out to choose a strength by.

    The length of a query is the same factor for every class, so that the largest logit is that of the largest cosine.
    """
    weight = COSINE_SCALE * _class_means(features, labels) / features.norm(dim=1).mean()
    return LinearHead(weight, torch.zeros(len(weight)), math.nan)


def _class_means(features: Tensor, labels: Tensor) -> Tensor:
    """Unit vectors (classes, width) in the direction of the mean unit vector of each class."""
    unit = nn.functional.normalize(features)
    means = torch.stack([unit[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
    return nn.functional.normalize(means)


# --- one head ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Inputs:
    """The last depths, by their widths, with a factor for each."""

    widths: tuple[int, ...]
    factors: tuple[float, ...]

    @classmethod
    def of(cls, factors: tuple[float, ...], widths: Sequence[int]) -> _Inputs:
        depths = min(len(factors), len(widths))
        return cls(tuple(widths[-depths:]), factors[-depths:])


@dataclass(frozen=True)
class _Rows:
    """Scaled activations x (n, axes) for logistic regression, and the way back to a head on the activations.

    Each depth is centred and divided by one number, so that depths count by their factors and rows have unit mean
    square length: (pooled - mean) / scale. Rotated to their principal axes, rows have the same penalty and the same
    logits, and fewer columns where there are fewer pictures than activations.
    """

    x: Tensor
    mean: Tensor
    scale: Tensor
    _rows: Tensor
    _way_back: Tensor

    @classmethod
    def of(cls, pooled: Tensor, inputs: _Inputs) -> _Rows:
        parts = pooled[:, -sum(inputs.widths) :].split(list(inputs.widths), 1)
        length = sum(factor**2 for factor in inputs.factors) ** 0.5
        mean = torch.cat([part.mean(0) for part in parts])
        scale = torch.cat(
            [
                (spread(part) * length / factor).expand(part.shape[1])
                for part, factor in zip(parts, inputs.factors, strict=True)
            ]
        )
        rows = ((torch.cat(parts, 1) - mean) / scale).double()
        vectors, values = principal_axes(rows)
        return cls(vectors * values.sqrt(), mean, scale, rows, vectors / values.sqrt())

    def head(self, weight: Tensor, bias: Tensor, strength: float) -> LinearHead:
        """The head on activations that is equal to a solution for x."""
        raw = ((weight.double() @ self._way_back.T @ self._rows) / self.scale).float()
        return LinearHead(raw, bias - raw @ self.mean, strength)


@dataclass(frozen=True)
class _Candidate:
    """A head fitted on the training pictures, with held-out logits (n, classes) and losses of heads like it.

    The validation pictures are the last of n. Losses are in nats, weighted by class.
    """

    inputs: _Inputs
    head: LinearHead
    logits: Tensor
    losses: Tensor

    def clearly_beats(self, other: _Candidate) -> bool:
        """Whether its loss is lower by more than one standard error of the paired difference."""
        less = other.losses - self.losses
        return float(less.mean()) > float(less.std(correction=min(1, len(less) - 1))) / math.sqrt(len(less))


def _solved(rows: _Rows, labels: Tensor, strength: float, class_weights: Tensor | None) -> LinearHead:
    """The head fitted on the first rows, as many as there are labels."""
    model = Logistic(rows.x[: len(labels)], labels, int(labels.max()) + 1, class_weights)
    return rows.head(*model.solve(strength), strength)


def _validated(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], inputs: _Inputs, class_weights: Tensor | None
) -> _Candidate:
    """The head with the least log-loss on the validation pictures."""
    rows = _Rows.of(train[0], inputs)
    model = Logistic(rows.x, train[1], int(train[1].max()) + 1, class_weights)

    def path() -> Iterator[tuple[_Candidate, Tensor]]:
        for strength in STRENGTHS:
            head = rows.head(*model.solve(strength), strength)
            logits = head(val[0])
            losses = _losses(logits, val[1], class_weights)
            yield _Candidate(inputs, head, logits, losses), losses

    return _least(path())


def _cross_validated(
    pooled: Tensor, labels: Tensor, folds: Tensor, train: int, inputs: _Inputs, class_weights: Tensor | None
) -> _Candidate:
    """The head on the first `train` rows, at the strength with the least log-loss in cross-validation."""
    rows, classes, rated = _Rows.of(pooled, inputs), int(labels.max()) + 1, folds >= 0
    models = []
    for number in range(int(folds.max()) + 1):
        fitted, held_out = folds != number, folds == number
        models.append((held_out, Logistic(rows.x[fitted], labels[fitted], classes, class_weights)))

    def path() -> Iterator[tuple[tuple[float, Tensor, Tensor], Tensor]]:
        for strength in STRENGTHS:
            logits = torch.zeros(len(labels), classes)
            for held_out, model in models:
                weight, bias = model.solve(strength)
                logits[held_out] = rows.x[held_out].float() @ weight.T + bias
            losses = _losses(logits[rated], labels[rated], class_weights)
            yield (strength, logits, losses), losses

    strength, logits, losses = _least(path())
    return _Candidate(inputs, _solved(rows, labels[:train], strength, class_weights), logits, losses)


def _losses(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """Cross-entropy (n,) in nats, weighted by class."""
    found = nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    if class_weights is None:
        return found
    weights = class_weights[labels].double()
    return found * weights / weights.mean()


def _least(path: Iterator[tuple[T, Tensor]]) -> T:
    """The item along a path of strengths with the least mean loss."""
    best, least = next((item, float(losses.mean())) for item, losses in path)
    for item, losses in path:
        loss = float(losses.mean())
        if loss < least:
            best, least = item, loss
        elif loss > 1.2 * least:
            break  # the loss has one valley along the path, and the path has left it
    return best
