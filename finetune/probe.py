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

# Ridge strengths, as shares of the mean eigenvalue of the features' covariance.
STRENGTHS = tuple(float(value) for value in np.geomspace(1e-4, 10, 11))
# Of all depths side by side, the shares of numbers that are tried: Head2Toe (Evci et al. 2022) keeps few, too.
SHARES = (0.1, 0.3, 1.0)
TOGETHER = "together"
FOLDS = 5

_RESAMPLED = 2000


@dataclass(frozen=True)
class Probe:
    """A linear probe at one depth. accuracy: each picture judged by a probe that has learned from the others; interval:
    95 %, for other pictures like these; over_last: how much more of them than at the last depth, with its interval.

    width: numbers it reads. strength: chosen ridge strength.
    """

    depth: str
    width: int
    accuracy: float
    interval: tuple[float, float]
    over_last: float
    over_last_interval: tuple[float, float]
    strength: float


@dataclass(frozen=True)
class Curve:
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
        """The most accurate of the depths, the highest one among equals."""
        return max(reversed(self.probes), key=lambda probe: probe.accuracy)

    @property
    def different(self) -> bool:
        """Whether an earlier depth, or all together, beat the last by more than chance: the pictures then differ from
        those that the backbone learned from."""
        return any(probe.over_last_interval[0] > 0 for probe in (*self.probes[:-1], self.together))


def _listed(values: dict[str, Any]) -> dict[str, Any]:
    return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}


def probe_curve(parts: Sequence[Tensor], depths: Sequence[str], labels: Tensor, *, seed: int = 0) -> Curve:
    """The curve of pooled activations `parts`, (n, width) each, named `depths`, for labels (n,) int64 from 0.

    Ridge regression on one number a class, each picture left out in turn (Allen 1974, the prediction sum of squares,
    in closed form), its strength the one with the most right answers. InputError for fewer than two classes, or two
    pictures of one.
    """
    counts = torch.bincount(labels)
    if len(counts) < 2 or int(counts[counts > 0].min()) < 2:
        raise InputError("a probe needs two classes or more, and two pictures of each")
    targets = _targets(labels)
    right, chosen = [], []
    scaled = [_scaled(part) for part in parts]
    for part in scaled:
        answers, strength = _left_out(part, targets, labels)
        right.append(answers)
        chosen.append((part.shape[1], strength))
    together, width, strength = _selected(scaled, targets, labels)
    right.append(together)
    chosen.append((width, strength))
    probes = [
        _judged(name, answers, right[len(parts) - 1], *about, seed)
        for name, answers, about in zip((*depths, TOGETHER), right, chosen, strict=True)
    ]
    return Curve(tuple(probes[:-1]), probes[-1], len(labels), len(counts))


def _targets(labels: Tensor) -> Tensor:
    """(n, classes) float64 of mean 0, each class weighing the same."""
    one_hot = torch.nn.functional.one_hot(labels).double()
    return one_hot - one_hot.mean(0)


def _scaled(part: Tensor) -> Tensor:
    """(n, width) float64, centred, of mean square length 1: depths side by side then count alike."""
    centred = part.double() - part.double().mean(0)
    return centred / centred.square().sum(1).mean().sqrt().clamp_min(1e-12)


def _left_out(features: Tensor, targets: Tensor, labels: Tensor) -> tuple[NDArray[np.bool_], float]:
    """Which pictures (n,) are named right by what was learned from the others, at the strength with most such."""
    vectors, values = _eigen(features)
    best: tuple[float, NDArray[np.bool_], float] | None = None
    for strength in STRENGTHS:
        ridge = strength * float(values.sum()) / min(features.shape)
        shrunk = values / (values + ridge)
        hat = vectors.square() @ shrunk + 1 / len(features)  # the mean was taken out of all of them
        fitted = vectors @ (shrunk[:, None] * (vectors.T @ targets))
        residual = (targets - fitted) / (1 - hat).clamp_min(1e-9)[:, None]
        answers = ((targets - residual).argmax(1) == labels).numpy()
        # Of two with equally many right answers, the one that errs less.
        score = float(answers.mean()) - 1e-9 * float(residual.square().mean())
        if best is None or score > best[0]:
            best = score, answers, strength
    assert best is not None
    return best[1], best[2]


def _eigen(features: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors (n, rank) and squared singular values (rank,) of (n, width)."""
    n, width = features.shape
    if width < n:
        values, right = torch.linalg.eigh(features.T @ features)
        kept = values > values[-1].clamp_min(1e-300) * 1e-12
        return features @ (right[:, kept] / values[kept].sqrt()), values[kept]
    values, left = torch.linalg.eigh(features @ features.T)
    kept = values > values[-1].clamp_min(1e-300) * 1e-12
    return left[:, kept], values[kept]


def _selected(parts: Sequence[Tensor], targets: Tensor, labels: Tensor) -> tuple[NDArray[np.bool_], int, float]:
    """All depths side by side, or that share of their numbers that tells most about the classes: chosen anew on every
    part of the pictures that a probe learns from, so that none has a say in what it is judged by."""
    side_by_side = torch.cat(list(parts), 1)
    fold = _folds(labels)
    best: tuple[float, NDArray[np.bool_], int, float] | None = None
    for share in SHARES:
        width = max(1, round(share * side_by_side.shape[1]))
        right, strengths = np.zeros(len(labels), bool), []
        for number in range(int(fold.max()) + 1):
            learn, judge = fold != number, fold == number
            kept = _telling(side_by_side[learn], targets[learn])[:width]
            learned, judged = side_by_side[learn][:, kept], side_by_side[judge][:, kept]
            _, strength = _left_out(learned - learned.mean(0), targets[learn] - targets[learn].mean(0), labels[learn])
            strengths.append(strength)
            answers = _ridge(learned, targets[learn], judged, strength).argmax(1)
            right[judge.numpy()] = (answers == labels[judge]).numpy()
        if best is None or right.mean() > best[0]:
            best = float(right.mean()), right, width, float(np.median(strengths))
    assert best is not None
    return best[1], best[2], best[3]


def _folds(labels: Tensor) -> Tensor:
    """(n,): as many parts as the smallest class has pictures, at most FOLDS, with its share of each class in each."""
    folds = min(FOLDS, int(torch.bincount(labels).min()))
    fold = torch.empty_like(labels)
    for label in labels.unique():
        rows = (labels == label).nonzero()[:, 0]
        fold[rows] = torch.arange(len(rows)) % folds
    return fold


def _telling(features: Tensor, targets: Tensor) -> Tensor:
    """Which of the numbers (width,) say most about the classes, each by itself: the F statistic orders them so."""
    centred = features - features.mean(0)
    explained = (targets.T @ centred).square().sum(0) / centred.square().sum(0).clamp_min(1e-12)
    return explained.argsort(descending=True)


def _ridge(features: Tensor, targets: Tensor, asked: Tensor, strength: float) -> Tensor:
    """What ridge regression on (n, width) says of (m, width): (m, classes)."""
    mean, centre = features.mean(0), targets.mean(0)
    vectors, values = _eigen(features - mean)
    ridge = strength * float(values.sum()) / min(features.shape)
    # weights = features.T @ vectors @ diag(1 / (values + ridge)) @ vectors.T @ targets
    through = ((asked - mean) @ (features - mean).T) @ (vectors / (values + ridge))
    return through @ (vectors.T @ (targets - centre)) + centre


def _judged(
    depth: str, right: NDArray[np.bool_], last: NDArray[np.bool_], width: int, strength: float, seed: int
) -> Probe:
    """The pictures resampled, so that two depths are compared on the same ones."""
    random = np.random.default_rng(seed)
    drawn = random.integers(len(right), size=(_RESAMPLED, len(right)))
    gain = right.astype(np.float64) - last
    low, high = np.quantile(right[drawn].mean(1), (0.025, 0.975))
    low_gain, high_gain = np.quantile(gain[drawn].mean(1), (0.025, 0.975))
    return Probe(
        depth,
        width,
        float(right.mean()),
        (float(low), float(high)),
        float(gain.mean()),
        (float(low_gain), float(high_gain)),
        strength,
    )
