"""Open-set metrics: recognition of enrolled classes among pictures of unknown ones."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.errors import InputError
from finetune.open_set.score_values import Floats, Values, booleans, finite_scores


@dataclass(frozen=True)
class OpenSet:
    """Open-set metrics of a recogniser.

    Attributes:
        known, unknown: Number of pictures of enrolled and of other classes.
        accuracy: Share of the known pictures given the correct class, without rejection.
        auroc, fpr95, oscr: As the functions `auroc`, `fpr_at_tpr` (at 95 %) and `oscr` give them.
    """

    known: int
    unknown: int
    accuracy: float
    auroc: float
    fpr95: float
    oscr: float


def open_set(known_scores: Values, known_correct: Values, unknown_scores: Values) -> OpenSet:
    """Compute all open-set metrics of a recogniser.

    Args:
        known_scores: Shape (n,): score of the best class for pictures of enrolled classes; larger is more certain.
        known_correct: Shape (n,), bool: whether that class is correct.
        unknown_scores: Shape (m,): the same score for pictures of other classes.

    Returns:
        The metrics, each between 0 and 1.

    Raises:
        InputError: For different shapes, no pictures, and numbers that are not finite.

    Example:
        >>> import numpy as np
        >>> from fewshot import open_set
        >>> found = open_set(np.array([0.9, 0.8]), np.array([True, True]), np.array([0.3, 0.85]))
        >>> found.accuracy, found.auroc
        (1.0, 0.75)
    """
    known, correct = _answers(known_scores, known_correct)
    unknown = finite_scores(unknown_scores, "unknown scores")
    return OpenSet(
        known=len(known),
        unknown=len(unknown),
        accuracy=float(correct.mean()),
        auroc=auroc(known, unknown),
        fpr95=fpr_at_tpr(known, unknown),
        oscr=oscr(known, correct, unknown),
    )


def auroc(known: Values, unknown: Values) -> float:
    """Area under the ROC curve: how often a known picture scores above an unknown one; ties count half.

    Args:
        known: Scores, shape (n,); larger is more certain.
        unknown: Scores, shape (m,).

    Source: Hendrycks & Gimpel (2017), section 2.
    """
    return _above(finite_scores(known, "known scores"), finite_scores(unknown, "unknown scores"))


def fpr_at_tpr(known: Values, unknown: Values, tpr: float = 0.95) -> float:
    """Share of the unknown accepted at the highest threshold that accepts a share of at least `tpr` of the known.

    Args:
        known: Scores, shape (n,); larger is more certain. A score equal to the threshold is accepted.
        unknown: Scores, shape (m,).
        tpr: In (0, 1].

    Source: "FPR at 95 % TPR" of Liang, Li & Srikant (2018).
    """
    if not 0 < tpr <= 1:
        raise InputError(f"tpr must be above 0 and at most 1, not {tpr}")
    falling = np.sort(finite_scores(known, "known scores"))[::-1]
    accepted = np.arange(1, len(falling) + 1) / len(falling)
    threshold = falling[(accepted >= tpr).argmax()]
    return float((finite_scores(unknown, "unknown scores") >= threshold).mean())


def oscr(known_scores: Values, known_correct: Values, unknown_scores: Values) -> float:
    """Area under the open-set classification rate curve, at most the accuracy.

    The curve is the share of known pictures that are correct and score at least a threshold, against the share of
    unknown pictures that do; straight lines join the points. Arguments and errors are those of `open_set`.

    Source: Dhamija, Günther & Boult (2018), "Reducing network agnostophobia".
    """
    known, correct = _answers(known_scores, known_correct)
    unknown = finite_scores(unknown_scores, "unknown scores")
    # It is the ROC area of the correct ones against the unknown, scaled by the share of correct ones.
    return float(correct.mean()) * _above(known[correct], unknown) if correct.any() else 0.0


def _answers(scores: Values, correct: Values) -> tuple[Floats, NDArray[np.bool_]]:
    known, right = finite_scores(scores, "known scores"), booleans(correct, "known_correct")
    if len(known) != len(right):
        raise InputError(f"known_scores and known_correct must have one length, not {len(known)} and {len(right)}")
    return known, right


def _above(higher: Floats, lower: Floats) -> float:
    """Share of the pairs in which `higher` is above `lower`; ties count half."""
    ordered = np.sort(lower)
    below, at_most = (np.searchsorted(ordered, higher, side=side).mean() for side in ("left", "right"))
    return float((below + at_most) / 2 / len(lower))
