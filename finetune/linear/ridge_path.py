"""Ridge regressions of one input at every strength, with held-out scores in closed form."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Rows that are measured at once.
_BLOCK = 1 << 14


@dataclass(frozen=True)
class RidgeSolution:
    """Ridge regression of one strength, its scores of unit root mean square.

    scores: Held-out scores (n, classes) of the rows, then those of the judged pictures. dual: Weights (n, classes) of
    the rows. centre: (1, classes).
    """

    scores: Tensor
    dual: Tensor
    centre: Tensor


@dataclass(frozen=True)
class RidgePath:
    """Ridge regressions of all strengths, from the principal axes (n, axes) of the rows and their values (axes,).

    targets: (n, classes). counts: (n,). root: Of counts, (n, 1). centre: Mean of the targets, (1, classes).
    scaled: Rows (n, width). wanted: Centred targets times root. along: wanted on the axes, (axes, classes).
    asked: Judged pictures (m, width), as the rows. products: of these with the rows, (m, n), where they are few.
    """

    targets: Tensor
    counts: Tensor
    root: Tensor
    centre: Tensor
    scaled: Tensor
    vectors: Tensor
    values: Tensor
    wanted: Tensor
    along: Tensor
    asked: Tensor | None
    products: Tensor | None

    @property
    def scores(self) -> int:
        """Number of scores of a solution."""
        return (len(self.wanted) + (0 if self.asked is None else len(self.asked))) * self.wanted.shape[1]

    def at(self, strength: float) -> RidgeSolution:
        """The solution of a strength. Arrays as large as the targets are reused: with 100,000 pictures of 1,000
        classes, each has almost a gigabyte."""
        counts, n, classes = self.counts, len(self.wanted), self.wanted.shape[1]
        shrunk = self.values / (self.values + strength)
        hat = self.vectors.square() @ shrunk + counts / counts.sum()
        scores = torch.empty(self.scores // classes, classes, dtype=torch.float64)
        own = scores[:n]
        torch.mm(self.vectors, shrunk[:, None] * self.along, out=own)
        residual = torch.sub(self.wanted, own, out=own).div_(self.root)
        torch.sub(self.targets, residual.div_((1 - hat).clamp_min_(1e-9)[:, None]), out=own)
        # Weights of the rows in the dual: scaled.T @ dual is the solution.
        dual = self.vectors @ (self.along / (self.values + strength)[:, None])
        if self.products is not None:
            torch.mm(self.products, dual, out=scores[n:]).add_(self.centre)
        elif self.asked is not None:
            torch.mm(self.asked, self.scaled.T @ dual, out=scores[n:]).add_(self.centre)
        size = _root_mean_square(scores)
        return RidgeSolution(scores.div_(size), dual.div_(size), self.centre / size)


def _root_mean_square(scores: Tensor) -> Tensor:
    """Of scores (n, classes), each row less its mean; at least 1e-12."""
    squares = [(some - some.mean(1, keepdim=True)).square_().sum() for some in scores.split(_BLOCK)]
    return (torch.stack(squares).sum() / scores.numel()).sqrt().clamp_min(1e-12)
