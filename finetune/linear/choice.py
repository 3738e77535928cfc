"""Choice of the strategy, by the number of pictures and the probe curve."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from finetune.strategies import FEW, FULL, HEAD, MANY, PARTIAL, STRATEGIES, TRAIN, Strategy

if TYPE_CHECKING:
    from finetune.linear.probe import ProbeCurve


# Share of the head's errors that training is expected to remove, for each factor of e in pictures per class above FEW.
# Measured on validation pictures: 0.19 on flowers with 150 per class, 0 on most smaller folders with a smaller network,
# and 0.26 on Omniglot alphabets with 60 per class, which differ from the backbone's own pictures. The transfer table
# shows 0.1 on flowers.
REMOVED, REMOVED_IF_DIFFERENT = 0.1, 0.3
# Largest expected share.
MOST_REMOVED = 0.5
# Standard errors on each side of a 95 % interval.
_Z = 1.96


@dataclass(frozen=True)
class StrategyChoice:
    """A strategy, the reason in a sentence, and the probe curve that it is based on, if any."""

    strategy: Strategy
    reason: str
    curve: ProbeCurve | None = None


def choose(requested: str, pictures_per_class: float, curve: ProbeCurve | None = None) -> StrategyChoice:
    """Choose the strategy.

    Args:
        requested: Name of a strategy, or "auto" to choose by the other two.
        pictures_per_class: Mean number of training pictures per class.
        curve: Says whether the pictures differ from those of the pretraining. None where there are too few to measure.
    """
    if requested != "auto":
        return StrategyChoice(STRATEGIES[requested], f"{requested}: as asked for.", curve)
    different = curve is not None and curve.different
    count = f"{pictures_per_class:.0f} training {'picture' if round(pictures_per_class) == 1 else 'pictures'} per class"
    if pictures_per_class < FEW:
        strategy, why = HEAD, f"{count}, under {FEW}: too few to train the backbone"
    elif pictures_per_class < MANY:
        strategy, why = PARTIAL, f"{count}, between {FEW} and {MANY}: enough for the top stages, not for all"
    elif different:
        strategy, why = TRAIN, f"{count}, {MANY} or more: enough to train every stage at the full rate"
    else:
        strategy, why = FULL, f"{count}, {MANY} or more: enough to adapt every stage"
    sentence = f"{strategy.name}: {why}; {_similarity(curve)}"
    if curve is not None and different and strategy is PARTIAL:
        strategy = replace(PARTIAL, lowest=_lowest(curve))
        if strategy.lowest is not None:
            sentence += f"; the stages from {strategy.lowest} up are trained, above the depth with the least error"
    return StrategyChoice(strategy, f"{sentence}.", curve)


def _lowest(curve: ProbeCurve) -> str | None:
    """The stage above the depth with the least error: for different pictures, the stages above it are of little use."""
    above = curve.probes.index(curve.best) + 1
    return curve.probes[above].depth if above < len(curve.probes) - 1 else None


def _similarity(curve: ProbeCurve | None) -> str:
    """The probe curve in words and numbers."""
    if curve is None:
        return "similarity was not measured, which needs two pictures of each class"
    last = f"a linear probe after the last stage classifies {curve.last.accuracy:.1%} correctly"
    far = "" if curve.distance is None else f" (distance {curve.distance:.2f} by batch norm)"
    better = [probe for probe in (*curve.probes[:-1], curve.together) if probe.clearly_better]
    if better:
        best = max(better, key=lambda probe: probe.less_error_interval[0])
        low, high = best.less_error_interval
        where = "on all depths together" if best is curve.together else f"after {best.depth}"
        other = f"one {where} {best.accuracy:.1%}, with {low:.0%} to {high:.0%} less squared error"
    else:
        other = "and no other depth is clearly better"
    return f"the pictures {'differ from' if curve.different else 'are like'} the backbone's own{far}: {last}, {other}"


def expected_gain(error: float, per_class: float, *, different: bool) -> float:
    """Expected gain in accuracy, in [0, 1], of training over a head with this error rate.

    per_class: mean number of training pictures. different: whether the pictures differ from the backbone's own.
    """
    rate = REMOVED_IF_DIFFERENT if different else REMOVED
    return error * min(MOST_REMOVED, rate * math.log(max(1.0, per_class / FEW)))


def visible_gain(error: float, pictures: int) -> float:
    """Smallest gain that `pictures` can show: half the width of the 95 % interval of an accuracy of 1 - `error`."""
    return _Z * math.sqrt(error * (1 - error) / pictures)


def head_unless_training_pays(choice: StrategyChoice, error: float, pictures: int, per_class: float) -> StrategyChoice:
    """`choice`, or the head where the expected gain of training is too small to be measured.

    Args:
        choice: The strategy by number of pictures and similarity.
        error: Error rate of the head on pictures that it was not trained on, in [0, 1].
        pictures: Number of training and validation pictures.
        per_class: Mean number of training pictures per class.
    """
    different = choice.curve is not None and choice.curve.different
    gain, visible = expected_gain(error, per_class, different=different), visible_gain(error, pictures)
    if choice.strategy.trains == "head" or gain > visible:
        return choice
    name = choice.strategy.name
    if error == 0:
        why = f"it makes no mistake on held-out pictures, so {name} is left out"
    else:
        why = (
            f"{name} is expected to raise the accuracy by {100 * gain:.2g} points. {pictures} pictures show only gains "
            f"of {100 * visible:.2g} points or more, so it is left out"
        )
    reason = f"head: {why}; --strategy {name} trains in any case."
    return replace(choice, strategy=HEAD, reason=reason)
