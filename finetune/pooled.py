"""What a backbone sees at every depth: the pooled activations after each stage, in one pass."""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor, nn

from finetune.backbone import Backbone


class PooledStages(nn.Module):
    """Normalised pictures (n, 3, size, size) to (n, sum of widths): pooled activations, from the stem to the features.

    depths: the name of each; widths: how many numbers it gives. The last one is the backbone's own features; those
    before are what the next stage receives, averaged over places. For several threads at once.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        self._seen = threading.local()
        for stage in backbone.stages[1:]:
            backbone.model.get_submodule(stage.name).register_forward_pre_hook(self._look, with_kwargs=True)
        size = backbone.preprocessing.size
        device = next(backbone.parameters()).device
        with torch.no_grad():
            parts = self._parts(torch.zeros(1, 3, size, size, device=device))
        self.depths = (*(stage.name for stage in backbone.stages[: len(parts) - 1]), "features")
        self.widths = tuple(part.shape[1] for part in parts)

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.cat(self._parts(pictures), 1)

    def split(self, pooled: Tensor) -> tuple[Tensor, ...]:
        """The depths of (n, sum of widths), (n, width) each."""
        parts: tuple[Tensor, ...] = pooled.split(self.widths, 1)
        return parts

    def last(self, width: int) -> tuple[str, ...]:
        """The depths that the last `width` numbers are of."""
        count = next(count for count in range(1, len(self.widths) + 1) if sum(self.widths[-count:]) >= width)
        return self.depths[-count:]

    def _parts(self, pictures: Tensor) -> list[Tensor]:
        self._seen.parts = []
        try:
            features = self.backbone(pictures)
            return [part.float() for part in [*self._seen.parts, features]]
        finally:
            del self._seen.parts

    def _look(self, module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        # The backbone is also run for itself, when nobody looks.
        if hasattr(self._seen, "parts"):
            self._seen.parts.append(pooled(arguments[0] if arguments else next(iter(options.values()))))


def pooled(activations: Tensor) -> Tensor:
    """(n, width): feature maps (n, width, h, w) or (n, h, w, width), or tokens (n, tokens, width), averaged."""
    if activations.ndim == 4:
        channels_last = activations.shape[1] == activations.shape[2] != activations.shape[3]
        return activations.mean((1, 2) if channels_last else (2, 3))
    return activations.mean(1) if activations.ndim == 3 else activations
