"""Enrolled classes as vectors: how alike a vector is to each, and from where on that is more than chance."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from fewshot.calibration import Calibration
from finetune.errors import InputError

Vectors = NDArray[np.float32]
Floats = NDArray[np.float64]
Rate = Callable[[Floats], Floats]  # similarity -> the share of something that is so similar, or more

# What is known before anything is enrolled weighs as much as so many enrolled classes.
PRIOR_CLASSES = 10
# Cosines of unlike pictures where nothing is known of an encoder: mean, standard deviation, and as how many pairs of
# enrolled classes they count.
UNLIKE_MEAN, UNLIKE_DEVIATION, UNLIKE_PAIRS = 0.4, 0.2, 3

# Cosine from which on two pictures are one and the same, but for rounding.
SAME = 1 - 1e-5
_LENGTH_WITHIN = 1e-3
_AT_ONCE = 1 << 24  # similarities


@dataclass(frozen=True, eq=False)
class Likeness:
    """How alike n pictures are to each class. similarity: (n, classes), in the order of the gallery's labels.

    score: (n, classes) float64, the share of unknown pictures that are less like any class, from 0 to 1.
    """

    similarity: Vectors
    score: Floats


class Gallery:
    """Classes with one example or more each, as unit vectors of `width` numbers.

    A picture is as similar to a class as the mean of its cosine with the nearest example and with the examples' mean.
    false_accept_rate: share of pictures of no enrolled class that may be taken for one. How similar those are to their
    nearest class is learned from the examples themselves, each being unknown to all classes but its own, from
    `background` pictures where there are any, and, for as much as PRIOR_CLASSES classes, from what `impostors` says of
    pairs of different classes, or else from the normal distribution of the enrolled classes' cosines.
    """

    def __init__(self, width: int, *, false_accept_rate: float = 0.05, impostors: Calibration | None = None):
        if not 0 < false_accept_rate < 1:
            raise InputError(f"a rate of false accepts of {false_accept_rate} was asked for; between 0 and 1 is wanted")
        self.width = width
        self.false_accept_rate = false_accept_rate
        self.impostors = impostors
        self._labels: list[str] = []
        self._counts: list[int] = []
        self._examples = np.empty((0, width), np.float32)  # class by class
        self._background = np.empty((0, width), np.float32)
        # Of each example, how similar it is to the most similar class that is not its own, and which that is.
        self._rival = np.empty(0, np.float32)
        self._rival_label = np.empty(0, object)
        self._rates: _Rates | None = None

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order in which they were first enrolled."""
        return tuple(self._labels)

    @property
    def counts(self) -> dict[str, int]:
        """Examples of each label."""
        return dict(zip(self._labels, self._counts, strict=True))

    @property
    def examples(self) -> Vectors:
        """(n, width), label by label."""
        return self._examples

    @property
    def background(self) -> Vectors:
        """(n, width)."""
        return self._background

    def enrol(self, label: str, vectors: ArrayLike) -> None:
        """Examples (n, width) of a new or an enrolled class.

        InputError, changing nothing, for a label that is no text, vectors that are not of length 1, and none at all.
        """
        _check_label(label)
        new = self._checked(vectors)
        if not len(new):
            raise InputError(f"{label}: at least one example is wanted")
        self._insert(label, new)
        self._changed(label)

    def fill(self, counts: Mapping[str, int], examples: ArrayLike) -> None:
        """Enrol, in a gallery that is empty, classes with so many examples each, of (n, width), label by label.

        InputError for a gallery that is not empty, labels that are no text, vectors that are not of length 1, and
        counts that do not add up.
        """
        checked = self._checked(examples)
        if self._labels:
            raise InputError("a gallery is filled once, while it is empty")
        for label in counts:
            _check_label(label)
        whole = all(type(count) is int and count >= 1 for count in counts.values())
        if not whole or sum(counts.values()) != len(checked):
            raise InputError(f"{len(checked)} examples do not go with classes of {list(counts.values())[:10]} each")
        self._labels, self._counts, self._examples = list(counts), list(counts.values()), checked.copy()
        self._rival = np.full(len(checked), -np.inf, np.float32)
        self._rival_label = np.full(len(checked), None, object)
        self._recompute(np.arange(len(checked)))
        self._rates = None

    def forget(self, label: str) -> None:
        """Take a class out. InputError when it is not enrolled."""
        at = self._position(label)
        kept = np.ones(len(self._examples), bool)
        kept[self._rows(at)] = False
        self._examples, self._rival, self._rival_label = (
            values[kept] for values in (self._examples, self._rival, self._rival_label)
        )
        del self._labels[at], self._counts[at]
        self._recompute((self._rival_label == label).nonzero()[0])
        self._rates = None

    def add_background(self, vectors: ArrayLike) -> None:
        """Pictures (n, width) of things that are not enrolled and never will be, to learn from what unknown ones are
        like. InputError for vectors that are not of length 1."""
        self._background = np.concatenate([self._background, self._checked(vectors)])
        self._rates = None

    def holders(self, vectors: ArrayLike) -> list[str | None]:
        """Of each of (n, width), the label that the very same picture is enrolled under; None where it is not."""
        checked = self._checked(vectors)
        if not len(self._examples) or not len(checked):
            return [None] * len(checked)
        cosines = checked @ self._examples.T
        of = [self._labels[position] for position in self._class_of(cosines.argmax(1))]
        return [label if same else None for label, same in zip(of, cosines.max(1) >= SAME, strict=True)]

    def similarity(self, vectors: ArrayLike) -> Vectors:
        """(n, classes): how alike each of (n, width) is to each class, 1 at most. InputError as for `enrol`."""
        return self._similarity(self._checked(vectors))

    def likeness(self, vectors: ArrayLike) -> Likeness:
        """The same, with what it means. InputError when nothing is enrolled."""
        if not self._labels:
            raise InputError("nothing is enrolled yet; enrol at least one class")
        similarity = self.similarity(vectors)
        return Likeness(similarity, 1 - self._known_rates().at(similarity))

    @property
    def threshold(self) -> float:
        """The similarity from which on a picture is taken to show a class. InputError when nothing is enrolled."""
        if not self._labels:
            raise InputError("nothing is enrolled yet; enrol at least one class")
        return self._known_rates().threshold(self.false_accept_rate)

    # --- examples -----------------------------------------------------------------------------------------------------

    def _checked(self, vectors: ArrayLike) -> Vectors:
        found = np.asarray(vectors, np.float32)
        if found.ndim != 2 or found.shape[1] != self.width:
            raise InputError(f"vectors of shape {found.shape}; (n, {self.width}) is wanted")
        lengths = np.linalg.norm(found, axis=1)
        wrong = (~(np.abs(lengths - 1) <= _LENGTH_WITHIN)).nonzero()[0]
        if len(wrong):
            raise InputError(f"vector {wrong[0]} is of length {lengths[wrong[0]]:g}; unit vectors are wanted")
        return found

    def _insert(self, label: str, new: Vectors) -> None:
        if label not in self._labels:
            self._labels.append(label)
            self._counts.append(0)
        at = self._labels.index(label)
        place = self._rows(at).stop
        self._examples = np.insert(self._examples, place, new, axis=0)
        self._rival = np.insert(self._rival, place, np.full(len(new), -np.inf, np.float32))
        self._rival_label = np.insert(self._rival_label, place, np.full(len(new), None, object))
        self._counts[at] += len(new)

    def _changed(self, label: str) -> None:
        """Bring every example's rival up to date with the class `label`, which has new examples."""
        at = self._labels.index(label)
        own = self._rows(at)
        to_it = self._similarity(self._examples, at)[:, 0]
        to_it[own] = -np.inf
        outdated = (self._rival_label == label) & (to_it < self._rival)
        nearer = to_it > self._rival
        self._rival = np.where(nearer, to_it, self._rival)
        self._rival_label[nearer] = label
        outdated[own] = True
        self._recompute(outdated.nonzero()[0])
        self._rates = None

    def _recompute(self, rows: NDArray[np.int64]) -> None:
        if not len(rows):
            return
        if len(self._labels) < 2:
            self._rival[rows], self._rival_label[rows] = -np.inf, None
            return
        labels = np.array(self._labels, object)
        for part in np.array_split(rows, -(-len(rows) * len(labels) // _AT_ONCE)):
            similarity = self._similarity(self._examples[part])
            similarity[np.arange(len(part)), self._class_of(part)] = -np.inf
            self._rival[part] = similarity.max(1)
            self._rival_label[part] = labels[similarity.argmax(1)]

    def _similarity(self, vectors: Vectors, only: int | None = None) -> Vectors:
        """(n, classes), or (n, 1) of the class at `only`."""
        rows = slice(None) if only is None else self._rows(only)
        counts = np.array(self._counts if only is None else [self._counts[only]], np.int64)
        examples = self._examples[rows]
        if not len(examples):
            return np.empty((len(vectors), 0), np.float32)
        starts = np.concatenate([[0], counts.cumsum()[:-1]])
        means = np.add.reduceat(examples, starts, axis=0)
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        single = bool((counts == 1).all())
        found = np.empty((len(vectors), len(counts)), np.float32)
        step = max(1, _AT_ONCE // len(examples))
        for at in range(0, len(vectors), step):
            part = slice(at, at + step)
            cosines = vectors[part] @ examples.T
            if not single:
                cosines = (np.maximum.reduceat(cosines, starts, axis=1) + vectors[part] @ means.T) / 2
            found[part] = np.minimum(cosines, 1)  # which rounding may leave a little above it
        return found

    def _rows(self, at: int) -> slice:
        start = sum(self._counts[:at])
        return slice(start, start + self._counts[at])

    def _class_of(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.searchsorted(np.cumsum(self._counts), rows, side="right")

    def _position(self, label: str) -> int:
        if label not in self._labels:
            raise InputError(f"{label!r} is not enrolled")
        return self._labels.index(label)

    # --- what unknown pictures are like -------------------------------------------------------------------------------

    def _known_rates(self) -> _Rates:
        if self._rates is None:
            self._rates = self._measured_rates()
        return self._rates

    def _measured_rates(self) -> _Rates:
        # A class says as much as another, however many examples it has.
        weight = np.repeat(1 / np.array(self._counts, np.float64), self._counts)
        rivals = np.isfinite(self._rival)
        samples, weights = self._rival[rivals].astype(np.float64), weight[rivals]
        if len(self._background):
            strangers = self._similarity(self._background).max(1).astype(np.float64)
            samples = np.concatenate([samples, strangers])
            weights = np.concatenate([weights, np.ones(len(strangers))])
        # Examples of one class are alike: four of them are as likely to be like something else as two that are not.
        return _Rates(samples, weights, self._pair_rates(), float(np.sqrt(self._counts).sum()))

    def _pair_rates(self) -> Rate:
        """The share of pairs of different classes that are so similar: as it was measured, or by a normal
        distribution."""
        if self.impostors is not None:
            thresholds, rates = np.array(self.impostors.thresholds), np.array(self.impostors.false_accept)
            return partial(_on_curve, thresholds=thresholds, rates=rates)
        starts = np.concatenate([[0], np.cumsum(self._counts)[:-1]])
        means = np.add.reduceat(self._examples.astype(np.float64), starts, axis=0)
        means /= np.maximum(np.linalg.norm(means, axis=1, keepdims=True), 1e-12)
        # Sums over all pairs of cosines and of their squares, without making the pairs.
        pairs = len(means) * (len(means) - 1) / 2
        total = (np.square(means.sum(0)).sum() - len(means)) / 2
        squares = (np.square(means.T @ means).sum() - len(means)) / 2
        count = pairs + UNLIKE_PAIRS
        mean = (total + UNLIKE_PAIRS * UNLIKE_MEAN) / count
        square = (squares + UNLIKE_PAIRS * (UNLIKE_DEVIATION**2 + UNLIKE_MEAN**2)) / count
        return partial(_beyond_normal, mean=mean, deviation=float(np.sqrt(max(square - mean**2, 1e-12))))


def _on_curve(similarity: Floats, thresholds: Floats, rates: Floats) -> Floats:
    """The share that was measured from each of `thresholds` on, and between them."""
    return np.interp(similarity, thresholds, rates, left=1.0, right=0.0)


def _beyond_normal(similarity: Floats, mean: float, deviation: float) -> Floats:
    """The share from `similarity` on of a normal distribution that ends at 1, since no cosine is above."""
    above, beyond = (
        torch.special.ndtr(torch.as_tensor((mean - place) / deviation)).numpy() for place in (similarity, 1.0)
    )
    return np.asarray(np.clip((above - beyond) / (1 - beyond), 0, 1), np.float64)


class _Rates:
    """The share of unknown pictures that are so similar, or more, to the nearest of the enrolled classes."""

    def __init__(self, samples: Floats, weights: Floats, pairs: Rate, chances: float):
        order = np.argsort(samples)
        self._samples = samples[order]
        # What lies at a place and above it.
        self._above = np.concatenate([weights[order][::-1].cumsum()[::-1], [0.0]])
        self._pairs = pairs
        self._chances = chances

    def at(self, similarity: NDArray[np.floating]) -> Floats:
        """Falling from 1 to 0, in the shape of `similarity`."""
        wanted = similarity.astype(np.float64)
        measured = self._above[np.searchsorted(self._samples, wanted, side="left")]
        by_pairs = -np.expm1(self._chances * np.log1p(-np.minimum(self._pairs(wanted), 1 - 1e-12)))
        return np.asarray((measured + PRIOR_CLASSES * by_pairs) / (self._above[0] + PRIOR_CLASSES), np.float64)

    def threshold(self, rate: float) -> float:
        """The lowest similarity with at most this rate; above 1, which nothing reaches, where there is none."""
        low, high = -1.0, float(np.nextafter(np.float32(1.001), np.float32(2)))
        if float(self.at(np.array(low))) <= rate:
            return low
        for _ in range(60):  # halved until two neighbouring numbers are left
            middle = (low + high) / 2
            low, high = (low, middle) if float(self.at(np.array(middle))) <= rate else (middle, high)
        return high


def _check_label(label: object) -> None:
    if not isinstance(label, str) or not label:
        raise InputError(f"a label is a text of at least one character, not {label!r}")
