"""A backbone without its upper stages: smaller, faster, and where pictures differ from its own no worse."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch.utils.flop_counter import FlopCounterMode

from finetune.config import BEST
from finetune.errors import InputError
from finetune.features.table import Rows
from finetune.linear.probe import Curve
from finetune.models.backbone import Backbone
from finetune.models.pooled import PooledStages
from finetune.progress import Display


def drop_above(
    stages: PooledStages, rows: Rows, asked: str, curve: Curve | None, display: Display
) -> tuple[PooledStages, Rows]:
    """What `stages` and `rows` are without the stages above the one called `asked`, or with BEST above the depth that
    errs least on the curve. How much smaller that is, is told.

    InputError for a stage that there is not, where there is no curve to go by, and for a model that cannot be cut.
    """
    backbone = stages.backbone
    if asked == BEST:
        if curve is None:
            raise InputError(f"--drop-above {BEST} needs two training pictures of each class; name a stage instead")
        if curve.best is curve.last:
            display.say("no stage is dropped: none below the last errs less.")
            return stages, rows
        asked = curve.best.depth
    position = backbone.stage_index(asked)
    if position == len(backbone.stages) - 1:
        display.say(f"no stage is dropped: {asked} is the last.")
        return stages, rows
    if asked not in stages.depths:
        raise InputError(f"{backbone.name} cannot be cut above {asked}: the stage above it is not called as a module")
    # Where nothing was read it is not yet in evaluation mode, and a look at it would move its batch norms.
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
    """Parameters, and multiplications for one picture."""
    side, device = backbone.preprocessing.size, next(backbone.parameters()).device
    with torch.no_grad(), FlopCounterMode(display=False) as counted:
        backbone(torch.zeros(1, 3, side, side, device=device))
    return sum(parameter.numel() for parameter in backbone.parameters()), counted.get_total_flops() // 2
