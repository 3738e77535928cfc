"""Same or different, as curves: the ROC and the DET of pairs, thinned to what can be seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot.evaluation.embedded import EmbeddedDrawings
from fewshot.evaluation.verification import draw_pairs, labelled_pairs, roc, roc_summary, similarity

PAIRS = 10_000
# Points of a curve that is drawn.
_DRAWN = 240


@dataclass(frozen=True)
class SameOrDifferent:
    """false_accept, false_reject: rates along the curve, at falling thresholds. auc, eer: as in verification.Curve.

    pairs: how many. own: what the encoder's own threshold gives on these pairs, (false accepts, false rejects); None
    for an encoder without one. threshold: that threshold.
    """

    false_accept: tuple[float, ...]
    false_reject: tuple[float, ...]
    auc: float
    eer: float
    pairs: int
    threshold: float | None = None
    own: tuple[float, float] | None = None


def same_or_different(scores: Tensor, same: Tensor, verification: dict[str, Any] | None = None) -> SameOrDifferent:
    """scores: (n,), larger for the same. same: (n,) bool. verification: the thresholds that the encoder carries."""
    false, true, _ = roc(scores, same)
    shape = roc_summary(scores, same)
    kept = _thinned(false, 1 - true)
    threshold = None if verification is None else float(verification["threshold"])
    own = None
    if threshold is not None:
        accepted = scores >= threshold
        own = float(accepted[~same].double().mean()), float((~accepted[same]).double().mean())
    return SameOrDifferent(
        false_accept=tuple(false[kept].tolist()),
        false_reject=tuple((1 - true[kept]).tolist()),
        auc=shape.auc,
        eer=shape.eer,
        pairs=len(scores),
        threshold=threshold,
        own=own,
    )


def koch_pairs(validation: EmbeddedDrawings, test: EmbeddedDrawings, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores (n,) and whether the same (n,) of the test pairs that `protocols.koch` draws by this seed."""
    generator = torch.Generator().manual_seed(seed)
    draw_pairs(validation, PAIRS, generator)  # what chooses its threshold is drawn first
    drawn = draw_pairs(test, PAIRS, generator)
    return similarity(test.vectors, drawn.rows), drawn.same


def pairs_of(embedded: EmbeddedDrawings, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores (n,) and whether the same (n,): pairs inside alphabets where there are several, else of all pictures."""
    if len(embedded.alphabet.unique()) > 1:
        drawn = draw_pairs(embedded, PAIRS, torch.Generator().manual_seed(seed))
        return similarity(embedded.vectors, drawn.rows), drawn.same
    rows, same = labelled_pairs(embedded.label, most=PAIRS, seed=seed)
    return similarity(embedded.vectors, rows), same


def _thinned(false_accept: NDArray[np.float64], false_reject: NDArray[np.float64]) -> NDArray[np.int64]:
    """Positions of a curve's points that stand about evenly on it, both as it is and by the logarithms of its rates."""
    least = 1 / PAIRS
    along = np.zeros(len(false_accept))
    for rates in (false_accept, false_reject):
        for values in (rates, np.log(np.maximum(rates, least)) / -np.log(least)):
            along[1:] += np.abs(np.diff(values)).cumsum()
    wanted = np.linspace(0, along[-1], _DRAWN)
    return np.unique(np.searchsorted(along, wanted).clip(0, len(along) - 1))
