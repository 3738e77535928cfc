"""What pictures show about unknown ones: the likeness to the classes, and how it falls out for known and unknown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.open_set.held_out import HeldOut, held_out_scores
from finetune.open_set.likeness import Fitted, fit_likeness

# Most pictures that are used, but two of each class: more change little, and take long.
MOST_PICTURES = 1000


@dataclass(frozen=True)
class Evidence:
    """A likeness and the scores that its threshold is chosen by. Places are among the pictures given to `gather`.

    Attributes:
        known: Pictures of the classes, each held out itself.
        held_out: Pictures whose class was held out.
    """

    known: Fitted
    held_out: HeldOut


def gather(pooled: Tensor, labels: Tensor, widths: Sequence[int], judging: Tensor | None = None) -> Evidence:
    """Fit the likeness, and hold out pictures and classes in turn.

    Arguments are those of `fit_likeness`. Of many pictures some are used, the same share of every class.
    """
    some = used_pictures(labels, judging)
    pooled, labels = pooled[some], labels[some]
    judging = None if judging is None else judging[some]
    fitted = fit_likeness(pooled, labels, widths, judging)
    held_out = held_out_scores(pooled, labels, widths, judging, fitted.likeness)
    return Evidence(
        replace(fitted, places=some[fitted.places]),
        replace(held_out, places=some[held_out.places]),
    )


def used_pictures(labels: Tensor, judging: Tensor | None = None) -> Tensor:
    """Places of the pictures that `gather` uses, ascending."""
    return _some(labels if judging is None else labels + int(labels.max() + 1) * judging, MOST_PICTURES)


def _some(groups: Tensor, most: int) -> Tensor:
    """Places of about `most` pictures, or of all, ascending: the same share of every group and at least two of it."""
    chosen = []
    for group in groups.unique():
        rows = (groups == group).nonzero()[:, 0]
        count = min(len(rows), max(2, round(most * len(rows) / len(groups))))
        chosen.append(rows[torch.linspace(0, len(rows) - 1, count).round().long()])
    return torch.cat(chosen).sort().values
