"""The classifiers that people fit on frozen features, by scikit-learn: what a linear head is compared with."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression, RidgeClassifierCV

Rows: TypeAlias = NDArray[np.float32]
Labels: TypeAlias = NDArray[np.int64]

# Inverse strengths of logistic regression; 1 is scikit-learn's default.
STRENGTHS = (1.0, 10.0, 100.0, 1000.0)

# What an onlooker would try, none of it with a strength that only hindsight knows.
SIMPLE = ("class mean", "logistic", "logistic, chosen", "ridge", "lda")


def simple_accuracies(x: Rows, y: Labels, asked: Rows, truth: Labels) -> dict[str, float]:
    """Accuracy of every simple classifier on features.

    All but the class mean work on features of unit mean square length: centred, and divided by one number. With few
    pictures they are up to nine points better so than with every feature divided by its own deviation, and with many
    as good.

    Args:
        x: Training features, shape (n, d), with at least one picture of each class.
        y: Their classes, shape (n,), 0 to classes - 1.
        asked: Features to classify, shape (m, d).
        truth: Their classes, shape (m,).

    Returns:
        By name: "class mean" (largest cosine with the mean of unit vectors), "logistic" (LogisticRegression with its
        default strength), "ridge" (RidgeClassifierCV), "lda" (linear discriminant analysis with Ledoit-Wolf shrinkage;
        missing where every class has one picture), "logistic, C=..." (other strengths), "logistic, average" (mean
        probability over the strengths), "logistic, chosen" (the strength that is best on a fifth of the pictures).
    """
    mean = x.mean(0)
    length = np.sqrt(np.square(x - mean).sum(1).mean())
    scaled, queries = (x - mean) / length, (asked - mean) / length
    probabilities = {c: logistic(c).fit(scaled, y).predict_proba(queries) for c in STRENGTHS}
    answers = {
        "class mean": _nearest_mean(x, y, asked),
        "logistic": probabilities[1.0].argmax(1),
        "ridge": RidgeClassifierCV(alphas=np.logspace(-4, 2, 13)).fit(scaled, y).predict(queries),
        "logistic, average": sum(probabilities.values()).argmax(1),
        "logistic, chosen": probabilities[_chosen(scaled, y)].argmax(1),
    }
    answers |= {f"logistic, C={c:g}": found.argmax(1) for c, found in probabilities.items() if c != 1}
    if np.bincount(y).max() > 1:
        lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        answers["lda"] = lda.fit(scaled, y).predict(queries)
    return {name: float((found == truth).mean()) for name, found in answers.items()}


def logistic(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=1000)


def _nearest_mean(x: Rows, y: Labels, asked: Rows) -> Labels:
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    means = np.stack([unit[y == label].mean(0) for label in range(y.max() + 1)])
    found: Labels = (asked @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T).argmax(1)
    return found


def _chosen(x: Rows, y: Labels) -> float:
    """The strength with the best accuracy on a fifth of each class; the default where a class has one picture."""
    random, held = np.random.default_rng(0), np.zeros(len(y), bool)
    for label in range(y.max() + 1):
        rows = random.permutation(np.flatnonzero(y == label))
        if len(rows) < 2:
            return 1.0
        held[rows[: max(1, len(rows) // 5)]] = True

    return max(STRENGTHS, key=lambda c: logistic(c).fit(x[~held], y[~held]).score(x[held], y[held]))
