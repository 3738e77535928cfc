"""The linear head on frozen activations: solved, not trained step by step; what it reads, and how strongly it is held
back, chosen on validation."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn

from finetune.metrics import log_loss

# Inverse L2 strengths for features of unit mean square norm, weakest model first so that each starts from the last.
STRENGTHS = tuple(float(c) for c in np.geomspace(1, 10_000, 9))

# Depths that a head may read side by side. Those far below the last tell little that these do not.
DEPTHS = 3


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


def fit_head(
    features: Tensor, labels: Tensor, val_features: Tensor, val_labels: Tensor, class_weights: Tensor | None = None
) -> LinearHead:
    """Multinomial logistic regression on (n, width) features, the strength with the least validation log-loss kept.

    labels (n,) int64 in 0..classes-1, every class present. class_weights (classes,) or None for equal ones. Features
    are centred and scaled by one number first; the returned head takes them as they are.
    """
    mean = features.mean(0)
    scale = (features - mean).square().sum(1).mean().sqrt().clamp_min(1e-12)
    x, y = ((features - mean) / scale).numpy(), labels.numpy()
    weights = None if class_weights is None else {index: float(weight) for index, weight in enumerate(class_weights)}
    model = LogisticRegression(warm_start=True, max_iter=300, class_weight=weights)
    best: tuple[float, LinearHead] | None = None
    for strength in STRENGTHS:
        model.C = strength
        with warnings.catch_warnings():
            # Nearly separable classes and a weak penalty: stopping early is a penalty too, and validation judges it.
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(x, y)
        head = _as_head(model, mean, scale, strength)
        loss = log_loss(head(val_features), val_labels, class_weights)
        if best is None or loss < best[0]:
            best = loss, head
        elif loss > 1.5 * best[0]:
            break  # the loss has one valley along the path, and it lies behind
    assert best is not None
    return best[1]


def fit_best_head(
    pooled: Tensor,
    labels: Tensor,
    val_pooled: Tensor,
    val_labels: Tensor,
    widths: Sequence[int],
    class_weights: Tensor | None = None,
) -> tuple[LinearHead, LinearHead]:
    """The head on the last of the depths, and the better of that and the one on the last DEPTHS side by side.

    pooled (n, sum of widths): activations of every depth, the features last. Which is better, validation log-loss says.
    """

    def fitted(width: int, scale: Tensor) -> LinearHead:
        x, val_x = (activations[:, -width:] / scale for activations in (pooled, val_pooled))
        head = fit_head(x, labels, val_x, val_labels, class_weights)
        return LinearHead(head.weight / scale, head.bias, head.strength)

    last = fitted(widths[-1], torch.ones(widths[-1]))
    top = widths[-DEPTHS:]
    # Each depth counts alike, however large its numbers are.
    wide = fitted(
        sum(top), torch.cat([_spread(part).expand(part.shape[1]) for part in pooled[:, -sum(top) :].split(top, 1)])
    )
    losses = [log_loss(head(val_pooled), val_labels, class_weights) for head in (last, wide)]
    return last, wide if losses[1] < losses[0] else last


def _spread(part: Tensor) -> Tensor:
    """Root of the mean squared distance from the mean."""
    return (part - part.mean(0)).square().sum(1).mean().sqrt().clamp_min(1e-12)


def nearest_mean(features: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """Class, (m,), whose mean of the unit-length features (n, width) is most like each query (m, width), by cosine."""
    unit = nn.functional.normalize(features)
    means = torch.stack([unit[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
    return (nn.functional.normalize(queries) @ nn.functional.normalize(means).T).argmax(1)


def _as_head(model: LogisticRegression, mean: Tensor, scale: Tensor, strength: float) -> LinearHead:
    weight = torch.from_numpy(np.asarray(model.coef_, dtype=np.float32))
    bias = torch.from_numpy(np.asarray(model.intercept_, dtype=np.float32))
    if len(weight) == 1:  # scikit-learn keeps one row for two classes
        weight, bias = torch.cat([-weight, weight]) / 2, torch.cat([-bias, bias]) / 2
    weight = weight / scale
    return LinearHead(weight, bias - weight @ mean, strength)
