"""The probe curve of a folder of pictures: how near they are to what a backbone knows, before any training."""

from __future__ import annotations

import torch

from finetune.config import Config
from finetune.data.table import Source, list_pictures
from finetune.errors import InputError
from finetune.features.extraction import read_pictures
from finetune.features.table import Rows
from finetune.linear.probe import Curve, probe_curve
from finetune.models.backbone import Backbone
from finetune.models.device import open_engine
from finetune.models.pooled import PooledStages
from finetune.models.pretrained import load_pretrained
from finetune.progress import Display

# Training pictures that a curve is made of, at most: it grows more slowly than the time that it takes.
MOST = 3000


def probe_folder(folder: Source, *, config: Config | None = None, display: Display | None = None) -> Curve:
    """The curve of the pictures that a run on `folder` would learn from; those that judge it are left alone.

    InputError for a folder or backbone that cannot be used, and where a class has fewer than two pictures.
    """
    config, display = config or Config(), display or Display()
    listing = list_pictures(folder)
    fabric = open_engine(config.device, config.precision)
    backbone = Backbone(config.backbone, image_size=config.image_size)
    load_pretrained(backbone, config.weights, display.say)
    stages = PooledStages(backbone.to(fabric.device))
    outputs = read_pictures(fabric, stages, listing, config, display)
    rows = Rows.audited(listing, outputs, backbone.width, config)
    for line in rows.told():
        display.say(line)
    curve = training_curve(stages, rows)
    if curve is None:
        raise InputError(f"{listing.name} has a class with fewer than two training pictures; a probe needs two of each")
    return curve


def training_curve(stages: PooledStages, rows: Rows) -> Curve | None:
    """The curve of the training pictures, of many some of each class; None where a class has fewer than two."""
    indices = torch.tensor(rows.indices("train"))
    if int(torch.bincount(rows.labels[indices], minlength=len(rows.folder.classes)).min()) < 2:
        return None
    if len(indices) > MOST:
        indices = indices[_every_class(rows.labels[indices], MOST)]
    return probe_curve(stages.split(rows.pooled[indices]), stages.depths, rows.labels[indices])


def _every_class(labels: torch.Tensor, most: int) -> torch.Tensor:
    """`most` or a few more positions in (n,) labels, the same share of every class and two of each at least."""
    chosen = []
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        count = max(2, round(most * len(rows) / len(labels)))
        chosen.append(rows[torch.linspace(0, len(rows) - 1, min(count, len(rows))).round().long()])
    return torch.cat(chosen).sort().values
