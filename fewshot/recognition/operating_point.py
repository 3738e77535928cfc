"""The threshold of a recogniser: how it is chosen, and the expected shares of both kinds of error."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewshot.evaluation.threshold import Calibration
from fewshot.recognition.unknowns import (
    CARRIED_PICTURES,
    PRIOR_PICTURES,
    Samples,
    UnknownScores,
    fitted_tail,
)
from finetune.open_set.score_values import Floats
from finetune.open_set.shares import SkewedTail, invert_falling, share_interval

# Largest share of unknown pictures that is accepted without a given rate: the limit for equal errors, and the rate if
# equal errors are not known.
MOST_FALSE_ACCEPTS = 0.2


class Share(NamedTuple):
    """An expected share of pictures and its 95 % interval.

    Example:
        >>> from fewshot import Embedder, Recognizer
        >>> recognizer = Recognizer(Embedder.load("omniglot", device="cpu"))
        >>> recognizer = recognizer.enrol("stop", "signs/class00/00.png").enrol("yield", "signs/class01/00.png")
        >>> share = recognizer.expect().false_accepts
        >>> 0 <= share.low <= share.value <= share.high <= 1
        True
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Threshold:
    """A threshold and its expected errors.

    Attributes:
        value: The smallest similarity that is accepted.
        chosen_by: "equal error": as many unknown pictures are accepted as pictures of enrolled classes are refused, at
            most MOST_FALSE_ACCEPTS. "rate": for a given rate, or for MOST_FALSE_ACCEPTS if equal errors are not known.
            "similarity": given directly.
        false_accepts: Expected share of pictures of unknown classes that are accepted; None if nothing is known.
        refusals: Expected share of pictures of enrolled classes that are refused or named wrongly; None if no class has
            two examples and the encoder carries no calibration.
        refusals_measured: Whether `refusals` comes from pictures of the gallery's classes. If not, it comes from the
            pictures that the encoder was calibrated on.

    Example:
        >>> from fewshot import Embedder, Recognizer
        >>> recognizer = Recognizer(Embedder.load("omniglot", device="cpu"), false_accept_rate=0.05)
        >>> recognizer = recognizer.enrol("stop", "signs/class00/00.png").enrol("yield", "signs/class01/00.png")
        >>> recognizer.expect().chosen_by
        'rate'
    """

    value: float
    chosen_by: str
    false_accepts: Share | None
    refusals: Share | None
    refusals_measured: bool


@dataclass(frozen=True, eq=False)
class KnownScores:
    """Distribution of the similarity of pictures of enrolled classes to their own class.

    Attributes:
        tail: Prior distribution: fitted, or the calibration that the encoder carries.
        samples: Similarities (n,), ascending, of pictures to the other examples of their class.
        weights: Shape (n,): number of independent pictures that each counts as.
    """

    tail: SkewedTail | Calibration
    samples: Floats
    weights: Floats

    def below(self, similarity: NDArray[np.floating]) -> Floats:
        """Share of pictures that are less similar, in the shape of `similarity`."""
        wanted = np.asarray(similarity, np.float64)
        if isinstance(self.tail, Calibration):
            rejected = np.interp(wanted, self.tail.thresholds, self.tail.false_reject, left=0.0, right=1.0)
        else:
            rejected = 1 - self.tail.at(wanted)
        trust = CARRIED_PICTURES if isinstance(self.tail, Calibration) else PRIOR_PICTURES
        sums = np.concatenate([[0.0], self.weights.cumsum()])
        below = sums[np.searchsorted(self.samples, wanted, side="left")]
        return np.asarray((trust * rejected + below) / (trust + sums[-1]), np.float64)

    @property
    def independent(self) -> float:
        """Number of independent pictures that the distribution counts as."""
        carried = CARRIED_PICTURES if isinstance(self.tail, Calibration) else 0
        return carried + float(self.weights.sum())


def known_scores(calibration: Calibration | None, samples: Samples | None) -> KnownScores | None:
    """Estimate the similarity of pictures of enrolled classes to their own class.

    Args:
        calibration: Of the encoder; None without.
        samples: Similarities of pictures to the other examples of their class; None if no class has two.

    Returns:
        None if nothing is known.
    """
    if samples is None:
        return None if calibration is None else KnownScores(calibration, np.empty(0), np.empty(0))
    order = np.argsort(samples.similarity)
    scale = samples.independent / samples.weights.sum()
    similarity, weights = samples.similarity[order], samples.weights[order] * scale
    tail: SkewedTail | Calibration = calibration or fitted_tail(similarity, weights, samples.independent, skewness=0.0)
    return KnownScores(tail, similarity, weights)


def choose(unknown: UnknownScores | None, known: KnownScores | None, rate: float | None) -> Threshold | None:
    """Choose the threshold for a rate of false accepts, or for equal errors when `rate` is None.

    Returns:
        None if nothing is known about unknown pictures.
    """
    if unknown is None:
        return None
    if rate is not None or known is None:
        value = unknown.threshold(MOST_FALSE_ACCEPTS if rate is None else rate)
        return expected(value, "rate", unknown, known)
    # The difference of the two shares falls; they are equal where it is 0.
    equal = invert_falling(lambda at: unknown.at(at) - known.below(at), 0.0)
    return expected(max(equal, unknown.threshold(MOST_FALSE_ACCEPTS)), "equal error", unknown, known)


def expected(value: float, chosen_by: str, unknown: UnknownScores | None, known: KnownScores | None) -> Threshold:
    """The threshold `value` with its expected errors."""
    accepted = refused = None
    at = np.array(value)
    if unknown is not None:
        accepted = Share(float(unknown.at(at)), *unknown.interval(value))
    if known is not None:
        below = float(known.below(at))
        refused = Share(below, *share_interval(below, known.independent))
    return Threshold(value, chosen_by, accepted, refused, known is not None and len(known.samples) > 0)
