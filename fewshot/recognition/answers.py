"""Answers of a recogniser: for one picture, and for a folder of labelled pictures."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fewshot.notebook import recognition_html
from fewshot.recognition.operating_point import Threshold


@dataclass(frozen=True)
class Recognition:
    """Answer of a recogniser for one picture.

    Attributes:
        label: The class; None for unknown, or if no threshold is known.
        nearest: The most similar class, accepted or not.
        similarity: To `nearest`: the cosine with the mean of its examples.
        score: Share of pictures of no enrolled class that are less similar to their nearest class, from 0 to 1; None if
            nothing is known about such pictures.
        threshold: The smallest similarity that is accepted; None if none is known, or `nearest` was requested.
        similarities: Of every class, the most similar first.
        scores: Of every class, in the same order; empty if nothing is known.

    Example:
        >>> from fewshot import Embedder, Recognizer
        >>> recognizer = Recognizer(Embedder.load("omniglot", device="cpu")).enrol("stop", "signs/class00/00.png")
        >>> answer = recognizer.recognize("sign.png")
        >>> answer.nearest, answer.similarity > 0.5
        ('stop', True)
    """

    label: str | None
    nearest: str
    similarity: float
    score: float | None
    threshold: float | None
    similarities: Mapping[str, float]
    scores: Mapping[str, float]

    def _repr_html_(self) -> str:
        return recognition_html(self)


@dataclass(frozen=True)
class Trial:
    """Results of a recogniser on labelled pictures.

    Attributes:
        known: Number of pictures of enrolled classes.
        right, refused, misnamed: Shares of these that are named correctly, called unknown and named wrongly.
        unknown: Number of pictures of other classes.
        accepted: Share of these that are given a class.
        threshold: The threshold that follows from these pictures and all earlier ones.

    Example:
        >>> from fewshot import Embedder, Recognizer
        >>> recognizer = Recognizer(Embedder.load("omniglot", device="cpu"))
        >>> recognizer = recognizer.enrol("class00", "signs/class00/00.png").enrol("class01", "signs/class01/00.png")
        >>> trial = recognizer.calibrate("signs")  # class02 and class03 are not enrolled
        >>> trial.known, trial.unknown
        (6, 8)
    """

    known: int
    right: float | None
    refused: float | None
    misnamed: float | None
    unknown: int
    accepted: float | None
    threshold: Threshold | None
