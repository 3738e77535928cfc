"""The linear head on frozen activations: solved, not trained step by step; what it reads, and how strongly it is held
back, chosen on validation pictures or by cross-validation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from finetune.folds import folds_of
from finetune.metrics import log_loss

T = TypeVar("T")

# Inverse L2 strengths for features of unit mean square norm, weakest model first so that each starts from the last.
STRENGTHS = tuple(float(c) for c in np.geomspace(1, 10_000, 9))

# Depths that a head may read side by side. Those far below the last tell little that these do not.
DEPTHS = 3

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

    best: the better of that and of one that reads more depths; both have learned from the training pictures alone, so
    that validation may judge them. kept: best, or its like that has learned from the validation pictures too.
    cross_validated: whether the choice was made so, not on the validation pictures.
    """

    features: LinearHead
    best: LinearHead
    kept: LinearHead
    cross_validated: bool


def solve_heads(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    widths: Sequence[int],
    class_weights: Tensor | None = None,
    *,
    learn_from_val: bool = False,
) -> Heads:
    """Heads on pooled activations (n, sum of widths), the features last, for labels (n,) int64, every class present.

    What is read, the last of the depths or the last DEPTHS side by side, and the strength are those with the least
    log-loss, on val, or where that is small in cross-validation on both. learn_from_val: whether the one that is kept
    may learn from val too. class_weights (classes,) or None for equal ones.
    """
    both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
    folds = folds_of(both[1], FOLDS)
    crossed = len(val[1]) < ENOUGH_TO_CHOOSE and len(both[1]) <= MOST_CROSS_VALIDATED and int(folds.max()) > 0
    found = []
    for depths in (1, min(DEPTHS, len(widths))):
        read = widths[-depths:]
        if crossed:
            loss, strength = _cross_validated(*both, folds, read, class_weights)
            found.append((loss, _solved(*train, read, strength, class_weights)))
        else:
            found.append(_validated(*train, *val, read, class_weights))
    features = found[0][1]
    best = found[1][1] if found[1][0] < found[0][0] else features
    kept = best
    if learn_from_val:
        read = widths[-1:] if best is features else widths[-DEPTHS:]
        kept = _solved(*both, read, best.strength, class_weights)
    return Heads(features, best, kept, crossed)


def nearest_mean(features: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """Class, (m,), whose mean of the unit-length features (n, width) is most like each query (m, width), by cosine."""
    unit = nn.functional.normalize(features)
    means = torch.stack([unit[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
    return (nn.functional.normalize(queries) @ nn.functional.normalize(means).T).argmax(1)


# --- one head ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Rows:
    """Activations (n, width) as logistic regression receives them, and the way back.

    Each depth is centred and scaled by one number, so that all count alike. Fewer pictures than numbers span fewer
    dimensions, in which the penalty and every answer are the same: `axes` (dimensions, width), None where not fewer.
    """

    x: NDArray[np.float32]
    mean: Tensor
    scale: Tensor
    axes: Tensor | None

    @classmethod
    def of(cls, pooled: Tensor, read: Sequence[int]) -> _Rows:
        parts = pooled[:, -sum(read) :].split(list(read), 1)
        mean = torch.cat([part.mean(0) for part in parts])
        scale = torch.cat([_spread(part).expand(part.shape[1]) for part in parts]) * len(parts) ** 0.5
        x = ((pooled[:, -sum(read) :] - mean) / scale).double()
        if len(x) >= x.shape[1]:
            return cls(x.float().numpy(), mean, scale, None)
        axes = torch.linalg.svd(x, full_matrices=False).Vh
        return cls((x @ axes.T).float().numpy(), mean, scale, axes.float())

    def head(self, model: LogisticRegression) -> LinearHead:
        """What the model has learned of rows like these, for activations as they are."""
        weight, bias = torch.from_numpy(np.asarray(model.coef_)), torch.from_numpy(np.asarray(model.intercept_))
        if len(weight) == 1:  # scikit-learn keeps one row for two classes
            weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
        if self.axes is not None:
            weight = weight @ self.axes
        weight = (weight / self.scale).float()
        return LinearHead(weight, bias.float() - weight @ self.mean, float(model.C))


def _solved(
    pooled: Tensor, labels: Tensor, read: Sequence[int], strength: float, class_weights: Tensor | None
) -> LinearHead:
    """Multinomial logistic regression on the last depths, as wide as `read`."""
    rows = _Rows.of(pooled, read)
    model = _model(class_weights)
    _fit(model, rows.x, labels.numpy(), strength)
    return rows.head(model)


def _validated(
    pooled: Tensor,
    labels: Tensor,
    val_pooled: Tensor,
    val_labels: Tensor,
    read: Sequence[int],
    class_weights: Tensor | None,
) -> tuple[float, LinearHead]:
    """The head with the least log-loss on the validation pictures, and that loss."""
    rows, model, y = _Rows.of(pooled, read), _model(class_weights), labels.numpy()

    def tried(strength: float) -> tuple[float, LinearHead]:
        _fit(model, rows.x, y, strength)
        head = rows.head(model)
        return log_loss(head(val_pooled), val_labels, class_weights), head

    return _least(tried)


def _cross_validated(
    pooled: Tensor, labels: Tensor, folds: Tensor, read: Sequence[int], class_weights: Tensor | None
) -> tuple[float, float]:
    """The strength with the least log-loss, each picture judged by what was learned from the other folds; that loss."""
    rows, y, fold = _Rows.of(pooled, read), labels.numpy(), folds.numpy()
    parts = [(fold != number, fold == number, _model(class_weights)) for number in range(fold.max() + 1)]
    judged = folds >= 0

    def tried(strength: float) -> tuple[float, float]:
        logits = torch.zeros(len(y), int(y.max()) + 1)
        for learn, asked, model in parts:
            _fit(model, rows.x[learn], y[learn], strength)
            decided = torch.from_numpy(model.decision_function(rows.x[asked])).float()
            # scikit-learn has one number for two classes
            logits[asked] = decided if decided.ndim == 2 else torch.stack([-decided, decided], 1) / 2
        return log_loss(logits[judged], labels[judged], class_weights), strength

    return _least(tried)


def _least(tried: Callable[[float], tuple[float, T]]) -> tuple[float, T]:
    """The least loss along the path of strengths, with what has it."""
    best: tuple[float, T] | None = None
    for strength in STRENGTHS:
        found = tried(strength)
        if best is None or found[0] < best[0]:
            best = found
        elif found[0] > 1.5 * best[0]:
            break  # the loss has one valley along the path, and it lies behind
    assert best is not None
    return best


def _model(class_weights: Tensor | None) -> LogisticRegression:
    weights = None if class_weights is None else {index: float(weight) for index, weight in enumerate(class_weights)}
    return LogisticRegression(warm_start=True, max_iter=300, class_weight=weights)


def _fit(model: LogisticRegression, x: NDArray[np.float32], y: NDArray[np.int64], strength: float) -> None:
    model.C = strength
    with warnings.catch_warnings():
        # Nearly separable classes and a weak penalty: stopping early is a penalty too, and what judges sees it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(x, y)


def _spread(part: Tensor) -> Tensor:
    """Root of the mean squared distance from the mean."""
    return (part - part.mean(0)).square().sum(1).mean().sqrt().clamp_min(1e-12)
