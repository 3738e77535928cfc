"""Open-set figures: how well enrolled classes are recognised where pictures of unknown ones come along."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fewshot.evaluation.threshold import Floats, Values, booleans, finite_scores
from finetune.errors import InputError


@dataclass(frozen=True)
class OpenSet:
    """known, unknown: pictures of enrolled classes and of others. accuracy: share of the known named right, rejecting
    none. auroc, fpr95 (at 95 % of the known accepted) and oscr: by the functions of these names."""

    known: int
    unknown: int
    accuracy: float
    auroc: float
    fpr95: float
    oscr: float


def open_set(known_scores: Values, known_correct: Values, unknown_scores: Values) -> OpenSet:
    """All figures of one recogniser.

    known_scores: (n,), of pictures of enrolled classes, each of its best class; larger for what is surer.
    known_correct: (n,) bool, whether that class is the right one. unknown_scores: (m,), of pictures of other classes.
    InputError for shapes that differ, nothing, or what is not a finite number.
    """
    known, correct = _answers(known_scores, known_correct)
    unknown = finite_scores(unknown_scores, "scores of the unknown")
    return OpenSet(
        known=len(known),
        unknown=len(unknown),
        accuracy=float(correct.mean()),
        auroc=auroc(known, unknown),
        fpr95=fpr_at_tpr(known, unknown),
        oscr=oscr(known, correct, unknown),
    )


def auroc(known: Values, unknown: Values) -> float:
    """How often a known picture scores above an unknown one, ties counting half (Hendrycks & Gimpel 2017, section 2).

    known: (n,), unknown: (m,), larger for what is surer. InputError for other shapes or what is not a finite number.
    """
    return _above(finite_scores(known, "scores of the known"), finite_scores(unknown, "scores of the unknown"))


def fpr_at_tpr(known: Values, unknown: Values, tpr: float = 0.95) -> float:
    """Share of the unknown accepted at the highest threshold that accepts at least `tpr` of the known ("FPR at 95 %
    TPR" of Liang, Li & Srikant 2018).

    known: (n,), unknown: (m,), larger for what is surer; a score at the threshold is accepted. tpr: in (0, 1].
    InputError for another tpr, other shapes or what is not a finite number.
    """
    if not 0 < tpr <= 1:
        raise InputError(f"a share of {tpr} of the known was asked for; above 0 and at most 1 is wanted")
    falling = np.sort(finite_scores(known, "scores of the known"))[::-1]
    accepted = np.arange(1, len(falling) + 1) / len(falling)
    threshold = falling[(accepted >= tpr).argmax()]
    return float((finite_scores(unknown, "scores of the unknown") >= threshold).mean())


def oscr(known_scores: Values, known_correct: Values, unknown_scores: Values) -> float:
    """Area under the open-set classification rate curve of Dhamija, Günther & Boult (2018, "Reducing Network
    Agnostophobia"), at most the accuracy.

    The curve is the share of the known that is named right and scores at least a threshold, against the share of the
    unknown that does; between two points a straight line. Arguments and errors are those of `open_set`.
    """
    known, correct = _answers(known_scores, known_correct)
    unknown = finite_scores(unknown_scores, "scores of the unknown")
    # It is the ROC of those named right against the unknown, with all of the known for the unit of its height.
    return float(correct.mean()) * _above(known[correct], unknown) if correct.any() else 0.0


def _answers(scores: Values, correct: Values) -> tuple[Floats, NDArray[np.bool_]]:
    known, right = finite_scores(scores, "scores of the known"), booleans(correct, "known_correct")
    if len(known) != len(right):
        raise InputError(f"{len(known)} scores of the known for {len(right)} that are right or wrong")
    return known, right


def _above(higher: Floats, lower: Floats) -> float:
    """Share of the pairs (higher, lower) in this order, ties half."""
    ordered = np.sort(lower)
    below, at_most = (np.searchsorted(ordered, higher, side=side).mean() for side in ("left", "right"))
    return float((below + at_most) / 2 / len(lower))
