"""Figures of a set of predictions: accuracy with its interval, precision and recall, confusion, calibration."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from torch import Tensor

# Types that are checked when a file is read: see `finetune.files.reading.as_type`.
Share = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0, le=10**15)]
Finite = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]

Floats = NDArray[np.float64]
Curve = tuple[Floats, Floats]


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """Share of correct predictions, with its 95 % interval."""

    accuracy: Share
    interval: tuple[Share, Share]


@dataclass(frozen=True, kw_only=True)
class ClassMetrics:
    """Figures of one class; None where a share has no pictures to be a share of. support: pictures of the class."""

    precision: Share | None
    recall: Share | None
    f1: Share | None
    support: Count


@dataclass(frozen=True, kw_only=True)
class Measurement(Accuracy):
    """Figures of log-probabilities against true classes.

    balanced_accuracy: mean recall over the classes that have pictures. loss: mean negative log-likelihood, in nats.
    n: number of pictures. confusion: counts, row the true class, column the predicted.
    """

    balanced_accuracy: Share
    loss: Finite
    n: Annotated[int, Meta(ge=1, le=10**15)]
    per_class: dict[str, ClassMetrics]
    confusion: tuple[tuple[Count, ...], ...] = ()


def no_measurement(classes: Sequence[str]) -> dict[str, Any]:
    """The fields of a `Measurement` where there is no picture to measure on."""
    unknown = ClassMetrics(precision=None, recall=None, f1=None, support=0)
    return {
        "accuracy": None,
        "interval": None,
        "balanced_accuracy": None,
        "loss": None,
        "n": 0,
        "per_class": dict.fromkeys(classes, unknown),
    }


@dataclass(frozen=True)
class ReliabilityBin:
    """Predictions whose probability lies in (low, high]: how many, their mean probability, their accuracy."""

    low: float
    high: float
    n: int
    probability: float
    accuracy: float


def wilson_interval(correct: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a share, as fractions (Wilson 1927): sound also near 0 and 1 and for few trials."""
    if n == 0:
        return 0.0, 1.0
    share = correct / n
    centre = share + z * z / (2 * n)
    spread = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # Rounding must not put a share of 0 or 1 outside of its own interval.
    return max(0.0, min(share, (centre - spread) / scale)), min(1.0, max(share, (centre + spread) / scale))


def log_loss(logits: Tensor, labels: Tensor, class_weights: Tensor | None = None) -> float:
    """Mean negative log-likelihood in nats of labels (n,) under logits (n, classes)."""
    return float(torch.nn.functional.cross_entropy(logits.double(), labels, _double(class_weights)))


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Share of labels (n,) that logits (n, classes) put first."""
    return float((logits.argmax(1) == labels).double().mean())


def confusion(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Counts, (classes, classes) int64: row the true class, column the predicted."""
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


def reliability(log_probabilities: Tensor, labels: Tensor, bins: int = 15) -> list[ReliabilityBin]:
    """The bins of a reliability diagram, of equal width, without empty ones: log-probabilities (n, classes) against
    labels (n,)."""
    best, predicted = log_probabilities.double().max(1)
    confidence, right = best.exp().clamp(0, 1), predicted == labels
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return [
        ReliabilityBin(
            low=number / bins,
            high=(number + 1) / bins,
            n=int(inside.sum()),
            probability=float(confidence[inside].mean()),
            accuracy=float(right[inside].double().mean()),
        )
        for number in range(bins)
        if (inside := place == number).any()
    ]


def expected_calibration_error(log_probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """Mean difference between probability and accuracy over the bins, weighted by their sizes, in [0, 1].

    Source: Naeini et al. (2015); Guo et al. (2017), eq. 3, with 15 bins as there.
    """
    found = reliability(log_probabilities, labels, bins)
    return float(sum(row.n * abs(row.accuracy - row.probability) for row in found)) / max(1, len(labels))


def roc_curve(truth: NDArray[np.bool_], scores: NDArray[np.floating]) -> Curve:
    """Rates of false and of true positives, both from 0 to 1: a point for every corner of the curve.

    Args:
        truth: Shape (n,), True for a positive; there are both kinds.
        scores: Shape (n,), higher for what is more likely a positive.
    """
    true, false, _ = _positives(truth, scores)
    turns = np.logical_or(np.diff(true[1:], 2), np.diff(false[1:], 2))
    corners = np.flatnonzero(np.concatenate(([True, True], turns, [True]))[: len(true)])
    return false[corners] / false[-1], true[corners] / true[-1]


def roc_thresholds(truth: NDArray[np.bool_], scores: NDArray[np.floating]) -> tuple[Floats, Floats, Floats]:
    """Rates of false and of true positives at falling thresholds, infinity and every distinct score. Arguments as for
    `roc_curve`."""
    true, false, thresholds = _positives(truth, scores)
    return false / false[-1], true / true[-1], thresholds


def precision_recall_curve(truth: NDArray[np.bool_], scores: NDArray[np.floating]) -> Curve:
    """Recall, from 0 to 1, and precision: a point for every distinct score after (0, 1). Arguments as for
    `roc_curve`."""
    true, false, _ = _positives(truth, scores)
    return true / true[-1], np.concatenate(([1.0], true[1:] / (true + false)[1:]))


def _positives(truth: NDArray[np.bool_], scores: NDArray[np.floating]) -> tuple[Floats, Floats, Floats]:
    """How many true and how many false positives there are with no score, with the highest one and above, and so on,
    and these scores."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.append(np.diff(scores[order]), -1.0))
    true = np.append(0.0, np.cumsum(truth[order])[last])
    return true, np.append(0.0, last + 1.0) - true, np.append(np.inf, scores[order][last])


def measure_predictions(log_probabilities: Tensor, labels: Tensor, classes: Sequence[str]) -> Measurement:
    """All figures of log-probabilities (n, classes) against labels (n,); n is at least 1.

    Example:
        >>> measured = measure_predictions(torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log(), torch.tensor([0, 1]), "ab")
        >>> measured.accuracy, measured.confusion
        (0.5, ((1, 0), (1, 0)))
    """
    matrix = confusion(log_probabilities.argmax(1), labels, len(classes))
    correct, n = int(matrix.diagonal().sum()), len(labels)
    recalls = [_share(matrix[i, i], matrix[i].sum()) for i in range(len(classes))]
    measured = [recall for recall in recalls if recall is not None]
    return Measurement(
        accuracy=correct / n,
        interval=wilson_interval(correct, n),
        balanced_accuracy=sum(measured) / len(measured),
        loss=float(torch.nn.functional.nll_loss(log_probabilities.double(), labels)),
        n=n,
        per_class={
            name: _class_metrics(int(matrix[i, i]), int(matrix[i].sum()), int(matrix[:, i].sum()))
            for i, name in enumerate(classes)
        },
        confusion=tuple(tuple(row) for row in matrix.tolist()),
    )


def accuracy_of(predicted: Tensor, labels: Tensor) -> Accuracy:
    """Accuracy and interval of predicted classes (n,) against labels (n,)."""
    correct, n = int((predicted == labels).sum()), len(labels)
    return Accuracy(accuracy=correct / n, interval=wilson_interval(correct, n))


def _class_metrics(hits: int, support: int, predicted: int) -> ClassMetrics:
    f1 = 2 * hits / (support + predicted) if support + predicted else None
    return ClassMetrics(precision=_share(hits, predicted), recall=_share(hits, support), f1=f1, support=support)


def _share(part: int | Tensor, whole: int | Tensor) -> float | None:
    return int(part) / int(whole) if int(whole) else None


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()
