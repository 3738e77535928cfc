"""How far pictures are from those that a network was trained on, by the statistics of its batch norms."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

# Fewer pictures are too few to tell: their own variance is measured on them.
LEAST_PICTURES, PICTURES = 8, 24


def batch_norm_distance(network: nn.Module, pixels: Tensor) -> float | None:
    """Distance of pictures from those that a network was trained on.

    Each batch norm holds the mean and the variance of its input over the training pictures. The distance is the
    Kullback-Leibler divergence of the pictures' own mean and variance from these, for normal distributions: the median
    over channels, averaged over the batch norms. No label and no training picture is needed.

    Photographs are several times nearer to ImageNet networks than drawings, digits or steel surfaces: see
    benchmarks/similarity.py.

    Args:
        network: In evaluation mode; it is not changed.
        pixels: Normalised pictures, (n, 3, size, size), on the network's device.

    Returns:
        The distance in nats. None for a network without batch norm, or fewer than LEAST_PICTURES pictures.

    Source: Li et al. (2017), Revisiting Batch Normalization for Practical Domain Adaptation, section 3, for domains as
    statistics of batch norm.
    """
    found: list[float] = []

    def measure(norm: _BatchNorm) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            assert norm.running_mean is not None
            assert norm.running_var is not None
            mean = inputs[0].mean((0, 2, 3)) - norm.running_mean
            variance = inputs[0].var((0, 2, 3), correction=0).clamp_min(1e-9)
            own = norm.running_var + norm.eps
            divergence = 0.5 * ((variance + mean.square()) / own - 1 - (variance / own).log())
            found.append(float(divergence.median()))

        return hook

    norms = [norm for norm in network.modules() if isinstance(norm, _BatchNorm) and norm.running_mean is not None]
    if len(pixels) < LEAST_PICTURES or not norms:
        return None
    hooks = [norm.register_forward_pre_hook(measure(norm)) for norm in norms]
    try:
        with torch.no_grad():
            network(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    return float(np.mean(found)) if found else None
