"""The threshold of a recogniser: which one, why, and how many mistakes of either kind to expect there."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fewshot.evaluation.threshold import Calibration
from fewshot.recognition.unknowns import (
    CARRIED_PICTURES,
    PRIOR_PICTURES,
    FittedTail,
    Floats,
    Samples,
    UnknownScores,
    falling_to,
    share_interval,
)

# Without a rate that was asked for, no more than this share of unknown pictures is accepted: where equal errors are
# larger, the classes cannot be told from unknown ones well, and where equal errors are not known, this is the rate.
MOST_FALSE_ACCEPTS = 0.2


class Share(NamedTuple):
    """An expected share of pictures and its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Threshold:
    """From which similarity on a picture is taken to show its nearest class, and what that leads to.

    Attributes:
        value: The similarity.
        chosen_by: "equal error": as many unknown pictures are accepted as pictures of enrolled classes are refused, but
            no more than MOST_FALSE_ACCEPTS; "rate": asked for, or MOST_FALSE_ACCEPTS where equal errors are not known;
            "similarity": given as it is.
        false_accepts: Expected share of pictures of unknown classes that are accepted; None where nothing is known.
        refusals: Expected share of pictures of enrolled classes that are refused or named wrongly; None where no class
            has two examples and the encoder carries no calibration.
        refusals_measured: Whether pictures of the gallery's own classes say so; if not, they are those of other
            pictures, which the encoder was calibrated on.
    """

    value: float
    chosen_by: str
    false_accepts: Share | None
    refusals: Share | None
    refusals_measured: bool


@dataclass(frozen=True, eq=False)
class KnownScores:
    """The share of pictures of enrolled classes that are less similar to their own class.

    tail: What is expected beside the samples: FittedTail, or the calibration that the encoder carries.
    samples: Similarities (n,), ascending, of pictures to the examples of their class without themselves.
    weights: (n,), as how many independent pictures each counts.
    """

    tail: FittedTail | Calibration
    samples: Floats
    weights: Floats

    def below(self, similarity: NDArray[np.floating]) -> Floats:
        """In the shape of `similarity`, rising from 0 to 1."""
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
        """As how many independent pictures it counts."""
        carried = CARRIED_PICTURES if isinstance(self.tail, Calibration) else 0
        return carried + float(self.weights.sum())


def known_scores(calibration: Calibration | None, samples: Samples | None) -> KnownScores | None:
    """How similar pictures of enrolled classes are to their own class.

    Args:
        calibration: What the encoder carries, None without.
        samples: Similarities of pictures to the other examples of their class; None where no class has two.

    Returns:
        None where nothing is known.
    """
    if samples is None:
        return None if calibration is None else KnownScores(calibration, np.empty(0), np.empty(0))
    order = np.argsort(samples.similarity)
    scale = samples.independent / samples.weights.sum()
    similarity, weights = samples.similarity[order], samples.weights[order] * scale
    tail: FittedTail | Calibration = calibration or FittedTail.of(
        similarity, weights, samples.independent, skewness=0.0
    )
    return KnownScores(tail, similarity, weights)


def choose(unknown: UnknownScores | None, known: KnownScores | None, rate: float | None) -> Threshold | None:
    """The threshold for a rate of false accepts, or for equal errors where `rate` is None.

    Returns:
        None where nothing is known of unknown pictures.
    """
    if unknown is None:
        return None
    if rate is not None or known is None:
        value = unknown.threshold(MOST_FALSE_ACCEPTS if rate is None else rate)
        return expected(value, "rate", unknown, known)
    # Both shares are equal where their difference, which falls, is 0.
    equal = falling_to(lambda at: unknown.at(at) - known.below(at), 0.0)
    return expected(max(equal, unknown.threshold(MOST_FALSE_ACCEPTS)), "equal error", unknown, known)


def expected(value: float, chosen_by: str, unknown: UnknownScores | None, known: KnownScores | None) -> Threshold:
    """What the threshold `value` leads to."""
    accepted = refused = None
    at = np.array(value)
    if unknown is not None:
        accepted = Share(float(unknown.at(at)), *unknown.interval(value))
    if known is not None:
        below = float(known.below(at))
        refused = Share(below, *share_interval(below, known.independent))
    return Threshold(value, chosen_by, accepted, refused, known is not None and len(known.samples) > 0)
