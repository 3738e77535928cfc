"""What validation pictures say of weights: a score, and whether what was trained is kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from finetune.linear.head import ENOUGH_TO_CHOOSE
from finetune.metrics import accuracy, log_loss
from finetune.strategies import FEW

# Shares of the way that are tried beside the whole of it.
SHARES = (0.75, 0.5, 0.25)


@dataclass
class Score:
    """A validation result; of two, the one with more right wins, and of equals the one with less loss."""

    accuracy: float
    loss: float

    def beats(self, other: Score | None) -> bool:
        if not math.isfinite(self.loss):
            return False
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


@dataclass(frozen=True)
class ModelSelection:
    """The validation pictures: labels (m,) int64, class_weights (classes,) or None.

    per_class: training pictures of a class, on average.
    """

    labels: Tensor
    class_weights: Tensor | None
    per_class: float

    @property
    def few(self) -> bool:
        """Whether they would choose by chance."""
        return len(self.labels) < ENOUGH_TO_CHOOSE

    def score(self, logits: Tensor) -> Score:
        """Of logits (m, classes)."""
        return Score(accuracy(logits, self.labels), log_loss(logits, self.labels, self.class_weights))

    def keep(self, trained: Tensor, start: Tensor) -> bool:
        """Whether what was trained takes the place of the start, both by their logits (m, classes).

        Enough judges take the better of the two. Few leave that to chance, and what to expect goes by how much there
        was to learn from: from FEW pictures of a class up, what was trained must only put as many right; with fewer,
        more right than wrong by 1.64 standard errors of that difference (McNemar 1947; 5 %, one-sided).
        """
        if not self.few:
            return self.score(trained).beats(self.score(start))
        better = (trained.argmax(1) == self.labels).long() - (start.argmax(1) == self.labels).long()
        if self.per_class >= FEW:
            return int(better.sum()) >= 0
        return int(better.sum()) > 1.64 * math.sqrt(int(better.abs().sum()))


def between(begun: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """`share` of the way from the weights `begun` to those `trained` (WiSE-FT, Wortsman et al. 2022, section 3).

    Both start from one pretrained network, so what lies between is as good a network, and often a better one. Counts
    are those of the trained.
    """
    return {
        name: begun[name].lerp(value, share) if value.is_floating_point() else value for name, value in trained.items()
    }
