"""Calibration: the similarity threshold of "same", chosen for a rate of false accepts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from fewshot.evaluation.verification import roc, roc_summary
from finetune.errors import InputError
from finetune.files.reading import as_type
from finetune.open_set.score_values import Floats, Values, booleans, finite_scores

POINTS = 200  # kept of a curve, besides its ends and the chosen points


class OperatingPoint(NamedTuple):
    """A threshold, the share of different pairs that it accepts, and the share of same pairs that it rejects."""

    threshold: float
    false_accept_rate: float
    false_reject_rate: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A threshold for pairs of pictures, and the curve that it was chosen on.

    Attributes:
        threshold: Pairs with this score or more are called the same.
        asked: Rate of false accepts that `threshold` was chosen for.
        false_accept_rate, false_reject_rate: At `threshold`, on the calibration pairs.
        auc, eer: Area under the ROC curve, and equal error rate.
        eer_threshold: Where the two rates are closest.
        same_pairs, different_pairs: Number of calibration pairs.
        thresholds, false_accept, false_reject: The curve, rising thresholds, (points,) each. A curve of more than
            POINTS is thinned evenly in normal deviates.

    Example:
        >>> import numpy as np
        >>> from fewshot import calibrate
        >>> found = calibrate(np.array([0.9, 0.6, 0.4, 0.1]), np.array([True, True, False, False]))
        >>> found.same_pairs, found.different_pairs, found.eer
        (2, 2, 0.0)
    """

    threshold: float
    asked: float
    false_accept_rate: float
    false_reject_rate: float
    auc: float
    eer: float
    eer_threshold: float
    same_pairs: Annotated[int, msgspec.Meta(ge=1)]
    different_pairs: Annotated[int, msgspec.Meta(ge=1)]
    thresholds: tuple[float, ...]
    false_accept: tuple[float, ...]
    false_reject: tuple[float, ...]

    @property
    def resolution(self) -> float:
        """The smallest rate of false accepts above 0 that the pairs can show.

        For a smaller rate, the threshold accepts none of the different pairs and its true rate is not known.
        """
        return 1 / self.different_pairs

    def same(self, score: float) -> bool:
        """Whether a pair with this score is called the same."""
        return bool(score >= self.threshold)

    def at(self, false_accept_rate: float) -> OperatingPoint:
        """The lowest threshold with at most this rate of false accepts. InputError for a rate outside (0, 1)."""
        _check_rate(false_accept_rate)
        i = next(i for i, rate in enumerate(self.false_accept) if rate <= false_accept_rate)
        return OperatingPoint(self.thresholds[i], self.false_accept[i], self.false_reject[i])

    def roc(self) -> tuple[Floats, Floats]:
        """The ROC curve: accepted shares of different and of same pairs, (points,) each, rising from 0 to 1."""
        return np.array(self.false_accept[::-1]), 1 - np.array(self.false_reject[::-1])

    def det(self) -> tuple[Floats, Floats]:
        """The detection error trade-off: false accepts and false rejects as normal deviates, (points,) each.

        Scores of two normal distributions give a straight line. Shares of 0 and 1 are moved in by half a pair.

        Source: Martin et al. (1997), "The DET curve in assessment of detection task performance".
        """
        return (
            _normal_deviates(np.array(self.false_accept), self.different_pairs),
            _normal_deviates(np.array(self.false_reject), self.same_pairs),
        )

    def to_dict(self) -> dict[str, Any]:
        """The calibration as JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_dict`. InputError for other values."""
        known = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or set(values) != set(known):
            raise InputError(f"a calibration has the entries {', '.join(known)} and no others; it may be damaged")
        found = as_type(dict(values), cls, "the calibration")
        _check_laws(found)
        return found


def calibrate(scores: Values, same: Values, *, false_accept_rate: float = 0.01) -> Calibration:
    """Choose the lowest threshold that accepts at most a given share of the different pairs.

    The threshold lies half-way between the score to be rejected and the next higher one. The rate on the calibration
    pairs never exceeds the given one; the rate on other pairs can, especially if there are few. With fewer different
    pairs than 1 / false_accept_rate (see `Calibration.resolution`), the threshold is above all of them.

    Args:
        scores: Shape (n,), numpy or torch; larger is more similar.
        same: Shape (n,), bool: whether a pair shows one class.
        false_accept_rate: In (0, 1).

    Returns:
        The threshold and the curve that it lies on.

    Raises:
        InputError: For other rates and shapes, numbers that are not finite, and pairs of one kind alone.

    Example:
        >>> import numpy as np
        >>> from fewshot import calibrate
        >>> found = calibrate(np.array([0.9, 0.6, 0.4, 0.1]), np.array([True, True, False, False]))
        >>> found.threshold, found.false_reject_rate
        (0.5, 0.0)

    Source: Doddington et al. (2000), "rule of 30": with 30 false accepts of pairs that share no pictures, the true rate
    is within 30 % of the measured one with 90 % confidence.
    """
    _check_rate(false_accept_rate)
    values, kinds = finite_scores(scores, "scores"), booleans(same, "same")
    if len(values) != len(kinds):
        raise InputError(f"scores and same must have one length, not {len(values)} and {len(kinds)}")
    points = _operating_points(values, kinds)
    summary = roc_summary(torch.from_numpy(values), torch.from_numpy(kinds))
    chosen = int((points.false_accept <= false_accept_rate).argmax())
    equal = int(np.abs(points.false_accept - points.false_reject).argmin())
    same_pairs = int(kinds.sum())
    different_pairs = len(kinds) - same_pairs
    kept = _thinned(
        _normal_deviates(points.false_accept, different_pairs),
        _normal_deviates(points.false_reject, same_pairs),
        always=(chosen, equal),
    )
    return Calibration(
        threshold=float(points.threshold[chosen]),
        asked=float(false_accept_rate),
        false_accept_rate=float(points.false_accept[chosen]),
        false_reject_rate=float(points.false_reject[chosen]),
        auc=min(1.0, summary.auc),  # the sum may exceed 1 by the last bit
        eer=summary.eer,
        eer_threshold=float(points.threshold[equal]),
        same_pairs=same_pairs,
        different_pairs=different_pairs,
        thresholds=tuple(points.threshold[kept].tolist()),
        false_accept=tuple(points.false_accept[kept].tolist()),
        false_reject=tuple(points.false_reject[kept].tolist()),
    )


class _Points(NamedTuple):
    """All distinct thresholds, rising, and their rates, (points,) each."""

    threshold: Floats
    false_accept: Floats
    false_reject: Floats


def _operating_points(scores: Floats, same: NDArray[np.bool_]) -> _Points:
    false, true, reached = (each[::-1].copy() for each in roc(torch.from_numpy(scores), torch.from_numpy(same)))
    lower, upper = reached[:-2], reached[1:-1]
    half_way = lower / 2 + upper / 2  # halved first, since the sum could overflow
    between = np.where((lower < half_way) & (half_way <= upper), half_way, upper)  # adjacent floats have no middle
    above = np.nextafter(reached[-2], np.inf)  # the last of `reached` is infinite
    same_pairs = int(same.sum())
    return _Points(
        threshold=np.concatenate([reached[:1], between, [above]]),
        false_accept=false,
        false_reject=np.rint((1 - true) * same_pairs) / same_pairs,  # rounds 1 - share to a multiple of 1 / pairs
    )


def _normal_deviates(rates: Floats, pairs: int) -> Floats:
    """Rates (n,) of `pairs` pairs as quantiles of the normal distribution; 0 and 1 are moved in by half a pair."""
    inside = torch.from_numpy(rates).clamp(0.5 / pairs, 1 - 0.5 / pairs)
    return np.asarray(torch.special.ndtri(inside).numpy())


def _thinned(x: Floats, y: Floats, always: tuple[int, ...]) -> NDArray[np.int64]:
    """Points of a DET curve (n,) to keep: evenly spaced along it, with the ends and `always`."""
    if len(x) <= POINTS:
        return np.arange(len(x))
    way = np.concatenate([[0.0], (np.abs(np.diff(x)) + np.abs(np.diff(y))).cumsum()])
    nearest = np.searchsorted(way, np.linspace(0, way[-1], POINTS))
    return np.unique(np.concatenate([nearest, [0, len(x) - 1, *always]]))


def _check_rate(rate: float) -> None:
    if not 0 < rate < 1:
        raise InputError(f"the rate of false accepts must be between 0 and 1, not {rate}")


def _check_laws(found: Calibration) -> None:
    """InputError for values that no calibration can have."""
    thresholds, accepted, rejected = map(np.array, (found.thresholds, found.false_accept, found.false_reject))
    laws = {
        "auc and eer are between 0 and 1": 0 <= found.auc <= 1 and 0 <= found.eer <= 1,
        "the lists of the curve have one length": len(thresholds) == len(accepted) == len(rejected) >= 2,
        "thresholds are finite and rise": bool(np.isfinite(thresholds).all() and (np.diff(thresholds) > 0).all()),
        "false accepts fall from 1 to 0": _falls(accepted),
        "false rejects rise from 0 to 1": _falls(rejected[::-1]),
        "eer_threshold is one of the thresholds": found.eer_threshold in found.thresholds,
    }
    broken = [law for law, kept in laws.items() if not kept]
    if broken:
        raise InputError(f"the calibration breaks the rule that {broken[0]}; it may be damaged")
    chosen = OperatingPoint(found.threshold, found.false_accept_rate, found.false_reject_rate)
    if chosen != found.at(found.asked):
        raise InputError("the threshold of the calibration does not match its curve; it may be damaged")


def _falls(rates: Floats) -> bool:
    """Whether the rates fall from 1 to 0."""
    return len(rates) > 0 and rates[0] == 1 and rates[-1] == 0 and bool((np.diff(rates) <= 0).all())
