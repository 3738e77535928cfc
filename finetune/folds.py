"""Pictures divided into folds, for cross-validation."""

from __future__ import annotations

import torch
from torch import Tensor


def folds_of(labels: Tensor, folds: int) -> Tensor:
    """(n,) int64: the fold of each picture, 0..folds - 1, its share of each class in each; -1 for the only one of its
    class, which is always learned from. labels (n,) int64."""
    fold = torch.full_like(labels, -1)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        if len(rows) > 1:
            fold[rows] = torch.arange(len(rows)) % folds
    return fold
