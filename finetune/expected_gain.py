"""Whether training the backbone is expected to gain more over the head than so many pictures can show."""

from __future__ import annotations

import math
from dataclasses import replace

from finetune.choice import Choice
from finetune.strategies import FEW, HEAD

# Share of the head's errors that training removes, for each factor of e in pictures per class beyond FEW. On validation
# pictures it was 0.19 on flowers of 150 a class, 0 on most smaller folders with a smaller network, and 0.26 on Omniglot
# alphabets of 60 a class, which differ from the backbone's own pictures. The transfer table has 0.1 for flowers, too.
REMOVED, REMOVED_WHERE_DIFFERENT = 0.1, 0.3
# No training removes more than this share.
MOST_REMOVED = 0.5
# Standard errors on each side of a 95 % interval.
_Z = 1.96


def expected_gain(error: float, per_class: float, *, different: bool) -> float:
    """Accuracy, in [0, 1], that training is expected to gain over a head that is wrong on a share `error`.

    per_class: training pictures of a class. different: whether the pictures differ from the backbone's own.
    """
    rate = REMOVED_WHERE_DIFFERENT if different else REMOVED
    return error * min(MOST_REMOVED, rate * math.log(max(1.0, per_class / FEW)))


def visible_gain(error: float, pictures: int) -> float:
    """Half the width of the 95 % interval of an accuracy of 1 - `error` on so many pictures."""
    return _Z * math.sqrt(error * (1 - error) / pictures)


def head_unless_training_pays(choice: Choice, error: float, pictures: int, per_class: float) -> Choice:
    """`choice`, or the head where the expected gain of training is too small to be seen.

    error: share of labelled pictures that the head gets wrong when it has not learned from them. pictures: training
    and validation pictures. per_class: training pictures of a class, on average.
    """
    different = choice.curve is not None and choice.curve.different
    gain, visible = expected_gain(error, per_class, different=different), visible_gain(error, pictures)
    if choice.strategy.trains == "head" or gain > visible:
        return choice
    name = choice.strategy.name
    reason = (
        f"head: {name} is expected to raise the accuracy by {100 * gain:.1f} points. {pictures} pictures show only "
        f"gains of {100 * visible:.1f} points or more, so training is left out; --strategy {name} trains in any case."
    )
    return replace(choice, strategy=HEAD, reason=reason)
