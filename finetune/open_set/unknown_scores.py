"""Estimates which share of unknown pictures reaches a score, and the threshold for a rate of false accepts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from finetune.open_set.score_values import Floats
from finetune.open_set.shares import SkewedTail, invert_falling, share_interval, weight_above

# Weights of prior knowledge: the fitted distribution counts as TAIL_CLASSES held-out classes, and together with these
# as PRIOR_PICTURES background pictures. Its standard deviation is that of pictures of the classes, which counts as
# PRIOR_SAMPLES pictures, or without any DEVIATION_SHARE of 1 - mean. CORRELATION is that of two pictures of one class.
# RISE is the shift of the scores for e times as many classes, each of which a picture can be like, in standard
# deviations. Chosen on four sets and tf_mobilenetv3_small_100, see benchmarks/unknown.py.
TAIL_CLASSES = 10
PRIOR_PICTURES = 10
PRIOR_SAMPLES, DEVIATION_SHARE, SKEWNESS, CORRELATION, RISE = 4, 0.3, 0.6, 0.3, 1.25

# Number of independent unknown pictures that a held-out class counts as in an interval.
PICTURES_OF_CLASS = 2


@dataclass(frozen=True, eq=False)
class UnknownScores:
    """Share of unknown pictures that reach a score.

    Attributes:
        tail: Fitted distribution, for few held-out classes.
        held_out: Scores (n,) of pictures whose class was held out.
        weights: Shape (n,): those of every class sum to 1.
        background: Scores (m,) of pictures given as unknown; they outweigh the rest with more than PRIOR_PICTURES.
        independent: Number of independent pictures that all of this counts as.
    """

    tail: SkewedTail
    held_out: Floats
    weights: Floats
    background: Floats
    independent: float

    def at(self, score: NDArray[np.floating]) -> Floats:
        """Share at or above, in the shape of `score`, falling from 1 to 0."""
        wanted = np.asarray(score, np.float64)
        share = self.tail.at(wanted)
        if len(self.held_out):
            above = weight_above(self.held_out, self.weights, wanted)
            share = (TAIL_CLASSES * share + above) / (TAIL_CLASSES + self.weights.sum())
        if len(self.background):
            above = weight_above(self.background, np.ones(len(self.background)), wanted)
            share = (PRIOR_PICTURES * share + above) / (PRIOR_PICTURES + len(self.background))
        return np.asarray(share, np.float64)

    def threshold(self, rate: float) -> float:
        """The lowest score that at most this share of unknown pictures reaches; minus infinity for a rate of 1."""
        return -np.inf if rate >= 1 else invert_falling(self.at, rate)

    def interval(self, score: float) -> tuple[float, float]:
        """95 % interval of the share at or above `score`."""
        return share_interval(float(self.at(np.array(score))), self.independent)


def estimate(
    held_out: Floats, of_class: NDArray[np.int64], background: Floats, known: Floats, more_classes: float
) -> UnknownScores | None:
    """Estimate the scores of unknown pictures.

    Args:
        held_out: Scores (n,) of pictures whose class was held out.
        of_class: Their classes, (n,).
        background: Scores (m,) of pictures of none of the classes.
        known: Scores (k,) of pictures of the classes, held out themselves; there may be none.
        more_classes: How many times as many classes an unknown picture is compared with as a held-out one was.

    Returns:
        None without a held-out and a background picture.
    """
    if not len(held_out) + len(background):
        return None
    counts = np.bincount(of_class) if len(of_class) else np.zeros(0, np.int64)
    weights = 1 / counts[of_class] if len(of_class) else np.zeros(0)
    there = counts[counts > 0]
    independent = float((there / (1 + (there - 1) * CORRELATION)).sum())
    shares = weights * (independent / weights.sum()) if len(weights) else weights
    if len(held_out):
        own = _tail(held_out, shares, independent, known)
        held_out = held_out + RISE * own.deviation * np.log(more_classes)
    tail = _tail(
        np.concatenate([held_out, background]),
        np.concatenate([shares, np.ones(len(background))]),
        independent + len(background),
        known,
    )
    certain = PICTURES_OF_CLASS * len(there) + len(background)
    return UnknownScores(tail, held_out, weights, background, float(certain))


def _tail(scores: Floats, weights: Floats, independent: float, known: Floats) -> SkewedTail:
    mean = float(np.average(scores, weights=weights))
    prior = float(known.std()) if len(known) > 1 else DEVIATION_SHARE * (1 - mean)
    prior = max(prior, DEVIATION_SHARE * 1e-3)  # scores may all be equal, as those of copies of one picture are
    return SkewedTail.of(
        scores, weights, independent, skewness=SKEWNESS, prior_deviation=prior, prior_samples=PRIOR_SAMPLES
    )
