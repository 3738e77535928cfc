"""What a set of predictions is worth: accuracy with its interval, precision and recall, confusion, calibration."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


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


def reliability(log_probabilities: Tensor, labels: Tensor, bins: int = 15) -> list[dict[str, Any]]:
    """How often predictions of each probability are right: the bins of a reliability diagram that hold any of them.

    log_probabilities (n, classes), labels (n,). Bins are of equal width, (low, high]: `n` predictions in each, their
    mean probability and their accuracy.
    """
    best, predicted = log_probabilities.double().max(1)
    confidence, right = best.exp().clamp(0, 1), predicted == labels
    place = (confidence * bins).ceil().long().clamp(1, bins) - 1
    return [
        {
            "low": number / bins,
            "high": (number + 1) / bins,
            "n": int(inside.sum()),
            "probability": float(confidence[inside].mean()),
            "accuracy": float(right[inside].double().mean()),
        }
        for number in range(bins)
        if (inside := place == number).any()
    ]


def expected_calibration_error(log_probabilities: Tensor, labels: Tensor, bins: int = 15) -> float:
    """How far accuracy is from probability, in [0, 1]: the mean over bins, by how many predictions each holds, of the
    difference (Naeini et al. 2015; Guo et al. 2017, eq. 3, with 15 bins as there)."""
    found = reliability(log_probabilities, labels, bins)
    return float(sum(row["n"] * abs(row["accuracy"] - row["probability"]) for row in found)) / max(1, len(labels))


def summary(log_probabilities: Tensor, labels: Tensor, classes: Sequence[str]) -> dict[str, Any]:
    """Everything that metrics.json says of log-probabilities (n, classes) against labels (n,), as JSON values."""
    predicted = log_probabilities.argmax(1)
    matrix = confusion(predicted, labels, len(classes))
    correct, n = int(matrix.diagonal().sum()), len(labels)
    recalls = [_share(matrix[i, i], matrix[i].sum()) for i in range(len(classes))]
    measured = [recall for recall in recalls if recall is not None]
    return {
        "accuracy": correct / n,
        "interval": list(wilson_interval(correct, n)),
        "balanced_accuracy": sum(measured) / len(measured),
        "loss": float(torch.nn.functional.nll_loss(log_probabilities.double(), labels)),
        "n": n,
        "per_class": {
            name: _class_summary(int(matrix[i, i]), int(matrix[i].sum()), int(matrix[:, i].sum()))
            for i, name in enumerate(classes)
        },
        "confusion": matrix.tolist(),
    }


def accuracy_of(predicted: Tensor, labels: Tensor) -> dict[str, Any]:
    """Accuracy and interval alone, for a baseline that gives no probabilities."""
    correct, n = int((predicted == labels).sum()), len(labels)
    return {"accuracy": correct / n, "interval": list(wilson_interval(correct, n))}


def _class_summary(hits: int, support: int, predicted: int) -> dict[str, Any]:
    """None where a share has no pictures to be a share of."""
    f1 = 2 * hits / (support + predicted) if support + predicted else None
    return {"precision": _share(hits, predicted), "recall": _share(hits, support), "f1": f1, "support": support}


def _share(part: int | Tensor, whole: int | Tensor) -> float | None:
    return int(part) / int(whole) if int(whole) else None


def _double(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.double()
