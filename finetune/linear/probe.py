"""The probe curve: the accuracy of a linear probe at every depth of a backbone, cross-validated in closed form."""

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
from finetune.linear.ridge import FALLING
from finetune.notebook.results import curve_html

# Ridge strengths as fractions of the mean eigenvalue of the features' covariance.
STRENGTHS = tuple(float(value) for value in np.geomspace(1e-4, 10, 11))
# Fractions of the activations of all depths that are tried besides all of them, as in Head2Toe (Evci et al. 2022).
SHARES = (0.1, 0.3)
TOGETHER = "together"
FOLDS = 5
# A depth is clearly better than the last if its error is lower by more than this fraction.
CLEARLY = 0.1
# Pictures differ from the backbone's own from this distance on. It lies in the wide gap between photographs and all
# other sets that were measured (benchmarks/similarity.py).
FAR = 0.12

_RESAMPLED = 2000
# Most training pictures of a probe curve: beyond them its time grows, and the curve hardly changes.
MOST = 3000


@dataclass(frozen=True)
class Probe:
    """A linear probe at one depth. All figures are held out; intervals are 95 %.

    Attributes:
        depth: Name of the depth.
        width: Number of activations that the probe reads.
        accuracy: Accuracy, with its `interval`.
        over_last: Accuracy minus that of the last depth, with its interval.
        error: Mean squared error of the regression on the classes, relative to that of the class frequencies. It
            separates depths at which accuracy is near 1.
        less_error: Reduction of the error relative to the last depth, with its interval.
        strength: Chosen ridge strength.
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
        """Whether its error is lower than that of the last depth by a tenth, beyond chance, at no loss of accuracy."""
        return self.less_error_interval[0] > CLEARLY and self.over_last >= 0


@dataclass(frozen=True)
class ProbeCurve:
    """Probes from the stem to the features, and one on all depths together, for a number of pictures and classes.

    distance: how far the pictures are from the backbone's own, see `features.familiarity`; None if not measured.

    Example:
        >>> from finetune import Config, probe_folder
        >>> curve = probe_folder("photos/", config=Config(backbone="fewtune_conv4", device="cpu"))
        >>> curve.pictures, curve.classes
        (28, 2)
    """

    probes: tuple[Probe, ...]
    together: Probe
    pictures: int
    classes: int
    distance: float | None = None

    def _repr_html_(self) -> str:
        return curve_html(self)

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
            "distance": self.distance,
        }

    @property
    def last(self) -> Probe:
        return self.probes[-1]

    @property
    def best(self) -> Probe:
        """The depth with the least error, the last one among equals."""
        return min(reversed(self.probes), key=lambda probe: probe.error)

    @property
    def different(self) -> bool:
        """Whether the pictures differ from those that the backbone was trained on: by the distance, or where that could
        not be measured, because an earlier depth, or all together, is clearly better than the last."""
        if self.distance is not None:
            return self.distance > FAR
        return any(probe.clearly_better for probe in (*self.probes[:-1], self.together))


def _listed(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def probe_curve(parts: Sequence[Tensor], depths: Sequence[str], labels: Tensor, *, seed: int = 0) -> ProbeCurve:
    """The probe curve of pooled activations.

    A probe is a ridge regression on the classes, leaving out each picture in turn, with the strength of least error.

    Args:
        parts: Activations of each depth, (n, width).
        depths: Names of the depths.
        labels: Shape (n,), int64 from 0.
        seed: Seed of the bootstrap.

    Raises:
        InputError: For fewer than two classes, or fewer than two pictures of a class.

    Source: Allen (1974), the prediction sum of squares, in closed form.
    """
    counts = torch.bincount(labels)
    if len(counts) < 2 or int(counts[counts > 0].min()) < 2:
        raise InputError("a probe needs two classes or more, and two pictures of each")
    targets = _targets(labels)
    scaled = [_scaled(part) for part in parts]
    held_out = [_left_out(part, targets) for part in scaled]
    held_out.append(_together(scaled, targets, folds_of(labels, FOLDS)))
    last = _LastDepth(held_out[-2], targets, labels, seed)
    probes = [last.probe(name, found) for name, found in zip((*depths, TOGETHER), held_out, strict=True)]
    return ProbeCurve(tuple(probes[:-1]), probes[-1], len(labels), len(counts))


def held_out_errors(parts: Sequence[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    """Held-out results of two probes on what heads read: the last depth, and the last three side by side.

    Args:
        parts: Activations of each depth, (n, width).
        labels: Shape (n,), int64 from 0, with two pictures of each class or more.

    Returns:
        Squared errors (n,), the mean of both probes, relative to the mean squared error of the class frequencies; and
        whether the better probe predicts each picture correctly, shape (n,), bool.
    """
    targets = _targets(labels)
    scaled = [_scaled(part) for part in parts[-len(FALLING) :]]
    weighted = [factor * part for factor, part in zip(FALLING[-len(scaled) :], scaled, strict=True)]
    last, several = (_left_out(rows, targets) for rows in (scaled[-1], _scaled(torch.cat(weighted, 1))))
    better = min(last, several, key=lambda held_out: float(held_out.error.mean()))
    error = (last.error + several.error) / 2
    return error / targets.square().sum(1).mean(), better.predictions.argmax(1) == labels


def _targets(labels: Tensor) -> Tensor:
    """One-hot classes (n, classes), float64, of mean 0."""
    one_hot = torch.nn.functional.one_hot(labels).double()
    return one_hot - one_hot.mean(0)


def _scaled(part: Tensor) -> Tensor:
    """Rows (n, width) float64, centred, of mean square length 1, so that depths side by side have equal weight."""
    rows = part.double()
    return (rows - rows.mean(0)) / spread(rows)


@dataclass(frozen=True)
class _HeldOut:
    """Predictions (n, classes) of pictures by probes that were fitted without them, and squared errors (n,)."""

    predictions: Tensor
    error: Tensor
    width: int
    strength: float


def _left_out(features: Tensor, targets: Tensor) -> _HeldOut:
    """Predictions for centred features (n, width), each picture left out, at the strength of least error."""
    vectors, values = principal_axes(features)
    best: _HeldOut | None = None
    for strength in STRENGTHS:
        ridge = strength * float(values.sum()) / min(features.shape)
        shrunk = values / (values + ridge)
        hat = vectors.square() @ shrunk + 1 / len(features)  # 1 / n for the mean of all pictures
        fitted = vectors @ (shrunk[:, None] * (vectors.T @ targets))
        residual = (targets - fitted) / (1 - hat).clamp_min(1e-9)[:, None]
        error = residual.square().sum(1)
        if best is None or error.mean() < best.error.mean():
            best = _HeldOut(targets - residual, error, features.shape[1], strength)
    assert best is not None
    return best


def _together(parts: Sequence[Tensor], targets: Tensor, fold: Tensor) -> _HeldOut:
    """Predictions from all depths side by side, or from the fraction of the activations that separates classes best.

    The fraction is chosen without the held-out fold.
    """
    side_by_side = torch.cat(list(parts), 1)
    best = _left_out(_scaled(side_by_side), targets)
    for share in SHARES:
        width = max(1, round(share * side_by_side.shape[1]))
        predictions, strengths = torch.zeros_like(targets), []
        for number in range(int(fold.max()) + 1):
            fitted, held_out = fold != number, fold == number
            kept = _by_separation(side_by_side[fitted], targets[fitted])[:width]
            features, queries = side_by_side[fitted][:, kept], side_by_side[held_out][:, kept]
            strength = _left_out(features - features.mean(0), targets[fitted] - targets[fitted].mean(0)).strength
            strengths.append(strength)
            predictions[held_out] = _ridge(features, targets[fitted], queries, strength)
        error = (targets - predictions).square().sum(1)
        if error.mean() < best.error.mean():
            best = _HeldOut(predictions, error, width, float(np.median(strengths)))
    return best


def _by_separation(features: Tensor, targets: Tensor) -> Tensor:
    """Columns (width,) in the order of their F statistic for the classes, the largest first."""
    centred = features - features.mean(0)
    explained = (targets.T @ centred).square().sum(0) / centred.square().sum(0).clamp_min(1e-12)
    return explained.argsort(descending=True)


def _ridge(features: Tensor, targets: Tensor, queries: Tensor, strength: float) -> Tensor:
    """Ridge regression on features (n, width): predictions (m, classes) for (m, width)."""
    mean, centre = features.mean(0), targets.mean(0)
    vectors, values = principal_axes(features - mean)
    ridge = strength * float(values.sum()) / min(features.shape)
    # weights = features.T @ vectors @ diag(1 / (values + ridge)) @ vectors.T @ targets
    through = ((queries - mean) @ (features - mean).T) @ (vectors / (values + ridge))
    return through @ (vectors.T @ (targets - centre)) + centre


class _LastDepth:
    """Compares probes with the last depth on the same pictures, by a paired bootstrap."""

    def __init__(self, last: _HeldOut, targets: Tensor, labels: Tensor, seed: int):
        self._labels, self._error = labels, last.error.numpy()
        self._guessed = float(targets.square().sum(1).mean())
        self._right = self._correct(last)
        self._drawn = np.random.default_rng(seed).integers(len(labels), size=(_RESAMPLED, len(labels)))

    def probe(self, depth: str, found: _HeldOut) -> Probe:
        right, error = self._correct(found), found.error.numpy()
        ratio = error[self._drawn].sum(1) / np.maximum(self._error[self._drawn].sum(1), 1e-300)
        return Probe(
            depth,
            found.width,
            float(right.mean()),
            _interval(right[self._drawn].mean(1)),
            float((right - self._right).mean()),
            _interval((right - self._right)[self._drawn].mean(1)),
            float(error.mean()) / self._guessed,
            1 - float(error.sum()) / max(float(self._error.sum()), 1e-300),
            _interval(1 - ratio),
            found.strength,
        )

    def _correct(self, found: _HeldOut) -> NDArray[np.float64]:
        return (found.predictions.argmax(1) == self._labels).double().numpy()


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
