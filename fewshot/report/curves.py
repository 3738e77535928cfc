"""Verification curves of a report: ROC and DET of pairs, thinned for drawing."""

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
# Points of a drawn curve.
_DRAWN = 240


@dataclass(frozen=True)
class VerificationCurves:
    """Verification of pairs.

    Attributes:
        false_accept, false_reject: Rates along the curve, at falling thresholds.
        auc, eer: Area under the ROC curve, and equal error rate.
        pairs: Their number.
        threshold: That of the encoder; None without one.
        own: False accepts and false rejects at that threshold.
    """

    false_accept: tuple[float, ...]
    false_reject: tuple[float, ...]
    auc: float
    eer: float
    pairs: int
    threshold: float | None = None
    own: tuple[float, float] | None = None


def verification_curves(scores: Tensor, same: Tensor, verification: dict[str, Any] | None = None) -> VerificationCurves:
    """Curves of scores (n,), larger for the same, and same (n,) bool; `verification`: the encoder's calibration."""
    false, true, _ = roc(scores, same)
    summary = roc_summary(scores, same)
    kept = _thinned(false, 1 - true)
    threshold = None if verification is None else float(verification["threshold"])
    own = None
    if threshold is not None:
        accepted = scores >= threshold
        own = float(accepted[~same].double().mean()), float((~accepted[same]).double().mean())
    return VerificationCurves(
        false_accept=tuple(false[kept].tolist()),
        false_reject=tuple((1 - true[kept]).tolist()),
        auc=summary.auc,
        eer=summary.eer,
        pairs=len(scores),
        threshold=threshold,
        own=own,
    )


def koch_pairs(validation: EmbeddedDrawings, test: EmbeddedDrawings, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores (n,) and same (n,) of the test pairs that `protocols.koch` draws with this seed."""
    generator = torch.Generator().manual_seed(seed)
    draw_pairs(validation, PAIRS, generator)  # koch draws its validation pairs first
    drawn = draw_pairs(test, PAIRS, generator)
    return similarity(test.vectors, drawn.rows), drawn.same


def pairs_of(embedded: EmbeddedDrawings, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Scores (n,) and same (n,) of pairs within alphabets if there are several, else of all pictures."""
    if len(embedded.alphabet.unique()) > 1:
        drawn = draw_pairs(embedded, PAIRS, torch.Generator().manual_seed(seed))
        return similarity(embedded.vectors, drawn.rows), drawn.same
    rows, same = labelled_pairs(embedded.label, most=PAIRS, seed=seed)
    return similarity(embedded.vectors, rows), same


def _thinned(false_accept: NDArray[np.float64], false_reject: NDArray[np.float64]) -> NDArray[np.int64]:
    """Points of a curve at even distances, in linear and in logarithmic scale."""
    least = 1 / PAIRS
    along = np.zeros(len(false_accept))
    for rates in (false_accept, false_reject):
        for values in (rates, np.log(np.maximum(rates, least)) / -np.log(least)):
            along[1:] += np.abs(np.diff(values)).cumsum()
    wanted = np.linspace(0, along[-1], _DRAWN)
    return np.unique(np.searchsorted(along, wanted).clip(0, len(along) - 1))
