"""Similarities within a gallery: of its classes to each other, and of pictures to their own and to other classes.

`means` are those of the classes: shape (classes, width), unit length.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fewshot.recognition.examples import Examples, Vectors
from fewshot.recognition.unknowns import Floats, Samples

_AT_ONCE = 1 << 24  # similarities computed at once


def similarity_to(vectors: Vectors, means: Vectors) -> Vectors:
    """Similarity (n, classes) of vectors (n, width), at most 1 despite rounding."""
    return np.asarray(np.minimum(vectors @ means.T, 1), np.float32)


def class_similarity(examples: Examples, means: Vectors) -> Floats:
    """Mean similarity (classes, classes) of the examples of one class to the other, the higher of both directions.

    Each pair is there once: the diagonal and what is below it are -inf.
    """
    counts, vectors = np.array(examples.counts, np.int64), examples.vectors
    starts = counts.cumsum() - counts
    table = np.empty((len(counts), len(counts)), np.float64)
    step = max(1, _AT_ONCE // max(1, len(vectors)))
    for at in range(0, len(counts), step):
        similarity = (vectors @ means[at : at + step].T).astype(np.float64)
        table[:, at : at + step] = np.add.reduceat(similarity, starts, axis=0) / counts[:, None]
    both = np.maximum(table, table.T)
    both[np.tril_indices(len(counts))] = -np.inf
    return both


def nearest(vectors: Vectors, means: Vectors) -> Floats:
    """Similarity (n,) to the nearest class."""
    if not len(vectors):
        return np.empty(0)
    step = max(1, _AT_ONCE // len(means))
    parts = [similarity_to(vectors[at : at + step], means).max(1) for at in range(0, len(vectors), step)]
    return np.concatenate(parts).astype(np.float64)


def rival_samples(examples: Examples, means: Vectors) -> Samples | None:
    """Similarity of every example to its nearest other class; None for a single class."""
    if len(means) < 2:
        return None
    classes, vectors = examples.classes, examples.vectors
    step = max(1, _AT_ONCE // len(means))
    found = np.empty(len(classes), np.float64)
    for at in range(0, len(classes), step):
        similarity = similarity_to(vectors[at : at + step], means)
        similarity[np.arange(len(similarity)), classes[at : at + step]] = -np.inf
        found[at : at + step] = similarity.max(1)
    return Samples(found, classes, len(means) - 1)


def own_samples(examples: Examples, trials: Vectors, trial_classes: NDArray[np.int64]) -> Samples | None:
    """Similarity to its own class of every trial, and of every example to the other examples; None without any."""
    counts, classes = np.array(examples.counts), examples.classes
    several = counts[classes] > 1
    vectors = examples.vectors.astype(np.float64)
    sums = np.add.reduceat(vectors, counts.cumsum() - counts, axis=0)
    own = np.concatenate([classes[several], trial_classes])
    if not len(own):
        return None
    centres = np.concatenate([sums[classes[several]] - vectors[several], sums[trial_classes]])
    centres /= np.maximum(np.linalg.norm(centres, axis=1, keepdims=True), 1e-12)
    shown = np.concatenate([vectors[several], trials])
    return Samples((shown * centres).sum(1), own, len(counts))
