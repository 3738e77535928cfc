"""The prediction for one picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from finetune.notebook.results import prediction_html


@dataclass(frozen=True)
class Prediction:
    """The prediction for one picture.

    Attributes:
        label: The most probable class.
        probability: Of the label, in [0, 1].
        top: The most probable classes with their probabilities, in falling order.
        path: The path of the picture as given; None for bytes, an array or a PIL image.
        unsure: Whether the probability is below `min_probability`; the label is then a guess between the classes.
        unknown: Whether the picture is like none of the classes, by `false_accept_rate`; the label then says nothing.
        unknown_score: How unlike the classes the picture is, in standard deviations of pictures of the classes where
            there are enough of them; larger is less like any. None without `false_accept_rate`.

    Example:
        >>> from finetune import load
        >>> prediction = load("runs/photos", device="cpu").predict("new.png")
        >>> prediction.label, prediction.unsure
        ('cat', False)
    """

    label: str
    probability: float
    top: tuple[tuple[str, float], ...]
    path: str | None = None
    unsure: bool = False
    unknown: bool = False
    unknown_score: float | None = None

    def _repr_html_(self) -> str:
        return prediction_html(self)


def ranked(log_probabilities: Tensor, classes: Sequence[str], top: int) -> list[tuple[tuple[str, float], ...]]:
    """The `top` most probable classes of each picture with their probabilities, in falling order.

    log_probabilities: Shape (n, classes).
    """
    best = log_probabilities.exp().topk(min(top, len(classes)), dim=1)
    return [
        tuple((classes[label], share) for label, share in zip(labels, shares, strict=True))
        for shares, labels in zip(best.values.tolist(), best.indices.tolist(), strict=True)
    ]
