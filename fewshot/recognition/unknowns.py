"""Estimates how similar pictures of unknown classes are to their nearest enrolled class."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fewshot.evaluation.threshold import Calibration
from finetune.open_set.score_values import Floats
from finetune.open_set.shares import SkewedTail, invert_falling, share_interval, weight_above

# Weights of prior knowledge. A calibration carried by the encoder comes from other pictures: it counts as PRIOR_CLASSES
# enrolled classes in the estimate of the number of confusable classes, and as CARRIED_PICTURES pictures. The
# distribution that follows from it, or is fitted, counts as TAIL_CLASSES enrolled classes, and together with these as
# PRIOR_PICTURES background pictures. Chosen on validation alphabets, with calibrations of the same and of another
# encoder, and on digits.
PRIOR_CLASSES, CARRIED_PICTURES = 1, 3
TAIL_CLASSES = 30
PRIOR_PICTURES = 10
# The fitted distribution: prior standard deviation, as a share of 1 - mean, and the samples that it counts as;
# skewness; correlation of two examples of one class; and the shift of the maximum of e times as many similarities, in
# standard deviations. Chosen on steel surfaces, flowers and textures; see benchmarks/recognizer.py.
DEVIATION_SHARE, PRIOR_SAMPLES, SKEWNESS, CORRELATION, RISE = 0.13, 4, 0.3, 0.15, 0.75

# Number of independent unknown pictures that an enrolled class counts as in an interval. Chosen so that the intervals
# cover the rates of galleries of one size with different examples.
PICTURES_OF_CLASS = 2


@dataclass(frozen=True, eq=False)
class Samples:
    """Similarities of pictures to a class.

    Attributes:
        similarity: Shape (n,).
        of_class: Shape (n,): class of each picture, from 0.
        classes: Number of classes that each picture was compared with.
    """

    similarity: Floats
    of_class: NDArray[np.int64]
    classes: int

    @property
    def weights(self) -> Floats:
        """Shape (n,): the weights of every class sum to 1."""
        counts = np.bincount(self.of_class)
        return np.asarray(1 / counts[self.of_class])

    @property
    def independent(self) -> float:
        """Number of independent pictures that these count as; pictures of one class are correlated."""
        counts = np.bincount(self.of_class)
        return float((counts[counts > 0] / (1 + (counts[counts > 0] - 1) * CORRELATION)).sum())


@dataclass(frozen=True, eq=False)
class CarriedTail:
    """Share of unknown pictures at or above a similarity, from the calibration that an encoder carries.

    A pair of different classes reaches a similarity with the measured rate. A picture has `chances` to reach it, one
    for each class that it can be confused with.
    """

    calibration: Calibration
    chances: float

    @classmethod
    def of(cls, calibration: Calibration, classes: int, samples: Samples | None) -> CarriedTail:
        """Estimate `chances` from the number of enrolled classes and the samples.

        Each sample is an exponential variable whose rate is the share of confusable classes. The prior of that rate is
        a gamma distribution with mean 1 that counts as PRIOR_CLASSES samples.
        """
        shown, count = 0.0, 0.0
        if samples is not None:
            pairs = _pair_share(calibration, samples.similarity)
            shown = float((samples.weights * -np.log1p(-np.minimum(pairs, 1 - 1e-9))).sum()) * samples.classes
            count = float(samples.weights.sum())
        ratio = (PRIOR_CLASSES + count) / (PRIOR_CLASSES + shown)
        return cls(calibration, classes * ratio)

    def at(self, similarity: NDArray[np.floating]) -> Floats:
        """Share at or above, in the shape of `similarity`, falling from 1 to 0."""
        pairs = _pair_share(self.calibration, np.asarray(similarity, np.float64))
        return np.asarray(-np.expm1(self.chances * np.log1p(-np.minimum(pairs, 1 - 1e-12))))


def fitted_tail(similarity: Floats, weights: Floats, independent: float, *, skewness: float = SKEWNESS) -> SkewedTail:
    """Share of pictures at or above a similarity, by a distribution fitted to samples (n,) with weights (n,) that count
    as `independent` samples."""
    return SkewedTail.of(
        similarity,
        weights,
        independent,
        skewness=skewness,
        prior_deviation=lambda mean: DEVIATION_SHARE * max(1 - mean, 1e-3),
        prior_samples=PRIOR_SAMPLES,
    )


Tail = CarriedTail | SkewedTail


@dataclass(frozen=True, eq=False)
class UnknownScores:
    """Share of unknown pictures that reach a similarity to their nearest enrolled class.

    Attributes:
        tail: Prior distribution, for few classes.
        samples: Enrolled examples as unknown pictures; they outweigh `tail` with more than TAIL_CLASSES classes. None
            for a single class.
        background: Similarities (n,) of pictures given as unknown; they outweigh the rest with more than
            PRIOR_PICTURES pictures.
        independent: Number of independent pictures that all of this counts as.
    """

    tail: Tail
    samples: Samples | None
    background: Floats
    independent: float

    def at(self, similarity: NDArray[np.floating]) -> Floats:
        """Share at or above, in the shape of `similarity`, falling from 1 to 0."""
        wanted = np.asarray(similarity, np.float64)
        share = self.tail.at(wanted)
        if self.samples is not None:
            weights = self.samples.weights
            above = weight_above(self.samples.similarity, weights, wanted)
            share = (TAIL_CLASSES * share + above) / (TAIL_CLASSES + weights.sum())
        if len(self.background):
            above = weight_above(self.background, np.ones(len(self.background)), wanted)
            share = (PRIOR_PICTURES * share + above) / (PRIOR_PICTURES + len(self.background))
        return np.asarray(share, np.float64)

    def threshold(self, rate: float) -> float:
        """The lowest similarity that at most this share of unknown pictures reaches."""
        return invert_falling(self.at, rate)

    def interval(self, similarity: float) -> tuple[float, float]:
        """95 % interval of the share at or above `similarity`."""
        share = float(self.at(np.array(similarity)))
        return share_interval(share, self.independent)


def estimate(
    calibration: Calibration | None, classes: int, samples: Samples | None, background: Floats
) -> UnknownScores | None:
    """Estimate the similarity of unknown pictures to the nearest enrolled class.

    Args:
        calibration: Of the encoder; None without.
        classes: Number of enrolled classes.
        samples: The enrolled examples, each compared with all other classes; None for a single class.
        background: Similarities (n,) of background pictures to their nearest class.

    Returns:
        None if nothing is known: one class, no calibration, no background.
    """
    known = np.asarray(background, np.float64)
    if calibration is None and samples is None and not len(known):
        return None
    independent = len(known) + (0 if samples is None else PICTURES_OF_CLASS * classes)
    if calibration is not None:
        tail: Tail = CarriedTail.of(calibration, classes, samples)
        return UnknownScores(tail, samples, known, CARRIED_PICTURES + independent)
    if samples is None:
        return UnknownScores(fitted_tail(known, np.ones(len(known)), len(known)), None, known, independent)
    # An example is compared with one class fewer than an unknown picture.
    own = fitted_tail(samples.similarity, samples.weights, samples.independent)
    moved = replace(samples, similarity=samples.similarity + RISE * own.deviation * np.log(classes / samples.classes))
    return UnknownScores(_fitted(moved, known), moved, known, independent)


def _fitted(samples: Samples, background: Floats) -> SkewedTail:
    """The distribution fitted to samples and background together."""
    scale = samples.independent / samples.weights.sum()
    return fitted_tail(
        np.concatenate([samples.similarity, background]),
        np.concatenate([samples.weights * scale, np.ones(len(background))]),
        samples.independent + len(background),
    )


def _pair_share(calibration: Calibration, similarity: Floats) -> Floats:
    thresholds, rates = np.array(calibration.thresholds), np.array(calibration.false_accept)
    return np.asarray(np.interp(similarity, thresholds, rates, left=1.0, right=0.0))
