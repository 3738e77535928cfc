"""Batches for Siamese training: several groups, several classes of each group, several pictures of each class."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewshot.embedding.distortions import SYMMETRIES
from fewshot.evaluation.episodes import Pool


@dataclass(frozen=True, eq=False)
class Draw:
    """Pictures of one batch: (n,) int64 each. labels: class and symmetry in one; a turned class is another class."""

    rows: Tensor
    labels: Tensor
    symmetry: Tensor


def draw(pool: Pool, *, groups: int, ways: int, shots: int, symmetries: int, generator: torch.Generator) -> Draw:
    """Draw a batch: groups with probability proportional to their classes, up to `ways` classes of each, and `shots`
    pictures of each class. One symmetry applies to a whole group. No picture is repeated unless its class has fewer.
    """
    step = SYMMETRIES // symmetries if symmetries != 4 else 1  # the four turns are the first four
    parts = []
    for group in torch.multinomial(pool.member_sizes.float(), groups, replacement=True, generator=generator).tolist():
        symmetry = int(torch.randint(symmetries, (), generator=generator)) * step
        size = int(pool.member_sizes[group])
        classes = pool.members[group, torch.randperm(size, generator=generator)[:ways]]
        order = torch.rand(len(classes), pool.rows.shape[1], generator=generator)
        sizes = pool.sizes[classes][:, None]
        places = order.masked_fill(torch.arange(order.shape[1]) >= sizes, 2.0).argsort(1)
        places = places.gather(1, torch.arange(shots).expand(len(classes), -1) % sizes.clamp_max(shots))
        rows = pool.rows[classes].gather(1, places)
        labels = (pool.labels[classes] * SYMMETRIES + symmetry)[:, None].expand(-1, shots)
        parts.append((rows.flatten(), labels.flatten(), torch.full((rows.numel(),), symmetry)))
    rows, labels, symmetry_of = (torch.cat(column) for column in zip(*parts, strict=True))
    return Draw(rows, labels, symmetry_of)
