"""A network whose outputs are the logits of the classes and, in the last column, how unknown a picture is."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from finetune.errors import InputError
from finetune.models.backbone import Network, classified
from finetune.models.pooled import PooledStages
from finetune.open_set.likeness import Likeness


class ScoredNetwork(nn.Module):
    """Normalised pictures (n, 3, size, size) to logits and unknown scores side by side, (n, classes + 1).

    The unknown score is minus the likeness: larger is less like any of the classes.

    Args:
        network: Backbone and head.
        likeness: Reads the last depths of the backbone.
        source: Where the likeness comes from, for the error.

    Raises:
        InputError: If the likeness reads other depths than the backbone has.
    """

    def __init__(self, network: Network, likeness: Likeness, source: str):
        super().__init__()
        stages = PooledStages(network.backbone)
        if list(stages.widths[-len(likeness.widths) :]) != likeness.widths:
            raise InputError(f"{source} does not belong to this network: it reads activations that are not there")
        self.network = network
        self.likeness = likeness.to(next(network.backbone.parameters()).device)
        self.hooks = stages.hooks

    def forward(self, pictures: Tensor) -> Tensor:
        activations = self.hooks(self.network.backbone, pictures)
        head = self.network.head
        logits = classified(head, activations[:, -head.in_features :])
        return torch.cat([logits, -self.likeness(activations)[:, None]], 1)
