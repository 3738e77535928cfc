"""Model selection on the validation pictures: scores, interpolated weights, and whether trained weights are kept."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from finetune.metrics import accuracy, log_loss
from finetune.strategies import ENOUGH_TO_CHOOSE, FEW

# Positions between the start (0) and the trained weights (1) that are tried beside the trained weights.
SHARES = (0.75, 0.5, 0.25)


@dataclass(frozen=True)
class Score:
    """A validation result. The higher accuracy is better; at equal accuracy, the lower loss."""

    accuracy: float
    loss: float

    def beats(self, other: Score | None) -> bool:
        """Whether this score is better than `other`. A loss that is not finite never is."""
        if not math.isfinite(self.loss):
            return False
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


@dataclass(frozen=True)
class ModelSelection:
    """Scores weights on the validation pictures and decides which to keep.

    labels: (m,) int64. class_weights: (classes,) or None. per_class: mean number of training pictures per class.
    """

    labels: Tensor
    class_weights: Tensor | None
    per_class: float

    @property
    def few(self) -> bool:
        """Whether the validation pictures are too few to choose between similar weights."""
        return len(self.labels) < ENOUGH_TO_CHOOSE

    def score(self, logits: Tensor) -> Score:
        """Accuracy and loss of logits (m, classes)."""
        return Score(accuracy(logits, self.labels), log_loss(logits, self.labels, self.class_weights))

    def keep(self, trained: Tensor, start: Tensor) -> bool:
        """Whether the trained weights replace the start, by their logits (m, classes).

        With enough validation pictures the better score wins. With few, the number of training pictures decides how
        much evidence is needed. From FEW per class up, the trained weights must classify at least as many pictures
        correctly. With fewer, the corrected pictures must outnumber the spoiled ones by 1.64 standard errors (McNemar
        1947; 5 %, one-sided).
        """
        if not self.few:
            return self.score(trained).beats(self.score(start))
        better = (trained.argmax(1) == self.labels).long() - (start.argmax(1) == self.labels).long()
        if self.per_class >= FEW:
            return int(better.sum()) >= 0
        return int(better.sum()) > 1.64 * math.sqrt(int(better.abs().sum()))


def between(start: Mapping[str, Tensor], trained: Mapping[str, Tensor], share: float) -> dict[str, Tensor]:
    """Weights on the line from `start` (share 0) to `trained` (share 1); integers are the trained ones.

    Both come from one pretrained network, so the weights between them often generalise better than either end.

    Source: WiSE-FT, Wortsman et al. (2022), section 3.
    """
    return {
        name: start[name].lerp(value, share) if value.is_floating_point() else value for name, value in trained.items()
    }
