"""What a backbone sees at every depth: the pooled activations after each stage, in one pass."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from finetune.models.backbone import Backbone


class PooledStages(nn.Module):
    """Normalised pictures (n, 3, size, size) to (n, sum of widths): pooled activations, from the stem to the features.

    depths: the name of each; widths: how many numbers it gives. The last one is the backbone's own features; those
    before are what the next stage receives, averaged over places. A stage gives none where the next one is not called
    as a module, or receives anything but rows of pictures. For several threads at once.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        self._seen = threading.local()
        hooks = {}
        for position, stage in enumerate(backbone.stages[1:]):
            module = backbone.model.get_submodule(stage.name)
            hooks[position] = module.register_forward_pre_hook(partial(self._look, position), with_kwargs=True)
        size = backbone.preprocessing.size
        device = next(backbone.parameters()).device
        with torch.no_grad():
            parts = self._parts(torch.zeros(2, 3, size, size, device=device))
        for position, hook in hooks.items():
            if position not in parts or len(parts[position]) != 2:
                hook.remove()
                parts.pop(position, None)
        self.depths = (*(backbone.stages[position].name for position in sorted(parts)[:-1]), "features")
        self.widths = tuple(part.shape[1] for _, part in sorted(parts.items()))

    def forward(self, pictures: Tensor) -> Tensor:
        return torch.cat([part for _, part in sorted(self._parts(pictures).items())], 1)

    def split(self, pooled: Tensor) -> tuple[Tensor, ...]:
        """The depths of (n, sum of widths), (n, width) each."""
        parts: tuple[Tensor, ...] = pooled.split(self.widths, 1)
        return parts

    def last(self, width: int) -> tuple[str, ...]:
        """The depths that the last `width` numbers are of."""
        count = next(count for count in range(1, len(self.widths) + 1) if sum(self.widths[-count:]) >= width)
        return self.depths[-count:]

    def _parts(self, pictures: Tensor) -> dict[int, Tensor]:
        """By the position of the stage that gave it; the features come after all of these."""
        self._seen.parts = {}
        try:
            features = self.backbone(pictures)
            parts = {**self._seen.parts, len(self.backbone.stages): features}
            return {position: part.float() for position, part in parts.items()}
        finally:
            del self._seen.parts

    def _look(self, position: int, module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        # The hook records only inside `forward`, and only the first call of a module.
        if hasattr(self._seen, "parts") and position not in self._seen.parts:
            self._seen.parts[position] = pooled(arguments[0] if arguments else next(iter(options.values())))


def pooled(activations: Tensor | Sequence[Tensor]) -> Tensor:
    """(n, width): feature maps (n, width, h, w) or (n, h, w, width), or tokens (n, tokens, width), averaged; several of
    them, where a network has branches, side by side."""
    if not isinstance(activations, Tensor):
        branches = [branch for branch in activations if isinstance(branch, Tensor)]
        rows = branches[0].shape[0]  # len() would fix the size of the batch in an exported graph
        return torch.cat([pooled(branch) for branch in branches if branch.shape[0] == rows], 1)
    if activations.ndim == 4:
        channels_last = activations.shape[1] == activations.shape[2] != activations.shape[3]
        return activations.mean((1, 2) if channels_last else (2, 3))
    return activations.mean(1) if activations.ndim == 3 else activations
