"""Affine alignment: the distance of two drawings after the best affine warp of one onto the other."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.errors import InputError

# Ink is gathered in cells of this many pixels on a side; the direction of a stroke is that of the ink in 3 x 3 cells.
CELL = 5
# Standard deviations of the Gaussians, coarse to fine, in units of a drawing's size (see `_Ink`).
BLURS = (0.5, 0.35, 0.25)
# Steps of alignment at each blur.
STEPS = 3
# Weight of the stroke direction: parallel pieces are exp(2 DIRECTION^2) times as likely as perpendicular ones.
DIRECTION = 2.0
# Added to the likelihood of a point, which is at most 1; it is the likelihood of ink that nothing explains.
UNEXPLAINED = 0.0003
# Strength of the prior on warps, relative to the mean log likelihood of a drawing's ink.
PRIOR = 0.4
# All of these were chosen on runs like Lake's, drawn from the alphabets in splits.VALIDATION.

_PAIRS_AT_ONCE = 20  # fits a CPU's cache


@dataclass(frozen=True, eq=False)
class _Ink:
    """Drawings as weighted points, one for every cell with ink; drawings with fewer cells are padded with weight 0.

    Attributes:
        place: Shape (n, points, 2): row and column of the ink's mean in a cell, relative to the mean of the drawing and
            divided by its size, the root mean square of its rows and columns.
        weight: Shape (n, points): share of the ink; sums to 1.
        stroke: Shape (n, points, 2, 2): second moments of the surrounding ink; trace 1.
    """

    place: Tensor
    weight: Tensor
    stroke: Tensor

    def __len__(self) -> int:
        return len(self.place)


def affine_alignment(test: Tensor, train: Tensor) -> Tensor:
    """Distance after affine alignment, for every pair of test and training drawings.

    A point is likely where the other drawing, warped, has ink of the same direction: a mixture of Gaussians. The
    distance is the mean negative log likelihood of both drawings' ink, plus a prior against warps far from the
    identity, averaged over warping either drawing. The warp is found by expectation maximisation from coarse to fine.

    Args:
        test: Shape (n_test, height, width), ink where not 0.
        train: Shape (n_train, height, width).

    Returns:
        Shape (n_test, n_train), float64, in nats.

    Raises:
        InputError: If a drawing has no ink.

    Source: affine coherent point drift of Myronenko & Song (2010). It stands in for the affine model that Lake et al.
    (2013) compare with, and is not theirs.
    """
    one, other = _ink(test, "test"), _ink(train, "training")
    distances: Tensor = (_costs(one, other) + _costs(other, one).T) / 2
    return distances.double()


def affine_alignment_of_pairs(one: Tensor, other: Tensor) -> Tensor:
    """The same distance for the pairs of `one` and `other`, both (n, height, width); shape (n,), float64."""
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
        raise InputError(f"{kind} picture {int(empty[0])} has no ink, so its distances are not defined")
    # Relative to the centre of the page, so that the moments are precise in float32.
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
    # 1/12 is the second moment of a pixel's area, so that a single pixel has no direction.
    yy, yx, xx = yy / mass - y * y + 1 / 12, yx / mass - y * x, xx / mass - x * x + 1 / 12
    moments: Tensor = torch.stack([yy, yx, yx, xx], -1).unflatten(-1, (2, 2))
    return moments / (yy + xx)[..., None, None]


# --- alignment --------------------------------------------------------------------------------------------------------


def _costs(moved: _Ink, fixed: _Ink) -> Tensor:
    """(moved, fixed): cost of every pair after the best warp of the first.

    Takes one of `moved` at a time, so that a step fits a CPU's cache.
    """
    n = len(fixed)
    rows = zip(moved.place, moved.weight, moved.stroke, strict=True)
    inks = (
        _Ink(place.expand(n, -1, -1), weight.expand(n, -1), stroke.expand(n, -1, -1, -1))
        for place, weight, stroke in rows
    )
    return torch.stack([_cost(ink, fixed) for ink in inks])


def _cost(moved: _Ink, fixed: _Ink) -> Tensor:
    """(n,): cost of n drawings, warped onto n others."""
    # A warp is (3, 2): the new place is (row, column, 1) @ warp.
    identity = torch.eye(3, 2, device=moved.place.device).expand(len(moved), 3, 2)
    sources, targets = (F.pad(ink.place, (0, 1), value=1.0) for ink in (moved, fixed))
    warp = identity
    for blur in BLURS:
        # In the units of the least squares below; near the identity, both terms of the prior are the same square.
        # Translation is free, except for a small term that keeps the system solvable if no ink is near.
        prior = 8 * PRIOR * blur**2 * torch.diag(torch.tensor([1.0, 1.0, 1e-6], device=warp.device))
        for _ in range(STEPS):
            near, (there, back) = _explained(moved, fixed, warp, blur)
            # Weight that draws each point of one drawing to each point of the other: near * (rows + columns).
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
    """(n,): squared deviations from the identity of matrices (n, 2, 2) and of their inverses, summed."""
    trace, lengths = linear.diagonal(dim1=1, dim2=2).sum(1), linear.square().sum((1, 2))
    # The closed form gives infinity for a singular matrix, not an error.
    inverse: Tensor = torch.linalg.det(linear).reciprocal()
    return lengths - 2 * trace + (lengths * inverse - 2 * trace) * inverse + 4


def _explained(moved: _Ink, fixed: _Ink, warp: Tensor, blur: float) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Closeness of the points of n warped drawings to those of n others, and the likelihood of each point.

    Returns:
        Closeness (n, points, others), 0 to 1; and likelihoods (n, points) and (n, others) given the other drawing.
    """
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
    """(n, points, 2): the direction of each stroke as a vector at twice its angle; length 0 (none) to 1."""
    yy, yx, xx = stroke[..., 0, 0], stroke[..., 0, 1], stroke[..., 1, 1]
    return torch.stack([yy - xx, 2 * yx], -1) / (yy + xx).clamp_min(1e-6)[..., None]
