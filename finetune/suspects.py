"""Suspect labels: pictures whose label a cross-validated linear probe disputes, by confident learning.

Northcutt, Jiang & Chuang (2021), Confident Learning: Estimating Uncertainty in Dataset Labels, JAIR 70: section 3.1 for
the thresholds and the confident joint, section 3.2 for ranking by normalized margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor

FOLDS = 5
# Inverse L2 strength on features of mean square length 1. Probabilities rather than the last right answer are wanted,
# and a probe that bends to every label would not dispute the one next to it: between those that a head chooses from.
STRENGTH = 10.0
# Numbers that the probe reads at most, the directions in which the features vary most: the rest costs time alone.
_DIRECTIONS = 256


@dataclass(frozen=True)
class Suspect:
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


def find_suspects(features: Tensor, labels: NDArray[np.int64], alike: Sequence[int]) -> list[Suspect]:
    """The pictures whose label is disputed, the worst first; ties in the order of rows.

    features: (n, width) float32. labels: (n,) from 0, every class present. alike: (n,) numbers; pictures with one
    number, near-duplicates, are judged by a probe that has seen none of them. Only those of `judged_rows` are judged;
    ValueError where these are not of two classes.
    """
    kept = judged_rows(labels, alike)
    names, answers = np.unique(labels[kept], return_inverse=True)
    if len(names) < 2:
        raise ValueError(f"suspect labels need two classes with {FOLDS} different pictures each")
    probabilities = out_of_fold(features.numpy()[kept], answers, np.asarray(alike)[kept])
    return [
        Suspect(int(kept[row]), int(names[answers[row]]), int(names[found]), own, other)
        for row, found, own, other in disputed(probabilities, answers)
    ]


def judged_rows(labels: NDArray[np.int64], alike: Sequence[int]) -> NDArray[np.int64]:
    """(m,): the rows of classes that every fold can have a picture of: FOLDS numbers in `alike` or more."""
    groups: dict[int, set[int]] = {}
    for label, group in zip(labels.tolist(), alike, strict=True):
        groups.setdefault(label, set()).add(group)
    return np.array([row for row, label in enumerate(labels.tolist()) if len(groups[label]) >= FOLDS], dtype=np.int64)


def out_of_fold(
    features: NDArray[np.float32], labels: NDArray[np.int64], alike: NDArray[np.int64]
) -> NDArray[np.float64]:
    """(n, classes): what each picture shows, by a logistic regression on the others."""
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    # Steps of a few milliseconds: several threads would wait for one another for longer than they work.
    with threadpool_limits(1):
        found: NDArray[np.float64] = cross_val_predict(
            LogisticRegression(C=STRENGTH, max_iter=1000, tol=1e-3),
            _scaled(features),
            labels,
            groups=alike,
            cv=folds,
            method="predict_proba",
        )
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


def _scaled(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """Centred, turned to the directions in which they vary most, of mean square length 1."""
    centred = features - features.mean(0)
    if centred.shape[1] > _DIRECTIONS:
        _, vectors = np.linalg.eigh(centred.T @ centred)
        centred = centred @ vectors[:, -_DIRECTIONS:]
    length = float(np.sqrt(np.square(centred).sum(1).mean()))
    scaled: NDArray[np.float32] = centred / max(length, 1e-12)
    return scaled
