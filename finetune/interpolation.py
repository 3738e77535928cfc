"""Weights between those that training began with and those that it led to."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

# Shares of the way that are tried beside the whole of it.
SHARES = (0.75, 0.5, 0.25)


def between(begun: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """`share` of the way from the weights `begun` to those `trained` (WiSE-FT, Wortsman et al. 2022, section 3).

    Both start from one pretrained network, so what lies between is as good a network, and often a better one. Counts
    are those of the trained.
    """
    return {
        name: begun[name].lerp(value, share) if value.is_floating_point() else value for name, value in trained.items()
    }
