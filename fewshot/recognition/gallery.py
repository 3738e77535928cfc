"""The gallery: enrolled classes as vectors, similarity to each class, and the threshold of acceptance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from fewshot.evaluation.threshold import Calibration
from fewshot.recognition.examples import Examples, Vectors
from fewshot.recognition.operating_point import KnownScores, Threshold, choose, expected, known_scores
from fewshot.recognition.similarities import class_similarity, nearest, own_samples, rival_samples, similarity_to
from fewshot.recognition.unknowns import Floats, UnknownScores, estimate
from finetune.errors import InputError

# Two pictures with this cosine or more are identical, apart from rounding.
SAME = 1 - 1e-5
_LENGTH_WITHIN = 1e-3


class SimilarClasses(NamedTuple):
    """Two enrolled classes that are too similar.

    similarity: Mean similarity of the examples of one class to the other, the higher of both directions.
    """

    label: str
    other: str
    similarity: float


@dataclass(frozen=True, eq=False)
class Likeness:
    """Similarity of n pictures to each class.

    Attributes:
        similarity: Shape (n, classes), in the order of the gallery's labels.
        score: Shape (n, classes), float64: share of unknown pictures that are less similar to their nearest class, from
            0 to 1; NaN if nothing is known about unknown pictures.
    """

    similarity: Vectors
    score: Floats


class Gallery:
    """Classes with one or more examples each, as unit vectors.

    The similarity of a picture to a class is its cosine with the mean of the class's examples.

    Args:
        width: Length of a vector.
        false_accept_rate: Share of pictures of no enrolled class that may be given one, between 0 and 1; None for
            equal errors (`fewshot.recognition.operating_point`).
        calibration: Of the encoder, for pairs of pictures; None without.

    Raises:
        InputError: If the rate is not between 0 and 1.

    Example:
        >>> from fewshot.recognition.gallery import Gallery
        >>> gallery = Gallery(2, false_accept_rate=0.1)
        >>> gallery.enrol("east", [[1.0, 0.0]])
        >>> gallery.enrol("north", [[0.0, 1.0]])
        >>> gallery.labels[gallery.similarity([[0.6, 0.8]]).argmax()]
        'north'
    """

    def __init__(
        self,
        width: int,
        *,
        false_accept_rate: float | None = None,
        calibration: Calibration | None = None,
    ):
        if false_accept_rate is not None:
            check_rate(false_accept_rate)
        self.width = width
        self.false_accept_rate = false_accept_rate
        self.calibration = calibration
        self._positions: dict[str, int] = {}  # of each label, in the order of enrolment
        self._examples = Examples(width)
        self._background = np.empty((0, width), np.float32)
        self._trials = np.empty((0, width), np.float32)
        self._trial_labels: list[str] = []
        self._invalidate()

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes, in the order of enrolment."""
        return tuple(self._positions)

    @property
    def counts(self) -> dict[str, int]:
        """Number of examples of each label."""
        return dict(zip(self._positions, self._examples.counts, strict=True))

    @property
    def examples(self) -> Vectors:
        """Shape (n, width), sorted by label."""
        return self._examples.vectors

    @property
    def background(self) -> Vectors:
        """Shape (n, width): pictures of classes that are not enrolled."""
        return self._background

    @property
    def trials(self) -> tuple[tuple[str, ...], Vectors]:
        """Labels and vectors (n, width) of pictures that are not examples but measure the refusals."""
        return tuple(self._trial_labels), self._trials

    def enrol(self, label: str, vectors: ArrayLike) -> None:
        """Add examples (n, width) to a new or an enrolled class.

        Raises:
            InputError: If the label is no text, or vectors are missing or not of length 1; nothing changes.
        """
        _check_label(label)
        new = self._checked(vectors)
        if not len(new):
            raise InputError(f"{label} needs at least one example")
        self._examples.add(self._positions.setdefault(label, len(self._positions)), new)
        self._invalidate()

    def fill(self, counts: Mapping[str, int], examples: ArrayLike) -> None:
        """Enrol several classes in an empty gallery.

        Args:
            counts: Number of examples of each label.
            examples: Shape (n, width), sorted by label.

        Raises:
            InputError: If the gallery is not empty, a label is no text, or counts and vectors do not match.
        """
        checked = self._checked(examples)
        if self._positions:
            raise InputError("only an empty gallery can be filled")
        for label in counts:
            _check_label(label)
        whole = all(type(count) is int and count >= 1 for count in counts.values())
        if not whole or sum(counts.values()) != len(checked):
            raise InputError(f"{len(checked)} examples do not match the counts {list(counts.values())[:10]}")
        self._examples.fill(list(counts.values()), checked)
        self._positions = {label: at for at, label in enumerate(counts)}
        self._invalidate()

    def forget(self, label: str) -> None:
        """Remove a class with its trials.

        Raises:
            InputError: If it is not enrolled.
        """
        self._examples.forget(self._position(label))
        self._positions = {other: at for at, other in enumerate(other for other in self._positions if other != label)}
        others = np.array([other != label for other in self._trial_labels], bool)
        self._trials = self._trials[others]
        self._trial_labels = [other for other in self._trial_labels if other != label]
        self._invalidate()

    def add_background(self, vectors: ArrayLike) -> None:
        """Add pictures (n, width) of classes that are not enrolled, to estimate the similarity of unknown pictures.

        Raises:
            InputError: If vectors are not of length 1.
        """
        self._background = np.concatenate([self._background, self._checked(vectors)])
        self._invalidate()

    def add_trials(self, label: str, vectors: ArrayLike) -> None:
        """Add pictures (n, width) of an enrolled class, to measure how many of its pictures are refused.

        Raises:
            InputError: If the class is not enrolled, or vectors are not of length 1.
        """
        new = self._checked(vectors)
        self._position(label)
        self.fill_trials([label] * len(new), new)

    def fill_trials(self, labels: Sequence[str], vectors: ArrayLike) -> None:
        """Add pictures (n, width) of several enrolled classes, the label of each given; InputError as `add_trials`."""
        new = self._checked(vectors)
        if len(labels) != len(new):
            raise InputError(f"{len(labels)} labels do not match {len(new)} vectors of trials")
        for label in labels:
            self._position(label)
        self._trials = np.concatenate([self._trials, new])
        self._trial_labels += labels
        self._invalidate()

    def holders(self, vectors: ArrayLike) -> list[str | None]:
        """For each of (n, width), the label under which the same picture is enrolled; None if it is not."""
        checked = self._checked(vectors)
        if not len(self._examples) or not len(checked):
            return [None] * len(checked)
        classes, cosines = self._examples.nearest(checked)
        if not (cosines >= SAME).any():
            return [None] * len(checked)
        labels = self.labels
        return [labels[of] if cosine >= SAME else None for of, cosine in zip(classes, cosines, strict=True)]

    def similarity(self, vectors: ArrayLike) -> Vectors:
        """Similarity (n, classes) of vectors (n, width) to each class.

        Raises:
            InputError: If vectors are not of length 1.
        """
        return similarity_to(self._checked(vectors), self._means())

    def likeness(self, vectors: ArrayLike) -> Likeness:
        """Similarity of vectors (n, width) to each class, with scores.

        Raises:
            InputError: If nothing is enrolled, or vectors are not of length 1.
        """
        similarity = self.similarity(vectors)
        unknown = self._unknown()
        score = np.full(similarity.shape, np.nan) if unknown is None else 1 - unknown.at(similarity)
        return Likeness(similarity, score)

    def threshold_for(self, rate: float | None = None) -> Threshold | None:
        """The threshold for a rate of false accepts; for the gallery's own rate when None.

        Returns:
            None if nothing is known about unknown pictures: one class, no background, no calibration.

        Raises:
            InputError: If nothing is enrolled, or the rate is not between 0 and 1.
        """
        if rate is not None:
            check_rate(rate)
        wanted = self.false_accept_rate if rate is None else rate
        unknown = self._unknown()
        if wanted not in self._thresholds:
            self._thresholds[wanted] = choose(unknown, self._known(), wanted)
        return self._thresholds[wanted]

    def threshold_at(self, similarity: float) -> Threshold:
        """The expected errors at a given similarity as threshold.

        Raises:
            InputError: If nothing is enrolled.
        """
        return expected(float(similarity), "similarity", self._unknown(), self._known())

    @property
    def threshold(self) -> float | None:
        """The smallest similarity that is accepted; None if nothing is known to choose it by.

        Raises:
            InputError: If nothing is enrolled.
        """
        found = self.threshold_for()
        return None if found is None else found.value

    def alike(self, threshold: float) -> list[SimilarClasses]:
        """Pairs of classes whose mean similarity is at least `threshold`, the most similar first."""
        labels, both = self.labels, class_similarity(self._examples, self._means())
        one, other = (both >= threshold).nonzero()
        order = np.argsort(-both[one, other], kind="stable")
        return [SimilarClasses(labels[one[at]], labels[other[at]], float(both[one[at], other[at]])) for at in order]

    # --- examples -----------------------------------------------------------------------------------------------------

    def _invalidate(self) -> None:
        """Reset all that is computed on demand from the contents."""
        self._class_means: Vectors | None = None
        self._unknown_scores: UnknownScores | None = None
        self._known_scores: KnownScores | None = None
        self._measured = False
        self._thresholds: dict[float | None, Threshold | None] = {}

    def _checked(self, vectors: ArrayLike) -> Vectors:
        found = np.asarray(vectors, np.float32)
        if found.ndim != 2 or found.shape[1] != self.width:
            raise InputError(f"vectors must have shape (n, {self.width}), not {found.shape}")
        with np.errstate(over="ignore"):  # an overflow is refused below
            lengths = np.linalg.norm(found, axis=1)
        wrong = (~(np.abs(lengths - 1) <= _LENGTH_WITHIN)).nonzero()[0]
        if len(wrong):
            raise InputError(f"vector {wrong[0]} has length {lengths[wrong[0]]:g}; the length must be 1")
        return found

    def _means(self) -> Vectors:
        """Means of the classes, (classes, width), unit length."""
        if self._class_means is None:
            if not self._positions:
                return np.empty((0, self.width), np.float32)
            counts = np.array(self._examples.counts)
            means = np.add.reduceat(self.examples, counts.cumsum() - counts, axis=0)
            lengths = np.linalg.norm(means, axis=1, keepdims=True)
            self._class_means = means / np.maximum(lengths, np.finfo(np.float32).tiny)
        return self._class_means

    def _position(self, label: str) -> int:
        if label not in self._positions:
            raise InputError(f"{label!r} is not enrolled")
        return self._positions[label]

    # --- similarity of unknown and known pictures ---------------------------------------------------------------------

    def _unknown(self) -> UnknownScores | None:
        if not self._positions:
            raise InputError("nothing is enrolled; enrol at least one class")
        self._measure()
        return self._unknown_scores

    def _known(self) -> KnownScores | None:
        self._measure()
        return self._known_scores

    def _measure(self) -> None:
        if self._measured:
            return
        means, examples = self._means(), self._examples
        background = nearest(self._background, means)
        self._unknown_scores = estimate(self.calibration, len(means), rival_samples(examples, means), background)
        trial_classes = np.array([self._positions[label] for label in self._trial_labels], np.int64)
        self._known_scores = known_scores(self.calibration, own_samples(examples, self._trials, trial_classes))
        self._measured = True


def check_rate(rate: float) -> None:
    """InputError unless the rate is between 0 and 1."""
    if not 0 < rate < 1:
        raise InputError(f"a false-accept rate must be between 0 and 1, not {rate}")


def _check_label(label: object) -> None:
    if not isinstance(label, str) or not label:
        raise InputError(f"a label must be a text that is not empty, not {label!r}")
