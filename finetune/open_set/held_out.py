"""Classes held out in turn, whose pictures are unknown to a likeness fitted on the others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from finetune.open_set.likeness import Likeness, fit_likeness

# Most turns, each with as many classes held out; of more than MANY pictures, whose turns take long, FEW_TURNS.
MOST_TURNS, MANY, FEW_TURNS = 10, 1500, 4


@dataclass(frozen=True)
class HeldOut:
    """Scores of pictures whose class was held out.

    Attributes:
        scores: Shape (m,).
        of_class: Their classes, (m,).
        places: Their places among the pictures, (m,).
        more_classes: How many times as many classes there are as a picture was compared with.
    """

    scores: Tensor
    of_class: Tensor
    places: Tensor
    more_classes: float = 1.0


def held_out_scores(
    pooled: Tensor, labels: Tensor, widths: Sequence[int], judging: Tensor | None, likeness: Likeness
) -> HeldOut:
    """Score the pictures of each class by a likeness that was fitted on the other classes.

    Many classes are held out in groups. Arguments are those of `fit_likeness`; where there are judging
    pictures, those of the held-out classes are scored, and otherwise all. likeness: the score of all classes.
    """
    classes = int(labels.max()) + 1
    turns = min(classes, MOST_TURNS if len(labels) <= MANY else FEW_TURNS)
    group = torch.arange(classes) % turns
    scores, places = [], []
    for turn in range(turns):
        out = (group == turn)[labels]
        asked = (out if judging is None else out & judging).nonzero()[:, 0]
        left = (group != turn).nonzero()[:, 0]
        if not len(left) or not len(asked):
            continue
        kept = (~out).nonzero()[:, 0]
        renamed = torch.searchsorted(left, labels[kept])
        fitted = fit_likeness(
            pooled[kept],
            renamed,
            widths,
            None if judging is None else judging[kept],
            like=likeness,
        )
        scores.append(fitted.likeness(pooled[asked]))
        places.append(asked)
    found = torch.cat(places) if places else torch.empty(0, dtype=torch.int64)
    more = classes / max(1, classes - -(-classes // turns))
    return HeldOut(torch.cat(scores) if scores else torch.empty(0), labels[found], found, more)
