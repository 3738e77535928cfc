"""Logistic regression with an L2 penalty, solved for one strength after another."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

# The search ends where two steps together lower the objective by less than this share of it. One small step alone may
# be bad luck, far from the minimum.
_LESS, _MOST_STEPS, _REMEMBERED = 1e-5, 300, 10
# Lower bound of p (1 - p) in the curvature, so that no direction counts as flat.
_LEAST_DOUBT = 1e-4

_Loss = Callable[[Tensor, float], tuple[float, Tensor]]


class Logistic:
    """Multinomial logistic regression.

    A solution starts from the previous one. Steps are scaled by the curvature of the objective at the start, along each
    column, so that a solution takes one or two dozen steps for any features.

    Args:
        x: Rows (n, d). Columns should be uncorrelated, as they are along principal axes.
        targets: Labels (n,), int64 from 0; or soft labels (n, classes), float, 0 or more: the weight of each class for
            each row. A row counts as much as its weights sum to.
        classes: Number of classes.
        weights: Weights of the classes, shape (classes,). None for equal weights.
    """

    def __init__(self, x: Tensor, targets: Tensor, classes: int, weights: Tensor | None = None):
        self._x = x.float()
        self._loss: _Loss
        if targets.ndim == 1:
            self._counts = torch.ones(len(x)) if weights is None else weights[targets].float()
            self._loss = self._of_labels(targets)
        else:
            weighted = (targets if weights is None else targets * weights).float()
            self._counts = weighted.sum(1)
            self._loss = self._of_soft_labels(weighted)
        self._spread = self._counts @ self._x.square()
        self._found = torch.zeros(classes, x.shape[1] + 1)

    def solve(self, strength: float) -> tuple[Tensor, Tensor]:
        """Minimise `strength` times the loss in nats, summed over rows, plus half the squared weights.

        Returns:
            Weights (classes, d) and biases (classes,).
        """
        scale = self._curvature(strength).rsqrt()

        def objective(steps: Tensor) -> tuple[float, Tensor]:
            value, slope = self._value(steps * scale, strength)
            return value, slope * scale

        self._found = _lowest(objective, self._found / scale) * scale
        return self._found[:, :-1], self._found[:, -1]

    def _value(self, found: Tensor, strength: float) -> tuple[float, Tensor]:
        """The objective and its gradient (classes, d + 1)."""
        weight = found[:, :-1]
        loss, residual = self._loss(self._log_probabilities(found), strength)
        slope = torch.cat([residual.T @ self._x + weight, residual.sum(0)[:, None]], 1)
        return float(strength * loss + 0.5 * weight.double().square().sum()), slope

    def _of_labels(self, labels: Tensor) -> _Loss:
        """The loss by log-probabilities (n, classes), and its gradient by the logits times `strength`."""
        rows = torch.arange(len(labels))

        def loss(log_probabilities: Tensor, strength: float) -> tuple[float, Tensor]:
            value = -(self._counts.double() @ log_probabilities[rows, labels].double())
            residual = log_probabilities.exp_()
            residual[rows, labels] -= 1
            residual *= strength * self._counts[:, None]
            return float(value), residual

        return loss

    def _of_soft_labels(self, weighted: Tensor) -> _Loss:
        """The same for soft labels (n, classes)."""

        def loss(log_probabilities: Tensor, strength: float) -> tuple[float, Tensor]:
            value = -(weighted * log_probabilities).double().sum()
            residual = log_probabilities.exp_().mul_(self._counts[:, None]).sub_(weighted)
            residual *= strength
            return float(value), residual

        return loss

    def _curvature(self, strength: float) -> Tensor:
        """Curvature of the objective at the start, by class and column, (classes, d + 1)."""
        p = self._log_probabilities(self._found).exp()
        doubt = strength * (self._counts @ (p * (1 - p)) / len(p)).clamp_min(_LEAST_DOUBT)[:, None]
        return torch.cat([doubt * self._spread + 1, doubt * self._counts.sum()], 1)

    def _log_probabilities(self, found: Tensor) -> Tensor:
        return (self._x @ found[:, :-1].T + found[:, -1]).log_softmax(1)


def _lowest(objective: Callable[[Tensor], tuple[float, Tensor]], begin: Tensor) -> Tensor:
    """The minimum of a convex function by L-BFGS (Liu & Nocedal 1989); `objective` returns value and gradient.

    Its curvature at the start is about 1 in every direction, so that a step of length 1 has the right magnitude.
    """
    place, (value, slope) = begin, objective(begin)
    steps: deque[tuple[Tensor, Tensor, float]] = deque(maxlen=_REMEMBERED)
    before = math.inf  # the value one step ago
    for _ in range(_MOST_STEPS):
        direction = _downhill(slope, steps)
        gain, length = float((direction * slope).sum()), 1.0
        while True:
            there = place + length * direction
            lower, turned = objective(there)
            if lower <= value + 1e-4 * length * gain or length < 1e-6:
                break
            length /= 2
        if not lower < value or not lower < before * (1 - _LESS):
            return there if lower < value else place
        moved, change = there - place, turned - slope
        curved = float((moved * change).sum())
        if curved > 0:
            steps.append((moved, change, curved))
        before, place, value, slope = value, there, lower, turned
    return place


def _downhill(slope: Tensor, steps: deque[tuple[Tensor, Tensor, float]]) -> Tensor:
    """The direction of Newton's step, with the curvature estimated from the last steps (two-loop recursion)."""
    direction, shares = -slope, []
    for moved, change, curved in reversed(steps):
        shares.append(float((moved * direction).sum()) / curved)
        direction = direction - shares[-1] * change
    if steps:
        _, change, curved = steps[-1]
        direction = direction * (curved / float(change.square().sum()))
    for (moved, change, curved), share in zip(steps, reversed(shares), strict=True):
        direction = direction + (share - float((change * direction).sum()) / curved) * moved
    return direction


def spread(rows: Tensor) -> Tensor:
    """Root mean squared distance of rows (n, width) from their mean; at least 1e-12."""
    return (rows - rows.mean(0)).square().sum(1).mean().sqrt().clamp_min(1e-12)


def principal_axes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (n, rank) and squared singular values (rank,), ascending, of centred rows (n, width).

    Values below 1e-12 of the largest one are left out.
    """
    n, width = rows.shape
    if width < n:
        values, right = torch.linalg.eigh(rows.T @ rows)
        kept = _kept(values)
        return rows @ (right[:, kept] / values[kept].sqrt()), values[kept]
    values, left = torch.linalg.eigh(rows @ rows.T)
    kept = _kept(values)
    return left[:, kept], values[kept]


def _kept(values: Tensor) -> Tensor:
    return values > values[-1].clamp_min(1e-300) * 1e-12


def folds_of(labels: Tensor, folds: int) -> Tensor:
    """Stratified folds, shape (n,), from 0; -1 for the only picture of its class, which is never held out."""
    fold = torch.full_like(labels, -1)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) > 1:
            fold[rows] = torch.arange(len(rows)) % folds
    return fold
