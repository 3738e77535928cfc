"""Scores of unknown pictures that others use, on pooled activations: larger is more like one of the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor

from finetune.linear.head import LinearHead
from finetune.linear.ridge import Rows, fit_ridge_head
from finetune.models.depth_head import unit_depths

Floats: TypeAlias = NDArray[np.float64]
DEPTHS, NEAREST = 3, 5
SCORES = ("softmax", "logit", "energy", "mahalanobis", "relative mahalanobis", "nearest", "product")


def peer_scores(
    pooled: Tensor, labels: Tensor, widths: Sequence[int], asked: Tensor
) -> tuple[dict[str, Floats], NDArray[np.int64]]:
    """Scores (m,) of the pictures `asked` by name, and the classes (m,) that the head answers.

    Sources: Hendrycks & Gimpel (2017) for the softmax; Hendrycks et al. (2022) for the logit; Liu et al. (2020) for the
    energy; Lee et al. (2018) and Ren et al. (2021) for Mahalanobis distances; Sun et al. (2022) for nearest pictures.
    """
    classes = int(labels.max()) + 1
    logits = LinearHead.of(fit_ridge_head(Rows.labelled(pooled, labels, classes), widths))(asked).double()
    read = list(widths[-DEPTHS:])
    x, queries = (unit_depths(part[:, -sum(read) :].double(), read).numpy() for part in (pooled, asked))
    near, relative = _mahalanobis(x, labels.numpy(), queries)
    cosines = queries @ x.T / len(read)
    nearest = -np.sort(-cosines, 1)[:, : max(1, min(NEAREST, len(x) // classes))]
    scores = {
        "softmax": logits.softmax(1).amax(1).numpy(),
        "logit": logits.amax(1).numpy(),
        "energy": logits.logsumexp(1).numpy(),
        "mahalanobis": near,
        "relative mahalanobis": relative,
        "nearest": nearest.mean(1),
    }
    return scores, logits.argmax(1).numpy()


def _mahalanobis(x: Floats, y: NDArray[np.int64], asked: Floats) -> tuple[Floats, Floats]:
    """Minus the distance to the nearest class mean, and minus its excess over the distance to the mean of all."""
    means = np.stack([x[y == label].mean(0) for label in range(y.max() + 1)])
    freedom = len(x) - len(means)
    if freedom <= 0:  # without a covariance it is the Euclidean distance
        own = -np.square(asked[:, None] - means).sum(2).min(1)
        return own, own
    within = _Distance(x - means[y], freedom)
    own = np.stack([within(asked - mean) for mean in means], 1).min(1)
    return -own, _Distance(x - x.mean(0), len(x) - 1)(asked - x.mean(0)) - own


class _Distance:
    """Squared Mahalanobis distance of rows by a covariance with Ledoit-Wolf shrinkage."""

    def __init__(self, centred: Floats, freedom: int):
        share = float(ledoit_wolf_shrinkage(centred, assume_centered=True))
        _, singular, axes = np.linalg.svd(centred, full_matrices=False)
        self.axes, variances = axes, np.square(singular) / freedom
        self.floor = max(share, 1e-6) * variances.sum() / centred.shape[1]
        self.factors = 1 / ((1 - share) * variances + self.floor) - 1 / self.floor

    def __call__(self, rows: Floats) -> Floats:
        found: Floats = np.square(rows).sum(1) / self.floor + np.square(rows @ self.axes.T) @ self.factors
        return found
