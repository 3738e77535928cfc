"""Shares of pictures that reach a score: by counting, by a fitted distribution, and their intervals."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaincinv, stdtr

from finetune.open_set.score_values import Floats

CONFIDENCE = 0.95


@dataclass(frozen=True)
class SkewedTail:
    """Share of pictures at or above a score, by a skewed t distribution fitted to samples.

    Attributes:
        location, deviation: Mean and standard deviation of the scores.
        independent: Number of independent samples; the uncertainty of mean and deviation widens the distribution.
        skewness: Of the distribution.
        prior_samples: Number of samples that the prior of the deviation counts as.
    """

    location: float
    deviation: float
    independent: float
    skewness: float
    prior_samples: float

    @classmethod
    def of(
        cls,
        scores: Floats,
        weights: Floats,
        independent: float,
        *,
        skewness: float,
        prior_deviation: float | Callable[[float], float],
        prior_samples: float,
    ) -> SkewedTail:
        """Fit to samples (n,) with weights (n,) that count as `independent` samples. prior_deviation: a number, or a
        function of the mean."""
        mean = float(np.average(scores, weights=weights))
        variance = float(np.average((scores - mean) ** 2, weights=weights))
        prior = (prior_deviation if isinstance(prior_deviation, float) else prior_deviation(mean)) ** 2
        freedom = prior_samples + max(independent - 1, 0)
        deviation = float(np.sqrt((prior_samples * prior + independent * variance) / freedom))
        return cls(mean, deviation, independent, skewness, prior_samples)

    def at(self, score: NDArray[np.floating]) -> Floats:
        """Share at or above, in the shape of `score`, falling from 1 to 0."""
        spread = self.deviation * np.sqrt(1 + 1 / self.independent)
        return self._beyond((np.asarray(score, np.float64) - self.location) / spread)

    def _beyond(self, deviates: Floats) -> Floats:
        """Share beyond standard deviates, by inverting the Cornish-Fisher expansion z + skewness (z² - 1) / 6."""
        curve = self.skewness / 6
        if curve > 0:
            inside = np.maximum(1 + 4 * curve * (deviates + curve), 0)
            deviates = (np.sqrt(inside) - 1) / (2 * curve)
        return np.asarray(stdtr(self.prior_samples + max(self.independent - 1, 0), -deviates))


def weight_above(values: Floats, weights: Floats, wanted: Floats) -> Floats:
    """Sum of the weights of the `values` (n,) at or above each of `wanted`, in its shape."""
    order = np.argsort(values)
    above = np.concatenate([weights[order][::-1].cumsum()[::-1], [0.0]])
    return np.asarray(above[np.searchsorted(values[order], wanted, side="left")])


def invert_falling(
    share: Callable[[Floats], NDArray[np.floating]], rate: float, low: float = -64.0, high: float = 64.0
) -> float:
    """The lowest number between `low` and `high` at which a falling function is at most `rate`, by bisection."""
    for _ in range(60):  # until two adjacent floats are left
        middle = (low + high) / 2
        low, high = (low, middle) if float(share(np.array(middle))) <= rate else (middle, high)
    return high


def share_interval(share: float, independent: float) -> tuple[float, float]:
    """95 % interval of a share measured on `independent` pictures, with Jeffreys' prior."""
    tail = (1 - CONFIDENCE) / 2
    a, b = share * independent + 0.5, (1 - share) * independent + 0.5
    low = 0.0 if share <= 0 else float(betaincinv(a, b, tail))
    high = 1.0 if share >= 1 else float(betaincinv(a, b, 1 - tail))
    return low, high
