"""The choice between the strategies, by the number of pictures and the probe curve."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from finetune.strategies import FEW, FULL, HEAD, MANY, PARTIAL, STRATEGIES, TRAIN, Strategy

if TYPE_CHECKING:
    from finetune.linear.probe import ProbeCurve


# Share of the head's errors that training removes, for each factor of e in pictures per class beyond FEW. On validation
# pictures it was 0.19 on flowers of 150 a class, 0 on most smaller folders with a smaller network, and 0.26 on Omniglot
# alphabets of 60 a class, which differ from the backbone's own pictures. The transfer table has 0.1 for flowers, too.
REMOVED, REMOVED_WHERE_DIFFERENT = 0.1, 0.3
# No training removes more than this share.
MOST_REMOVED = 0.5
# Standard errors on each side of a 95 % interval.
_Z = 1.96


@dataclass(frozen=True)
class StrategyChoice:
    """A strategy and the sentence that says why it was taken, by the probe curve where there is one."""

    strategy: Strategy
    reason: str
    curve: ProbeCurve | None = None


def choose(requested: str, pictures_per_class: float, curve: ProbeCurve | None = None) -> StrategyChoice:
    """The strategy asked for, or with "auto" the one that fits how many training pictures there are of each class, and
    how near they are to what the backbone knows, as `curve` measures it; None where there are too few to measure."""
    if requested != "auto":
        return StrategyChoice(STRATEGIES[requested], f"{requested}: as asked for.", curve)
    different = curve is not None and curve.different
    count = f"{pictures_per_class:.0f} training pictures per class"
    if pictures_per_class < FEW:
        strategy, why = HEAD, f"{count} are under {FEW}: too few to move the backbone"
    elif pictures_per_class < MANY:
        strategy, why = PARTIAL, f"{count} lie between {FEW} and {MANY}: enough for the top stages, not for all"
    elif different:
        strategy, why = TRAIN, f"{count} are {MANY} or more: enough to learn every stage anew"
    else:
        strategy, why = FULL, f"{count} are {MANY} or more: enough to adapt every stage"
    sentence = f"{strategy.name}: {why}; {_likeness(curve)}"
    if curve is not None and different and strategy is PARTIAL:
        strategy = replace(PARTIAL, lowest=_lowest(curve))
        if strategy.lowest is not None:
            sentence += f"; from {strategy.lowest} up, above the depth that errs least"
    return StrategyChoice(strategy, f"{sentence}.", curve)


def _lowest(curve: ProbeCurve) -> str | None:
    """The stage above the depth that errs least: where pictures differ, what lies above has little to keep."""
    above = curve.probes.index(curve.best) + 1
    return curve.probes[above].depth if above < len(curve.probes) - 1 else None


def _likeness(curve: ProbeCurve | None) -> str:
    """What the probe curve says, in words and numbers."""
    if curve is None:
        return "similarity was not measured, for want of two pictures of each class"
    last = f"a linear probe on the last features is right on {curve.last.accuracy:.1%}"
    if curve.different:
        best = max((*curve.probes[:-1], curve.together), key=lambda probe: probe.less_error_interval[0])
        low, high = best.less_error_interval
        where = "on all depths together" if best is curve.together else f"after {best.depth}"
        return (
            f"they differ from the backbone's own: {last}, {where} on {best.accuracy:.1%} "
            f"with {low:.0%} to {high:.0%} less squared error"
        )
    return f"they are like the backbone's own: {last}, and none at another depth is clearly better"


def expected_gain(error: float, per_class: float, *, different: bool) -> float:
    """Accuracy, in [0, 1], that training is expected to gain over a head that is wrong on a share `error`.

    per_class: training pictures of a class. different: whether the pictures differ from the backbone's own.
    """
    rate = REMOVED_WHERE_DIFFERENT if different else REMOVED
    return error * min(MOST_REMOVED, rate * math.log(max(1.0, per_class / FEW)))


def visible_gain(error: float, pictures: int) -> float:
    """Half the width of the 95 % interval of an accuracy of 1 - `error` on so many pictures."""
    return _Z * math.sqrt(error * (1 - error) / pictures)


def head_unless_training_pays(choice: StrategyChoice, error: float, pictures: int, per_class: float) -> StrategyChoice:
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
