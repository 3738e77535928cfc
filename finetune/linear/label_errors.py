"""Suspect labels: pictures whose label a cross-validated linear probe disputes, by confident learning.

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
# Inverse L2 strength on features of mean square length 1. Probabilities rather than the last right answer are wanted,
# and a probe that bends to every label would not dispute the one next to it: between those that a head chooses from.
STRENGTH = 10.0
# Numbers that the probe reads at most, the directions in which the features vary most: the rest costs time alone.
_DIRECTIONS = 256


@dataclass(frozen=True)
class LabelError:
    """A picture, by its row, that is given the label `given` and confidently found to be `predicted`.

    probability_of_given, probability_of_predicted: by a probe that has not seen the picture, nor one like it.
    """

    row: int
    given: int
    predicted: int
    probability_of_given: float
    probability_of_predicted: float

    @property
    def margin(self) -> float:
        """The first less the second, -1 to 0: what suspects are ranked by."""
        return self.probability_of_given - self.probability_of_predicted


def find_suspects(features: Tensor, labels: NDArray[np.int64], alike: Sequence[int]) -> list[LabelError]:
    """The pictures whose label is disputed, the worst first; ties in the order of rows.

    features: (n, width) float32. labels: (n,) from 0, every class present. alike: (n,) numbers; pictures with one
    number, near-duplicates, are judged by a probe that has seen none of them. Only those of `judged_rows` are judged;
    ValueError where these are not of two classes.
    """
    kept = judged_rows(labels, alike)
    names, answers = np.unique(labels[kept], return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"suspect labels need two classes with {FOLDS} different pictures each")
    probabilities = out_of_fold(features[kept], answers, np.asarray(alike)[kept])
    return [
        LabelError(int(kept[row]), int(names[answers[row]]), int(names[found]), own, other)
        for row, found, own, other in disputed(probabilities, answers)
    ]


def judged_rows(labels: NDArray[np.int64], alike: Sequence[int]) -> NDArray[np.int64]:
    """(m,): the rows of classes that every fold can have a picture of: FOLDS numbers in `alike` or more."""
    groups: dict[int, set[int]] = {}
    for label, group in zip(labels.tolist(), alike, strict=True):
        groups.setdefault(label, set()).add(group)
    return np.array([row for row, label in enumerate(labels.tolist()) if len(groups[label]) >= FOLDS], dtype=np.int64)


def out_of_fold(features: Tensor, labels: NDArray[np.int64], alike: NDArray[np.int64]) -> NDArray[np.float64]:
    """(n, classes): what each picture shows, by a logistic regression on the others."""
    rows, truth = _scaled(features), torch.from_numpy(labels)
    found = np.zeros((len(labels), int(labels.max()) + 1))
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    for learned, judged in folds.split(rows, labels, alike):
        weight, bias = Logistic(rows[learned], truth[learned], found.shape[1]).solve(STRENGTH)
        found[judged] = (rows[judged] @ weight.T + bias).softmax(1).numpy()
    return found


def disputed(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> list[tuple[int, int, float, float]]:
    """Row, found label, probability of the given and of the found one, of what lies off the confident joint's diagonal.

    A picture counts as of the class that it is most probably of, among those that it is at least as probably of as
    the pictures given that label are in the mean. Least normalized margin first.
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
    """Along the axes in which they vary most, of mean square length 1: (n, width) to (n, at most _DIRECTIONS)."""
    rows = features.double()
    vectors, values = principal_axes(rows - rows.mean(0))
    turned = (vectors * values.sqrt())[:, -_DIRECTIONS:]
    return (turned / spread(turned)).float()
