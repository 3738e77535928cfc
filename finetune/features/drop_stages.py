"""A backbone without its upper stages (--drop-above)."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from finetune.config import BEST
from finetune.errors import InputError
from finetune.features.table import FeatureTable
from finetune.models.backbone import Backbone
from finetune.models.pooled import PooledStages
from finetune.progress import Display


def drop_above(
    stages: PooledStages, rows: FeatureTable, asked: str, best: str | None, display: Display
) -> tuple[PooledStages, FeatureTable]:
    """Remove the stages of the backbone above `asked`, and their activations from `rows`.

    `asked` is the name of a stage, or BEST for `best`, the depth whose probe has the least error; None without a curve.

    Raises:
        InputError: For an unknown stage, for BEST without a curve, and for a model that cannot be cut there.
    """
    backbone = stages.backbone
    if asked == BEST:
        if best is None:
            raise InputError(f"--drop-above {BEST} needs two training pictures of each class; name a stage instead")
        if best == stages.depths[-1]:
            display.say("no stage is dropped: the last one has the lowest error.")
            return stages, rows
        asked = best
    position = backbone.stage_index(asked)
    if position == len(backbone.stages) - 1:
        display.say(f"no stage is dropped: {asked} is the last.")
        return stages, rows
    if asked not in stages.depths:
        raise InputError(f"{backbone.name} cannot be cut above {asked}: the stage above it is not called as a module")
    # In training mode the forward passes that measure its size would change its batch norm statistics.
    backbone.eval()
    before = _size(backbone)
    backbone.drop_above(asked)
    after = _size(backbone)
    display.say(
        f"stages above {asked} dropped: {after[0] / 1e6:.2f} of {before[0] / 1e6:.2f} million parameters and "
        f"{after[1] / before[1]:.0%} of the multiplications are left."
    )
    widths = stages.widths[: stages.depths.index(asked) + 1]
    return PooledStages(backbone), replace(rows, pooled=rows.pooled[:, : sum(widths)], width=widths[-1])


def _size(backbone: Backbone) -> tuple[int, int]:
    """Number of parameters, and of multiplications for one picture."""
    side, device = backbone.preprocessing.size, next(backbone.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        backbone(torch.zeros(1, 3, side, side, device=device))
    return sum(parameter.numel() for parameter in backbone.parameters()), counted.get_total_flops() // 2
