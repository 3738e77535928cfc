"""How widely rows of numbers are spread, and along which axes."""

from __future__ import annotations

import torch
from torch import Tensor


def spread(rows: Tensor) -> Tensor:
    """Root of the mean squared distance of rows (n, width) from their mean, and more than 0."""
    return (rows - rows.mean(0)).square().sum(1).mean().sqrt().clamp_min(1e-12)


def principal_axes(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (n, rank) and squared singular values (rank,), ascending, of rows (n, width), centred,
    float64.

    Rank is the number of dimensions that the rows span, but for those in which they lie next to nowhere.
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
