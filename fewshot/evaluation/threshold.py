"""The threshold at or above which two pictures are called the same, chosen for a rate of false accepts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fewshot.evaluation.verification import curve, roc
from finetune.errors import InputError

POINTS = 200  # kept of a curve, besides its ends and the points that were chosen

Values = NDArray[Any] | Tensor
Floats = NDArray[np.float64]


class OperatingPoint(NamedTuple):
    """A threshold, and what it does: the share of different pairs accepted and of same pairs rejected."""

    threshold: float
    false_accept_rate: float
    false_reject_rate: float


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """A threshold, at or above which a score means the same, and what it and others do on the calibration pairs.

    asked: the rate of false accepts that `threshold` was chosen for; false_accept_rate and false_reject_rate are those
    measured. auc, eer: of the whole ROC; the two rates are nearest to each other at eer_threshold. same_pairs,
    different_pairs: how many were measured on. thresholds, false_accept, false_reject: the curve, (points,) each, the
    thresholds rising; points of it are left out where there were more than POINTS, evenly in normal deviates.
    """

    threshold: float
    asked: float
    false_accept_rate: float
    false_reject_rate: float
    auc: float
    eer: float
    eer_threshold: float
    same_pairs: int
    different_pairs: int
    thresholds: tuple[float, ...]
    false_accept: tuple[float, ...]
    false_reject: tuple[float, ...]

    @property
    def resolution(self) -> float:
        """The smallest rate of false accepts above 0 that the pairs can show. Where less is asked for, none of them is
        accepted, and the rate itself is not known."""
        return 1 / self.different_pairs

    def same(self, score: float) -> bool:
        """Whether a pair of this score shows one class."""
        return bool(score >= self.threshold)

    def at(self, false_accept_rate: float) -> OperatingPoint:
        """The lowest kept threshold whose rate of false accepts is not over this one. InputError outside of (0, 1)."""
        _check_rate(false_accept_rate)
        i = next(i for i, rate in enumerate(self.false_accept) if rate <= false_accept_rate)
        return OperatingPoint(self.thresholds[i], self.false_accept[i], self.false_reject[i])

    def roc(self) -> tuple[Floats, Floats]:
        """Shares of different and of same pairs accepted, (points,) each, rising from 0 to 1."""
        return np.array(self.false_accept[::-1]), 1 - np.array(self.false_reject[::-1])

    def det(self) -> tuple[Floats, Floats]:
        """The detection error trade-off of Martin et al. (1997): false accepts and false rejects as normal deviates.

        (points,) each, in standard deviations, for axes of equal scale: scores of two normal distributions make a
        straight line. A share of 0 or 1, which would lie at infinity, is drawn as half a pair from it.
        """
        return (
            _normal_deviates(np.array(self.false_accept), self.different_pairs),
            _normal_deviates(np.array(self.false_reject), self.same_pairs),
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """What `to_dict` gave. InputError for values that it cannot have given."""
        known = [field.name for field in fields(cls)]
        if not isinstance(values, Mapping) or set(values) != set(known):
            raise InputError(f"a calibration has {', '.join(known)}, and nothing else; it may be damaged")
        read: dict[str, Callable[[str, Any], Any]] = {"int": _count, "float": _number, "tuple[float, ...]": _numbers}
        checked: dict[str, Any] = {
            field.name: read[str(field.type)](field.name, values[field.name]) for field in fields(cls)
        }
        found = cls(**checked)
        _check_laws(found)
        return found


def calibrate(scores: Values, same: Values, *, false_accept_rate: float = 0.01) -> Calibration:
    """The lowest threshold that accepts at most this share of the different pairs, and the curve that it lies on.

    scores: (n,), larger for what is more alike. same: (n,) bool, whether a pair shows one class. Both are numpy or
    torch. The threshold lies half-way between the score that must be rejected and the next higher one.

    The rate measured on these pairs is never over the one asked for; the rate on others can be, the more so the fewer
    there are. With fewer different pairs than 1 / false_accept_rate (see `resolution`) the threshold is above every
    one of them. By the "rule of 30" of Doddington et al. (2000) there must be 30 false accepts, of pairs that share no
    pictures, to be 90 % sure that the true rate is within 30 % of the measured one.

    InputError for a rate outside of (0, 1), shapes that differ, what is not a finite number, pairs of one kind alone.
    """
    _check_rate(false_accept_rate)
    values, kinds = finite_scores(scores, "scores"), booleans(same, "same")
    if len(values) != len(kinds):
        raise InputError(f"{len(values)} scores for {len(kinds)} pairs that are the same or not")
    points = _operating_points(values, kinds)
    shape = curve(torch.from_numpy(values), torch.from_numpy(kinds))
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
        auc=min(1.0, shape.auc),  # a sum of trapezia, which may be over by the last bit
        eer=shape.eer,
        eer_threshold=float(points.threshold[equal]),
        same_pairs=same_pairs,
        different_pairs=different_pairs,
        thresholds=tuple(points.threshold[kept].tolist()),
        false_accept=tuple(points.false_accept[kept].tolist()),
        false_reject=tuple(points.false_reject[kept].tolist()),
    )


def finite_scores(values: Values, name: str) -> Floats:
    """`values`, (n,) of at least one, as float64. InputError, with this `name`, for another shape or what is not
    finite."""
    array = _array(values)
    if array.ndim != 1 or not len(array) or array.dtype.kind not in "fiu":
        raise InputError(f"{name}: numbers of shape (n,) are wanted, not {array.dtype} of shape {array.shape}")
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise InputError(f"{name}: {bad} of {len(array)} are not finite numbers")
    return array.astype(np.float64)


def booleans(values: Values, name: str) -> NDArray[np.bool_]:
    """`values`, (n,) bool. InputError, with this `name`, for another shape or type."""
    array = _array(values)
    if array.ndim != 1 or array.dtype != np.bool_:
        raise InputError(f"{name}: true or false of shape (n,) is wanted, not {array.dtype} of shape {array.shape}")
    return array


def _array(values: Values) -> NDArray[Any]:
    """A copy in memory of its own, for torch takes no views that are read-only or run backwards."""
    if isinstance(values, Tensor):
        values = values.detach().cpu()
        values = (values.double() if values.is_floating_point() else values).numpy()  # numpy knows no bfloat16
    return np.array(values, order="C")


class _Points(NamedTuple):
    """Every threshold that makes a difference, rising, and its rates: (points,) each."""

    threshold: Floats
    false_accept: Floats
    false_reject: Floats


def _operating_points(scores: Floats, same: NDArray[np.bool_]) -> _Points:
    false, true, reached = (each[::-1].copy() for each in roc(torch.from_numpy(scores), torch.from_numpy(same)))
    lower, upper = reached[:-2], reached[1:-1]
    half_way = lower / 2 + upper / 2  # halved first: the sum of large ones would be infinite
    between = np.where((lower < half_way) & (half_way <= upper), half_way, upper)  # neighbouring numbers have no middle
    above = np.nextafter(reached[-2], np.inf)  # the last one of `reached` is infinite
    same_pairs = int(same.sum())
    return _Points(
        threshold=np.concatenate([reached[:1], between, [above]]),
        false_accept=false,
        false_reject=np.rint((1 - true) * same_pairs) / same_pairs,  # 1 less a share is a share in all but the last bit
    )


def _normal_deviates(rates: Floats, pairs: int) -> Floats:
    """The rates (n,) of so many pairs as quantiles of the normal distribution, 0 and 1 moved in by half a pair."""
    inside = torch.from_numpy(rates).clamp(0.5 / pairs, 1 - 0.5 / pairs)
    return np.asarray(torch.special.ndtri(inside).numpy())


def _thinned(x: Floats, y: Floats, always: tuple[int, ...]) -> NDArray[np.int64]:
    """Which points of a DET curve (n,) to keep: of about equal distance along it, the ends and `always` among them."""
    if len(x) <= POINTS:
        return np.arange(len(x))
    way = np.concatenate([[0.0], (np.abs(np.diff(x)) + np.abs(np.diff(y))).cumsum()])
    nearest = np.searchsorted(way, np.linspace(0, way[-1], POINTS))
    return np.unique(np.concatenate([nearest, [0, len(x) - 1, *always]]))


def _check_rate(rate: float) -> None:
    if not 0 < rate < 1:
        raise InputError(f"a rate of false accepts of {rate} was asked for; between 0 and 1 is wanted")


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) <= sys.float_info.max:
        raise InputError(f"{name} of a calibration must be a finite number; it may be damaged")
    return float(value)


def _numbers(name: str, value: Any) -> tuple[float, ...]:
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{name} of a calibration must be a list of numbers; it may be damaged")
    return tuple(_number(name, each) for each in value)


def _count(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InputError(f"{name} of a calibration must be a whole number from 1; it may be damaged")
    return value


def _check_laws(found: Calibration) -> None:
    """InputError for what no calibration measures."""
    thresholds, accepted, rejected = map(np.array, (found.thresholds, found.false_accept, found.false_reject))
    laws = {
        "auc and eer are shares": 0 <= found.auc <= 1 and 0 <= found.eer <= 1,
        "the curve's lists are equally long": len(thresholds) == len(accepted) == len(rejected) >= 2,
        "thresholds rise": bool((np.diff(thresholds) > 0).all()),
        "false accepts fall from 1 to 0": _falls(accepted),
        "false rejects rise from 0 to 1": _falls(rejected[::-1]),
        "eer_threshold is one of them": found.eer_threshold in found.thresholds,
    }
    broken = [law for law, kept in laws.items() if not kept]
    if broken:
        raise InputError(f"a calibration whose {broken[0]} is wanted; it may be damaged")
    chosen = OperatingPoint(found.threshold, found.false_accept_rate, found.false_reject_rate)
    if chosen != found.at(found.asked):
        raise InputError("the threshold of a calibration is not the one that its curve gives; it may be damaged")


def _falls(rates: Floats) -> bool:
    """From 1 to 0."""
    return len(rates) > 0 and rates[0] == 1 and rates[-1] == 0 and bool((np.diff(rates) <= 0).all())
