"""What pictures show about unknown ones: the likeness to the classes, and how it falls out for known and unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.open_set.held_out import HeldOut, held_out_scores
from finetune.open_set.likeness import Fitted, Likeness, fit_likeness
from finetune.open_set.unknown_scores import UnknownScores, estimate


@dataclass(frozen=True)
class Evidence:
    """A likeness and the scores that its threshold is chosen by.

    Attributes:
        known: Pictures of the classes, each held out itself.
        held_out: Pictures whose class was held out.
        background: Scores (m,) of pictures given as unknown.
    """

    known: Fitted
    held_out: HeldOut
    background: Tensor

    @property
    def likeness(self) -> Likeness:
        return self.known.likeness

    def unknown(self) -> UnknownScores | None:
        """The distribution of the scores of unknown pictures; None where nothing is known about them."""
        return estimate(
            self.held_out.scores.double().numpy(),
            self.held_out.of_class.numpy(),
            self.background.double().numpy(),
            self.known.known.double().numpy(),
            self.held_out.more_classes,
        )


def gather(
    pooled: Tensor,
    labels: Tensor,
    widths: Sequence[int],
    judging: Tensor | None = None,
    background: Tensor | None = None,
) -> Evidence:
    """Fit the likeness, and hold out pictures and classes in turn.

    Args:
        pooled, labels, widths, judging: As for `fit_likeness`.
        background: Pooled activations (m, sum of widths) of pictures of none of the classes.
    """
    fitted = fit_likeness(pooled, labels, widths, judging)
    held_out = held_out_scores(pooled, labels, widths, judging, fitted.likeness)
    scores = torch.empty(0) if background is None else fitted.likeness(background)
    return Evidence(fitted, held_out, scores)
