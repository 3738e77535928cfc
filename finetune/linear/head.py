"""The linear head on frozen activations: solved, not trained step by step; what it reads, and how strongly it is held
back, chosen on validation pictures or by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from finetune.linear.logistic import Logistic, folds_of, principal_axes, spread
from finetune.metrics import accuracy

T = TypeVar("T")

# Inverse L2 strengths for features of unit mean square norm, weakest model first so that each starts from the last.
STRENGTHS = tuple(float(c) for c in np.geomspace(1, 10_000, 9))

# What a head may read: how much the last depths count, the features last. FALLING serves nearly everywhere, and is
# given up only where another is better by more than chance.
FEATURES, FALLING, EQUAL = (1.0,), (0.25, 0.5, 1.0), (1.0, 1.0, 1.0)

# Fewer validation pictures than these choose by chance: all that there are, in FOLDS parts, then choose in their place,
# unless they are so many that it takes long.
ENOUGH_TO_CHOOSE, FOLDS, MOST_CROSS_VALIDATED = 100, 5, 1500


@dataclass(frozen=True)
class LinearHead:
    """Logits = activations @ weight.T + bias. weight (classes, width), bias (classes,). strength: chosen inverse L2.

    Of pooled activations of all depths (n, at least width) it reads the last `width`: the features, or more depths.
    """

    weight: Tensor
    bias: Tensor
    strength: float

    @property
    def width(self) -> int:
        return int(self.weight.shape[1])

    def __call__(self, activations: Tensor) -> Tensor:
        return activations[:, -self.width :] @ self.weight.T + self.bias

    def as_layer(self) -> nn.Linear:
        """The same as a layer that can learn on."""
        layer = nn.Linear(self.weight.shape[1], self.weight.shape[0])
        layer.load_state_dict({"weight": self.weight, "bias": self.bias})
        return layer


@dataclass(frozen=True)
class Heads:
    """Heads of one folder. features: reads the features alone, what a network starts to learn from.

    best: the better of that and of one that reads more depths; both have learned from the training pictures alone.
    kept: best, or its like that has learned from the validation pictures too. val_logits (m, classes): what `kept`
    is worth on the validation pictures, each of them judged by a head of its kind that has not learned from it.
    cross_validated: whether the choice was made so, not on the validation pictures. error: share of the pictures that
    made the choice which heads like `best` get wrong, none of them having learned from these pictures.
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
    """Heads on pooled activations (n, sum of widths), the features last, for labels (n,) int64, every class present.

    What is read, of FEATURES, FALLING and EQUAL, and the strength are chosen by the log-loss on val, or where that is
    small in cross-validation on both. learn_from_val: whether the one that is kept may learn from val too.
    class_weights (classes,) or None for equal ones.
    """
    both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    folds = folds_of(both[1], FOLDS)
    crossed = len(val[1]) < ENOUGH_TO_CHOOSE and len(both[1]) <= MOST_CROSS_VALIDATED and int(folds.max()) > 0

    def judged(counts: tuple[float, ...]) -> _Judged:
        reading = _Reading.of(counts, widths)
        if crossed:
            return _cross_validated(*both, folds, len(train[1]), reading, class_weights)
        return _validated(train, val, reading, class_weights)

    features, chosen = judged(FEATURES), judged(FALLING)
    for other in (features, judged(EQUAL)):
        if other.clearly_beats(chosen):
            chosen = other
    best = chosen.head
    judging = folds >= 0 if crossed else torch.arange(len(both[1])) >= len(train[1])
    error = 1 - accuracy(chosen.logits[judging[-len(chosen.logits) :]], both[1][judging])
    if not learn_from_val:
        return Heads(features.head, best, best, best(val[0]), crossed, error)
    kept = _solved(_Rows.of(both[0], chosen.reading), both[1], best.strength, class_weights)
    return Heads(features.head, best, kept, chosen.logits[-len(val[1]) :], crossed, error)


def nearest_mean(features: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """Class, (m,), whose mean of the unit-length features (n, width) is most like each query (m, width), by cosine."""
    unit = nn.functional.normalize(features)
    means = torch.stack([unit[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
    return (nn.functional.normalize(queries) @ nn.functional.normalize(means).T).argmax(1)


# --- one head ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Reading:
    """The last depths, which are so wide, and how much each counts beside the others."""

    widths: tuple[int, ...]
    counts: tuple[float, ...]

    @classmethod
    def of(cls, counts: tuple[float, ...], widths: Sequence[int]) -> _Reading:
        depths = min(len(counts), len(widths))
        return cls(tuple(widths[-depths:]), counts[-depths:])


@dataclass(frozen=True)
class _Rows:
    """Activations (n, width) as logistic regression receives them, and the way back.

    Each depth is centred and scaled by one number, so that all count as the reading says, and rows are of unit mean
    square length: (pooled - mean) / scale. The penalty and every answer are the same along their principal axes, which
    are fewer where there are fewer pictures than numbers: x (n, axes).
    """

    x: Tensor
    mean: Tensor
    scale: Tensor
    _rows: Tensor
    _way_back: Tensor

    @classmethod
    def of(cls, pooled: Tensor, reading: _Reading) -> _Rows:
        parts = pooled[:, -sum(reading.widths) :].split(list(reading.widths), 1)
        length = sum(count**2 for count in reading.counts) ** 0.5
        mean = torch.cat([part.mean(0) for part in parts])
        scale = torch.cat(
            [
                (spread(part) * length / count).expand(part.shape[1])
                for part, count in zip(parts, reading.counts, strict=True)
            ]
        )
        rows = ((torch.cat(parts, 1) - mean) / scale).double()
        vectors, values = principal_axes(rows)
        return cls(vectors * values.sqrt(), mean, scale, rows, vectors / values.sqrt())

    def head(self, weight: Tensor, bias: Tensor, strength: float) -> LinearHead:
        """What was solved for x, for activations as they are."""
        raw = ((weight.double() @ self._way_back.T @ self._rows) / self.scale).float()
        return LinearHead(raw, bias - raw @ self.mean, strength)


@dataclass(frozen=True)
class _Judged:
    """A head on `reading` that has learned from the training pictures, and how heads like it were judged.

    logits (n, classes): of pictures that they were not learned from, val last. losses (n or fewer,): of those that
    judge, in nats, each as much as its class counts.
    """

    reading: _Reading
    head: LinearHead
    logits: Tensor
    losses: Tensor

    def clearly_beats(self, other: _Judged) -> bool:
        """By more than one standard error of the difference on the same pictures."""
        less = other.losses - self.losses
        return float(less.mean()) > float(less.std(correction=min(1, len(less) - 1))) / math.sqrt(len(less))


def _solved(rows: _Rows, labels: Tensor, strength: float, class_weights: Tensor | None) -> LinearHead:
    """What the first of the rows, as many as there are labels, teach."""
    model = Logistic(rows.x[: len(labels)], labels, int(labels.max()) + 1, class_weights)
    return rows.head(*model.solve(strength), strength)


def _validated(
    train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], reading: _Reading, class_weights: Tensor | None
) -> _Judged:
    """The head with the least log-loss on val."""
    rows = _Rows.of(train[0], reading)
    model = Logistic(rows.x, train[1], int(train[1].max()) + 1, class_weights)

    def at(strength: float) -> _Judged:
        head = rows.head(*model.solve(strength), strength)
        logits = head(val[0])
        return _Judged(reading, head, logits, _losses(logits, val[1], class_weights))

    return _least(at, lambda judged: judged.losses)


def _cross_validated(
    pooled: Tensor, labels: Tensor, folds: Tensor, train: int, reading: _Reading, class_weights: Tensor | None
) -> _Judged:
    """The head on the first `train` rows at the strength with the least log-loss, each picture being judged by what was
    learned from the other folds."""
    rows, classes, judged = _Rows.of(pooled, reading), int(labels.max()) + 1, folds >= 0
    parts = []
    for number in range(int(folds.max()) + 1):
        learned, asked = folds != number, folds == number
        parts.append((asked, Logistic(rows.x[learned], labels[learned], classes, class_weights)))

    def at(strength: float) -> tuple[float, Tensor, Tensor]:
        logits = torch.zeros(len(labels), classes)
        for asked, model in parts:
            weight, bias = model.solve(strength)
            logits[asked] = rows.x[asked].float() @ weight.T + bias
        return strength, logits, _losses(logits[judged], labels[judged], class_weights)

    strength, logits, losses = _least(at, lambda found: found[2])
    return _Judged(reading, _solved(rows, labels[:train], strength, class_weights), logits, losses)


def _losses(logits: Tensor, labels: Tensor, class_weights: Tensor | None) -> Tensor:
    """(n,) in nats, each as much as its class counts."""
    found = nn.functional.cross_entropy(logits.double(), labels, reduction="none")
    if class_weights is None:
        return found
    counts = class_weights[labels].double()
    return found * counts / counts.mean()


def _least(at: Callable[[float], T], losses: Callable[[T], Tensor]) -> T:
    """What there is at the strength along the path with the least mean loss."""
    best: tuple[float, T] | None = None
    for strength in STRENGTHS:
        found = at(strength)
        loss = float(losses(found).mean())
        if best is None or loss < best[0]:
            best = loss, found
        elif loss > 1.2 * best[0]:
            break  # the loss has one valley along the path, and it lies behind
    assert best is not None
    return best[1]
