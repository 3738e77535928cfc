"""The linear classifier that people write on frozen features: what a head must not fall short of."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)


def plain_accuracy(
    x: NDArray[np.float32], y: NDArray[np.int64], asked: NDArray[np.float32], truth: NDArray[np.int64]
) -> float:
    """Of scikit-learn's LogisticRegression on (asked, truth), learned from (x, y), strength chosen on a fifth of it."""
    chosen = np.random.default_rng(0).permutation(len(y))
    held, kept = chosen[: len(chosen) // 5], chosen[len(chosen) // 5 :]

    def model(strength: float, rows: Any) -> LogisticRegression:
        return LogisticRegression(C=strength, max_iter=1000).fit(x[rows], y[rows])

    best = max(STRENGTHS, key=lambda strength: model(strength, kept).score(x[held], y[held]))
    return float(model(best, chosen).score(asked, truth))
