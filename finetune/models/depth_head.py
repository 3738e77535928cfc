"""The layer of a head that reads the features of a backbone and the unit vectors of its last depths."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class DepthHead(nn.Module):
    """Pooled activations (n, sum of widths), the features last, to logits (n, classes).

    The logits are linear in the features and in the activations of every depth, each divided by its length. Lengths
    differ between pictures of one class, and a classifier of few pictures is more accurate without them.

    Args:
        widths: Number of activations of each depth, the features last.
        classes: Number of classes.

    Attributes:
        weight: Weights of the features, (classes, last of widths).
        unit_weight: Weights of the unit vectors, (classes, sum of widths).
        bias: Shape (classes,).

    Example:
        >>> import torch
        >>> from finetune.models.depth_head import DepthHead
        >>> DepthHead([16, 32], 3)(torch.randn(8, 48)).shape
        torch.Size([8, 3])
    """

    def __init__(self, widths: Sequence[int], classes: int):
        super().__init__()
        self.widths = list(widths)
        self.in_features, self.out_features = sum(widths), classes
        self.weight = nn.Parameter(torch.zeros(classes, self.widths[-1]))
        self.unit_weight = nn.Parameter(torch.zeros(classes, self.in_features))
        self.bias = nn.Parameter(torch.zeros(classes))

    def forward(self, activations: Tensor) -> Tensor:
        features = activations[:, -self.widths[-1] :]
        units = unit_depths(activations, self.widths)
        logits: Tensor = features @ self.weight.T + units @ self.unit_weight.T + self.bias
        return logits


def unit_depths(activations: Tensor, widths: Sequence[int]) -> Tensor:
    """Activations (n, sum of widths) with those of each depth divided by their length."""
    return torch.cat([nn.functional.normalize(part) for part in activations.split(list(widths), 1)], 1)
