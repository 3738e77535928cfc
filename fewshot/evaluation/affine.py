"""Affine alignment: how far two drawings are apart after the best affine warp of one onto the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.errors import InputError

# Ink is gathered in cells of so many pixels both ways; the direction of a stroke is that of the ink in 3 x 3 of them.
CELL = 5
# Standard deviations of the ink about the other drawing's, coarse to fine, in units of a drawing's size (see `_Ink`).
BLURS = (0.5, 0.35, 0.25)
# Steps of alignment at each blur.
STEPS = 3
# How much likelier two pieces of stroke explain each other when parallel than when perpendicular: exp(2 DIRECTION^2).
DIRECTION = 2.0
# Added to how likely ink is, which is 1 where all of the other drawing's ink is: of ink that nothing explains, all.
UNEXPLAINED = 0.0003
# Strength of the prior on warps, against the mean log likelihood of a drawing's ink.
PRIOR = 0.4
# CELL, BLURS, DIRECTION, UNEXPLAINED and PRIOR were chosen on runs like Lake's, of the alphabets in splits.VALIDATION.

_PAIRS_AT_ONCE = 20  # what a step works on then stays in a processor's cache


@dataclass(frozen=True, eq=False)
class _Ink:
    """Drawings as weighted points, one for every cell with ink; in a drawing with fewer cells the last weigh 0.

    place: (n, points, 2), row and column of the ink's mean in the cell, less the mean of the whole drawing, over the
    root mean square of its rows and columns, which is called its size: where and how large a drawing is does not count.
    weight: (n, points), share of the ink, sum 1. stroke: (n, points, 2, 2), second moments of the ink around, trace 1.
    """

    place: Tensor
    weight: Tensor
    stroke: Tensor

    def __len__(self) -> int:
        return len(self.place)


def affine_alignment(test: Tensor, train: Tensor) -> Tensor:
    """How badly the best affine warps explain two drawings by each other, (n_test, n_train) float64, in nats.

    test, train: (n, height, width), ink where not 0. A piece of ink is likely where the other drawing, warped, has ink
    of the same direction: a mixture of Gaussians. The distance is the mean negative log likelihood of both drawings'
    ink plus a prior against warps that are far from the identity, and the mean of warping either one. The warp is found
    by expectation maximisation as in affine coherent point drift (Myronenko & Song 2010), from coarse to fine. An own
    version of the affine model that Lake et al. (2013) compare with, not theirs. InputError without ink.
    """
    one, other = _ink(test, "test"), _ink(train, "training")
    distances: Tensor = (_costs(one, other) + _costs(other, one).T) / 2
    return distances.double()


def affine_alignment_of_pairs(one: Tensor, other: Tensor) -> Tensor:
    """The same for pairs alone: each of `one` (n, height, width) and that of `other` at its place, (n,) float64."""
    parts = []
    for at in range(0, len(one), _PAIRS_AT_ONCE):
        block = slice(at, at + _PAIRS_AT_ONCE)
        first, second = _ink(one[block], "one"), _ink(other[block], "other")
        parts.append((_cost(first, second) + _cost(second, first)) / 2)
    return torch.cat(parts).double() if parts else torch.empty(0, dtype=torch.float64)


# --- from pixels to points --------------------------------------------------------------------------------------------


def _ink(pictures: Tensor, kind: str) -> _Ink:
    ink = (pictures != 0).float()
    empty = (~ink.flatten(1).any(1)).nonzero()
    if len(empty):
        raise InputError(f"{kind} picture {int(empty[0])} has no ink, so that no distance to it is defined")
    # From the middle of the page, where float32 has digits to spare for the moments.
    rows, columns = (torch.arange(length, device=ink.device) - (length - 1) / 2 for length in ink.shape[1:])
    y, x = rows[:, None], columns[None, :]
    moments = torch.stack([ink, ink * y, ink * x, ink * y * y, ink * y * x, ink * x * x], 1)
    cells = F.avg_pool2d(moments, CELL, ceil_mode=True, divisor_override=1)
    around = F.avg_pool2d(cells, 3, stride=1, padding=1, divisor_override=1).flatten(2)
    cells = cells.flatten(2)

    first = cells[:, 0].sort(dim=1, descending=True, stable=True)
    kept = first.indices[:, : int((cells[:, 0] > 0).sum(1).max())]
    cells, around = (sums.gather(2, kept[:, None].expand(-1, 6, -1)) for sums in (cells, around))
    weight = cells[:, 0] / cells[:, 0].sum(1, keepdim=True)
    place = (cells[:, 1:3] / cells[:, :1].clamp_min(1)).transpose(1, 2)
    place = place - (weight[..., None] * place).sum(1, keepdim=True)
    size = (weight[..., None] * place.square()).sum((1, 2)).div(2).sqrt()
    return _Ink(place / size.clamp_min(1)[:, None, None], weight, _stroke(around))


def _stroke(around: Tensor) -> Tensor:
    """(n, points, 2, 2) from sums of 1, y, x, yy, yx and xx over the ink around each point, (n, 6, points)."""
    mass, y, x, yy, yx, xx = around.unbind(1)
    mass = mass.clamp_min(1)
    y, x = y / mass, x / mass
    # 1/12, the second moment of a pixel's own area, so that a lone pixel has no direction.
    yy, yx, xx = yy / mass - y * y + 1 / 12, yx / mass - y * x, xx / mass - x * x + 1 / 12
    moments: Tensor = torch.stack([yy, yx, yx, xx], -1).unflatten(-1, (2, 2))
    return moments / (yy + xx)[..., None, None]


# --- alignment --------------------------------------------------------------------------------------------------------


def _costs(moved: _Ink, fixed: _Ink) -> Tensor:
    """(moved, fixed): what every pair costs after the best warp of the first.

    One of `moved` at a time against all of `fixed`: what a step then works on stays in a processor's cache.
    """
    n = len(fixed)
    rows = zip(moved.place, moved.weight, moved.stroke, strict=True)
    inks = (
        _Ink(place.expand(n, -1, -1), weight.expand(n, -1), stroke.expand(n, -1, -1, -1))
        for place, weight, stroke in rows
    )
    return torch.stack([_cost(ink, fixed) for ink in inks])


def _cost(moved: _Ink, fixed: _Ink) -> Tensor:
    """(n,): of n drawings moved onto n others."""
    # A warp is (3, 2): a row of place and 1 times it is the new place.
    identity = torch.eye(3, 2, device=moved.place.device).expand(len(moved), 3, 2)
    sources, targets = (F.pad(ink.place, (0, 1), value=1.0) for ink in (moved, fixed))
    warp = identity
    for blur in BLURS:
        # In the units of the least squares below; near the identity both terms of the prior are the same square.
        # Moving is free, up to a trace without which there is no solution where no ink is near any.
        prior = 8 * PRIOR * blur**2 * torch.diag(torch.tensor([1.0, 1.0, 1e-6], device=warp.device))
        for _ in range(STEPS):
            near, (there, back) = _explained(moved, fixed, warp, blur)
            # How much each point of either drawing is to be moved to each of the other: near * (rows + columns).
            rows, columns = moved.weight / there, fixed.weight / back
            shares = torch.cat([fixed.weight[..., None] * targets, columns[..., None] * targets], 2)
            drawn = torch.bmm(near, shares)
            drawn = rows[..., None] * drawn[..., :3] + moved.weight[..., None] * drawn[..., 3:]
            squares = sources.mT @ (sources * drawn[..., 2:]) + prior
            warp = torch.linalg.solve(squares, sources.mT @ drawn[..., :2] + prior @ identity)
    _, (there, back) = _explained(moved, fixed, warp, BLURS[-1])
    surprise = -(moved.weight * there.log()).sum(1) - (fixed.weight * back.log()).sum(1)
    return surprise / 2 + PRIOR * _far(warp[:, :2])


def _far(linear: Tensor) -> Tensor:
    """(n,): squared deviation from the identity of n matrices (n, 2, 2) and of their inverses, summed."""
    trace, lengths = linear.diagonal(dim1=1, dim2=2).sum(1), linear.square().sum((1, 2))
    # By the closed form, which is infinite for a singular matrix rather than an error.
    inverse: Tensor = torch.linalg.det(linear).reciprocal()
    return lengths - 2 * trace + (lengths * inverse - 2 * trace) * inverse + 4


def _explained(moved: _Ink, fixed: _Ink, warp: Tensor, blur: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """How near the points of n drawings, warped, are to those of n others, 0 to 1, (n, points, others); and how likely
    each is, given all of the other drawing, (n, points) and (n, others)."""
    linear = warp[:, :2]
    turned = linear.mT[:, None] @ moved.stroke @ linear[:, None]
    one = torch.cat([(moved.place @ linear + warp[:, 2:]) / blur, DIRECTION * _direction(turned)], 2)
    other = torch.cat([fixed.place / blur, DIRECTION * _direction(fixed.stroke)], 2)
    lengths = one.square().sum(2)[..., None] + other.square().sum(2)[:, None]
    near = torch.baddbmm(lengths, one, other.mT, beta=-0.5).exp_()
    there = torch.bmm(near, fixed.weight[..., None])[..., 0]
    back = torch.bmm(moved.weight[:, None], near)[:, 0]
    return near, (there + UNEXPLAINED, back + UNEXPLAINED)


def _direction(stroke: Tensor) -> Tensor:
    """(n, points, 2): the direction of each stroke as a vector of double its angle, 0 where there is none, up to 1."""
    yy, yx, xx = stroke[..., 0, 0], stroke[..., 0, 1], stroke[..., 1, 1]
    return torch.stack([yy - xx, 2 * yx], -1) / (yy + xx).clamp_min(1e-6)[..., None]
