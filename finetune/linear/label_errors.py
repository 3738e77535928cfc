"""Label errors: pictures whose label a cross-validated linear probe contradicts, by confident learning.

Northcutt, Jiang & Chuang (2021), Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70: section 3.1 for
the thresholds and the confident joint, section 3.2 for ranking by normalized margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor

from finetune.linear.logistic import Logistic, principal_axes, spread

FOLDS = 5
# Inverse L2 strength on features of mean square length 1. Good probabilities matter more here than accuracy, and a
# probe that fits every label contradicts none, so the strength is in the middle of those that a head chooses from.
STRENGTH = 10.0
# Largest number of principal axes that the probe reads. More of them only cost time.
_DIRECTIONS = 256


@dataclass(frozen=True)
class LabelError:
    """A picture, by its row, whose label `given` is contradicted by the confident prediction `predicted`.

    Probabilities are those of a probe that was fitted without the picture and its near-duplicates.
    """

    row: int
    given: int
    predicted: int
    probability_of_given: float
    probability_of_predicted: float

    @property
    def margin(self) -> float:
        """The probability of `given` minus that of `predicted`, -1 to 0."""
        return self.probability_of_given - self.probability_of_predicted


def find_label_errors(features: Tensor, labels: NDArray[np.int64], alike: Sequence[int]) -> list[LabelError]:
    """Find pictures whose label is probably wrong.

    Args:
        features: Shape (n, width), float32.
        labels: Shape (n,), from 0, every class present.
        alike: A number for each picture. Near-duplicates share a number, and are then held out together.

    Returns:
        The label errors, the worst first, among the pictures of `checkable_rows`.

    Raises:
        ValueError: If these pictures belong to fewer than two classes.
    """
    kept = checkable_rows(labels, alike)
    names, classes = np.unique(labels[kept], return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"label errors need two classes with {FOLDS} different pictures each")
    probabilities = out_of_fold(features[kept], classes, np.asarray(alike)[kept])
    return [
        LabelError(int(kept[row]), int(names[classes[row]]), int(names[found]), own, other)
        for row, found, own, other in contradicted(probabilities, classes)
    ]


def checkable_rows(labels: NDArray[np.int64], alike: Sequence[int]) -> NDArray[np.int64]:
    """The rows of classes with a picture for every fold, shape (m,): FOLDS different numbers in `alike` or more."""
    groups: dict[int, set[int]] = {}
    for label, group in zip(labels.tolist(), alike, strict=True):
        groups.setdefault(label, set()).add(group)
    return np.array([row for row, label in enumerate(labels.tolist()) if len(groups[label]) >= FOLDS], dtype=np.int64)


def out_of_fold(features: Tensor, labels: NDArray[np.int64], alike: NDArray[np.int64]) -> NDArray[np.float64]:
    """Class probabilities (n, classes) of each picture, by a logistic regression on other folds."""
    rows, truth = _scaled(features), torch.from_numpy(labels)
    found = np.zeros((len(labels), int(labels.max()) + 1))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for fitted, held_out in folds.split(rows, labels, alike):
        weight, bias = Logistic(rows[fitted], truth[fitted], found.shape[1]).solve(STRENGTH)
        found[held_out] = (rows[held_out] @ weight.T + bias).softmax(1).numpy()
    return found


def contradicted(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> list[tuple[int, int, float, float]]:
    """The pictures off the diagonal of the confident joint.

    A class is confident for a picture if its probability reaches the mean probability of the class over the pictures
    with that label. The most probable confident class is predicted. Returns row, prediction, probability of the label
    and of the prediction; the least normalized margin first.
    """
    classes = probabilities.shape[1]
    own = probabilities[np.arange(len(labels)), labels]
    thresholds = np.array([own[labels == label].mean() for label in range(classes)])
    confident = np.where(probabilities >= thresholds, probabilities, -1.0)
    found = confident.argmax(1)
    best = confident[np.arange(len(labels)), found]
    off = np.flatnonzero((best >= 0) & (found != labels) & (best > own))
    order = off[np.argsort(own[off] - best[off], kind="stable")]
    return [(int(row), int(found[row]), float(own[row]), float(best[row])) for row in order]


def _scaled(features: Tensor) -> Tensor:
    """Features along their first principal axes, with mean square length 1: (n, width) to (n, at most _DIRECTIONS)."""
    rows = features.double()
    vectors, values = principal_axes(rows - rows.mean(0))
    turned = (vectors * values.sqrt())[:, -_DIRECTIONS:]
    return (turned / spread(turned)).float()
