"""The linear head on frozen activations, and what it is worth on pictures that it has not learned from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from finetune.linear.ridge import FEATURES, RidgeHead, Rows, fit_ridge_head
from finetune.metrics import accuracy
from finetune.models.depth_head import DepthHead, unit_depths


@dataclass(frozen=True)
class LinearHead:
    """A classifier of pooled activations: logits = features @ weight.T + unit vectors @ unit_weight.T + bias.

    Attributes:
        weight: Weights of the features, (classes, width of the features).
        bias: Shape (classes,).
        unit_weight: Weights of the activations of the last depths, each depth divided by its length: (classes, sum of
            widths). None where the head reads the features alone.
        widths: Number of activations of each depth that is read, the features last.
    """

    weight: Tensor
    bias: Tensor
    unit_weight: Tensor | None = None
    widths: tuple[int, ...] = ()

    @classmethod
    def of(cls, found: RidgeHead) -> LinearHead:
        return cls(found.weight, found.bias, found.unit_weight, found.widths)

    @property
    def width(self) -> int:
        """Number of activations that the head reads."""
        return int(self.weight.shape[1]) if self.unit_weight is None else sum(self.widths)

    def __call__(self, activations: Tensor) -> Tensor:
        """Logits (n, classes) of pooled activations (n, width or more)."""
        logits = activations[:, -self.weight.shape[1] :] @ self.weight.T + self.bias
        if self.unit_weight is None:
            return logits
        return logits + unit_depths(activations[:, -self.width :], self.widths) @ self.unit_weight.T

    def as_layer(self) -> nn.Linear | DepthHead:
        """The head as a trainable layer."""
        if self.unit_weight is None:
            layer: nn.Linear | DepthHead = nn.Linear(self.weight.shape[1], self.weight.shape[0])
            layer.load_state_dict({"weight": self.weight, "bias": self.bias})
        else:
            layer = DepthHead(self.widths, self.weight.shape[0])
            layer.load_state_dict({"weight": self.weight, "unit_weight": self.unit_weight, "bias": self.bias})
        return layer


@dataclass(frozen=True)
class Heads:
    """Heads of one folder of pictures.

    Attributes:
        features: Head on the features alone, fitted on the training pictures, from which training starts.
        kept: The head to deploy, an average over inputs and strengths, fitted on the training pictures, or on these and
            the validation pictures.
        val_logits: Logits (m, classes) of the validation pictures, each by a head like `kept` that was fitted without
            the picture.
        learned_from_val: Whether `kept` was fitted on the validation pictures too.
        shares: Share of each input in the average.
        error: Error rate of heads like `kept` on the pictures that it has learned from, each by a head that was fitted
            without the picture; of `kept` on the validation pictures where it has not learned from these. NaN where
            every class has one picture, so that none can be held out.
    """

    features: LinearHead
    kept: LinearHead
    val_logits: Tensor
    learned_from_val: bool
    shares: dict[str, float]
    error: float


def solve_heads(
    train: tuple[Tensor, Tensor],
    val: tuple[Tensor, Tensor],
    widths: Sequence[int],
    class_weights: Tensor | None = None,
    *,
    learn_from_val: bool = False,
) -> Heads:
    """Fit heads on pooled activations, in closed form.

    Args:
        train: Pooled activations (n, sum of widths), the features last, and labels (n,) int64 with every class present.
        val: The same of the validation pictures; there may be none.
        widths: Number of activations of each depth.
        class_weights: Shape (classes,). None for equal weights.
        learn_from_val: Whether the head to deploy is fitted on the validation pictures too.
    """
    classes = int(train[1].max()) + 1
    trained, judged = (Rows.labelled(*part, classes, class_weights) for part in (train, val))
    features = fit_ridge_head(trained, widths, judged, (FEATURES,))
    if learn_from_val:
        both = torch.cat([train[0], val[0]]), torch.cat([train[1], val[1]])
        rows = Rows.labelled(*both, classes, class_weights)
        found = fit_ridge_head(rows, widths)
        val_logits = found.held_out[len(train[1]) :]
        answers, labels = found.held_out[rows.rated], both[1][rows.rated]
    else:
        found = fit_ridge_head(trained, widths, judged)
        val_logits = LinearHead.of(found)(val[0])
        answers = torch.cat([found.held_out[trained.rated], val_logits])
        labels = torch.cat([train[1][trained.rated], val[1]])
    error = 1 - accuracy(answers, labels) if len(labels) else math.nan
    return Heads(LinearHead.of(features), LinearHead.of(found), val_logits, learn_from_val, found.shares, error)


def nearest_mean(features: Tensor, labels: Tensor, queries: Tensor) -> Tensor:
    """Nearest-class-mean classification of queries (m, width) by the cosine: classes (m,)."""
    unit = nn.functional.normalize(features)
    means = torch.stack([unit[labels == label].mean(0) for label in range(int(labels.max()) + 1)])
    return (nn.functional.normalize(queries) @ nn.functional.normalize(means).T).argmax(1)
