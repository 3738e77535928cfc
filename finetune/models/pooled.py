"""A backbone with the pooled activations of every depth as its output, and the network with a head that reads them."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from finetune.errors import InputError
from finetune.files.tensors import size_of
from finetune.models.backbone import Backbone, Network
from finetune.models.depth_head import DepthHead
from finetune.models.stage_hooks import StageHooks


class PooledStages(nn.Module):
    """Normalised pictures (n, 3, size, size) to pooled activations (n, sum of widths), from the stem to the features.

    The last depth is the backbone's own features. An earlier depth is the input of the next stage, averaged over
    places. A stage has no depth of its own where the next one is not called as a module, or receives anything but rows
    of pictures. Several threads may call it.

    Attributes:
        backbone: The backbone.
        hooks: Records the depths.
        depths: Names of the depths.
        widths: Number of values of each depth.
    """

    def __init__(self, backbone: Backbone):
        super().__init__()
        self.backbone = backbone
        names = {position: f"model.{stage.name}" for position, stage in enumerate(backbone.stages[1:])}
        size = backbone.preprocessing.size
        device = next(backbone.parameters()).device
        with torch.no_grad():
            *parts, (_, features) = StageHooks(names).parts(backbone, torch.zeros(2, 3, size, size, device=device))
        parts = [(position, part) for position, part in parts if len(part) == 2]
        self.hooks = StageHooks({position: names[position] for position, _ in parts})
        self.depths = (*(backbone.stages[position].name for position, _ in parts), "features")
        self.widths = (*(part.shape[1] for _, part in parts), features.shape[1])

    def forward(self, pictures: Tensor) -> Tensor:
        return self.hooks(self.backbone, pictures)

    def split(self, pooled: Tensor) -> tuple[Tensor, ...]:
        """The depths of pooled activations (n, sum of widths), (n, width) each."""
        parts: tuple[Tensor, ...] = pooled.split(self.widths, 1)
        return parts

    def last(self, width: int) -> tuple[str, ...]:
        """Names of the depths that the last `width` values belong to."""
        count = next(count for count in range(1, len(self.widths) + 1) if sum(self.widths[-count:]) >= width)
        return self.depths[-count:]


def network_of(backbone: Backbone, tensors: Mapping[str, Tensor], classes: int) -> Network:
    """The network with random weights that the saved weights `tensors` are of, by the shape of those of its head.

    Raises:
        InputError: If they are of no head for so many classes on this backbone.
    """
    reads_units = "head.unit_weight" in tensors  # earlier versions wrote a linear head
    name = "head.unit_weight" if reads_units else "head.weight"
    weight = tensors.get(name)
    if weight is None:
        raise InputError(f"{name} is missing")
    if weight.ndim != 2 or len(weight) != classes or not weight.shape[1]:
        raise InputError(f"{name} is {size_of(weight)}, and there are {classes} classes")
    read = weight.shape[1]
    if read == backbone.width and not reads_units:
        return Network(backbone, nn.Linear(read, classes))
    stages = PooledStages(backbone)
    sums = [sum(stages.widths[position:]) for position in range(len(stages.widths))]
    if (read not in sums) if reads_units else (read > sums[0]):
        raise InputError(f"{name} reads {read} values, and {backbone.name} has {sums[0]} of all its depths")
    hooks = None if read == backbone.width else stages.hooks
    if not reads_units:
        return Network(backbone, nn.Linear(read, classes), hooks)
    return Network(backbone, DepthHead(stages.widths[sums.index(read) :], classes), hooks)
