"""How well a linear probe does at every depth of a backbone: the probe curve, cross-validated in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from finetune.errors import InputError
from finetune.linear.logistic import folds_of, principal_axes, spread

# Ridge strengths, as shares of the mean eigenvalue of the features' covariance.
STRENGTHS = tuple(float(value) for value in np.geomspace(1e-4, 10, 11))
# Shares of the numbers of all depths that are tried beside all of them: Head2Toe (Evci et al. 2022) keeps few, too.
SHARES = (0.1, 0.3)
TOGETHER = "together"
FOLDS = 5
# Pictures differ from the backbone's own where another depth errs less than the last by more than this share of it.
CLEARLY = 0.1

_RESAMPLED = 2000


@dataclass(frozen=True)
class Probe:
    """A linear probe at one depth. accuracy: each picture judged by a probe that has learned from the others; interval:
    95 %, for other pictures like these; over_last: how much more of them than at the last depth, with its interval.

    error: mean squared distance of its answers from the classes, as a share of what guessing the class sizes leaves.
    It still tells depths apart that name nearly every picture right. less_error: how much less of it than at the last
    depth, as a share of that, with its interval. width: numbers it reads. strength: chosen ridge strength.
    """

    depth: str
    width: int
    accuracy: float
    interval: tuple[float, float]
    over_last: float
    over_last_interval: tuple[float, float]
    error: float
    less_error: float
    less_error_interval: tuple[float, float]
    strength: float

    @property
    def clearly_better(self) -> bool:
        """Whether it errs less than the last depth: by a tenth and more than chance, and names no fewer right."""
        return self.less_error_interval[0] > CLEARLY and self.over_last >= 0


@dataclass(frozen=True)
class ProbeCurve:
    """Probes from the stem to the features, and one on all depths together. pictures, classes: judged."""

    probes: tuple[Probe, ...]
    together: Probe
    pictures: int
    classes: int

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        probes = [_listed(asdict(probe)) for probe in (*self.probes, self.together)]
        return {
            "pictures": self.pictures,
            "classes": self.classes,
            "probes": probes[:-1],
            "together": probes[-1],
            "best": self.best.depth,
            "different": self.different,
        }

    @property
    def last(self) -> Probe:
        return self.probes[-1]

    @property
    def best(self) -> Probe:
        """The depth that errs least, the highest one among equals."""
        return min(reversed(self.probes), key=lambda probe: probe.error)

    @property
    def different(self) -> bool:
        """Whether an earlier depth, or all together, is clearly better than the last: the pictures then differ from
        those that the backbone learned from."""
        return any(probe.clearly_better for probe in (*self.probes[:-1], self.together))


def _listed(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def probe_curve(parts: Sequence[Tensor], depths: Sequence[str], labels: Tensor, *, seed: int = 0) -> ProbeCurve:
    """The curve of pooled activations `parts`, (n, width) each, named `depths`, for labels (n,) int64 from 0.

    Ridge regression on one number a class, each picture left out in turn (Allen 1974, the prediction sum of squares,
    in closed form), its strength the one that errs least. InputError for fewer than two classes, or two
    pictures of one.
    """
    counts = torch.bincount(labels)
    if len(counts) < 2 or int(counts[counts > 0].min()) < 2:
        raise InputError("a probe needs two classes or more, and two pictures of each")
    targets = _targets(labels)
    scaled = [_scaled(part) for part in parts]
    judged = [_left_out(part, targets) for part in scaled]
    judged.append(_together(scaled, targets, folds_of(labels, FOLDS)))
    last = _Against(judged[-2], targets, labels, seed)
    probes = [last.probe(name, found) for name, found in zip((*depths, TOGETHER), judged, strict=True)]
    return ProbeCurve(tuple(probes[:-1]), probes[-1], len(labels), len(counts))


def probe_answers(features: Tensor, labels: Tensor, asked: Tensor) -> Tensor:
    """The class (m,) that a probe on features (n, width) with labels (n,) from 0 gives each of (m, width)."""
    strength = _left_out(_scaled(features), _targets(labels)).strength
    one_hot = torch.nn.functional.one_hot(labels).double()
    return _ridge(features.double(), one_hot, asked.double(), strength).argmax(1)


def _targets(labels: Tensor) -> Tensor:
    """(n, classes) float64 of mean 0, each class weighing the same."""
    one_hot = torch.nn.functional.one_hot(labels).double()
    return one_hot - one_hot.mean(0)


def _scaled(part: Tensor) -> Tensor:
    """(n, width) float64, centred, of mean square length 1: depths side by side then count alike."""
    rows = part.double()
    return (rows - rows.mean(0)) / spread(rows)


@dataclass(frozen=True)
class _Judged:
    """answers (n, classes): of each picture, by what was learned from others. error (n,): squared distance from it."""

    answers: Tensor
    error: Tensor
    width: int
    strength: float


def _left_out(features: Tensor, targets: Tensor) -> _Judged:
    """Each of (n, width), centred, judged by what was learned from all the others, at the strength that errs least."""
    vectors, values = principal_axes(features)
    best: _Judged | None = None
    for strength in STRENGTHS:
        ridge = strength * float(values.sum()) / min(features.shape)
        shrunk = values / (values + ridge)
        hat = vectors.square() @ shrunk + 1 / len(features)  # the mean was taken out of all of them
        fitted = vectors @ (shrunk[:, None] * (vectors.T @ targets))
        residual = (targets - fitted) / (1 - hat).clamp_min(1e-9)[:, None]
        error = residual.square().sum(1)
        if best is None or error.mean() < best.error.mean():
            best = _Judged(targets - residual, error, features.shape[1], strength)
    assert best is not None
    return best


def _together(parts: Sequence[Tensor], targets: Tensor, fold: Tensor) -> _Judged:
    """All depths side by side, or that share of their numbers that tells most about the classes: chosen anew on every
    fold that a probe learns from, so that no picture has a say in what it is judged by."""
    side_by_side = torch.cat(list(parts), 1)
    best = _left_out(_scaled(side_by_side), targets)
    for share in SHARES:
        width = max(1, round(share * side_by_side.shape[1]))
        answers, strengths = torch.zeros_like(targets), []
        for number in range(int(fold.max()) + 1):
            learn, judge = fold != number, fold == number
            kept = _telling(side_by_side[learn], targets[learn])[:width]
            learned, judged = side_by_side[learn][:, kept], side_by_side[judge][:, kept]
            strength = _left_out(learned - learned.mean(0), targets[learn] - targets[learn].mean(0)).strength
            strengths.append(strength)
            answers[judge] = _ridge(learned, targets[learn], judged, strength)
        error = (targets - answers).square().sum(1)
        if error.mean() < best.error.mean():
            best = _Judged(answers, error, width, float(np.median(strengths)))
    return best


def _telling(features: Tensor, targets: Tensor) -> Tensor:
    """Which of the numbers (width,) say most about the classes, each by itself: the F statistic orders them so."""
    centred = features - features.mean(0)
    explained = (targets.T @ centred).square().sum(0) / centred.square().sum(0).clamp_min(1e-12)
    return explained.argsort(descending=True)


def _ridge(features: Tensor, targets: Tensor, asked: Tensor, strength: float) -> Tensor:
    """What ridge regression on (n, width) says of (m, width): (m, classes)."""
    mean, centre = features.mean(0), targets.mean(0)
    vectors, values = principal_axes(features - mean)
    ridge = strength * float(values.sum()) / min(features.shape)
    # weights = features.T @ vectors @ diag(1 / (values + ridge)) @ vectors.T @ targets
    through = ((asked - mean) @ (features - mean).T) @ (vectors / (values + ridge))
    return through @ (vectors.T @ (targets - centre)) + centre


class _Against:
    """Probes measured against the last depth on the same pictures, resampled together."""

    def __init__(self, last: _Judged, targets: Tensor, labels: Tensor, seed: int):
        self._labels, self._error = labels, last.error.numpy()
        self._guessed = float(targets.square().sum(1).mean())
        self._right = self._named(last)
        self._drawn = np.random.default_rng(seed).integers(len(labels), size=(_RESAMPLED, len(labels)))

    def probe(self, depth: str, judged: _Judged) -> Probe:
        right, error = self._named(judged), judged.error.numpy()
        ratio = error[self._drawn].sum(1) / np.maximum(self._error[self._drawn].sum(1), 1e-300)
        return Probe(
            depth,
            judged.width,
            float(right.mean()),
            _interval(right[self._drawn].mean(1)),
            float((right - self._right).mean()),
            _interval((right - self._right)[self._drawn].mean(1)),
            float(error.mean()) / self._guessed,
            1 - float(error.sum()) / max(float(self._error.sum()), 1e-300),
            _interval(1 - ratio),
            judged.strength,
        )

    def _named(self, judged: _Judged) -> NDArray[np.float64]:
        return (judged.answers.argmax(1) == self._labels).double().numpy()


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
