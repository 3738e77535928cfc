"""The learning-rate sweep: the loss of a few steps at ever larger rates, and the rate that it suggests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from finetune.data.transforms import view_seed
from finetune.progress import Display
from finetune.training.inputs import Inputs
from finetune.training.plan import SGD_RATE, TrainingTask
from finetune.training.step import TrainStep, weights_on_cpu

# Steps of a sweep, however many pictures there are, and the head's rates between which it goes, for AdamW.
STEPS, LOWEST, HIGHEST = 50, 1e-6, 1.0
# What the running mean of the loss keeps of itself at each step.
KEPT = 0.8
# A loss of so many times the smallest one ends the sweep.
DIVERGED = 4
# A fall of the loss below this share of it is no fall.
LEAST_FALL = 0.02
# Steps of a sweep that ended before it could tell anything.
TOO_SHORT = 5


@dataclass(frozen=True)
class Sweep:
    """Rates of the head that were tried, in rising order, with the loss at each: as it was, and smoothed.

    suggestion: the head's rate; None when the curve tells none, of which `trouble` says why. stages: by name, what the
    rate of each stage that learns is to that of the head. diverged: whether the loss ended the sweep.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    trouble: str | None
    stages: dict[str, float]
    diverged: bool

    def to_dict(self) -> dict[str, Any]:
        """As JSON values; a loss that is no finite number is None."""
        rows = zip(self.rates, self.losses, self.smoothed, strict=True)
        return {
            "suggestion": self.suggestion,
            "trouble": self.trouble,
            "diverged": self.diverged,
            "stage_rates": self.stage_rates,
            "points": [{"lr": lr, "loss": _finite(loss), "smoothed": _finite(smooth)} for lr, loss, smooth in rows],
        }

    @property
    def stage_rates(self) -> dict[str, float] | None:
        """Rates of the stages and of the head at the suggestion."""
        if self.suggestion is None:
            return None
        return {name: share * self.suggestion for name, share in self.stages.items()}

    def told(self, otherwise: float) -> str:
        """In a sentence what rate is taken; `otherwise` is the one to take where none was found."""
        if self.suggestion is None:
            return f"learning rate: {otherwise:.2g}, the strategy's own, for the sweep found none: {self.trouble}."
        return f"learning rate: {self.suggestion:.2g}, found by a sweep of {len(self.rates)} steps."


def sweep_rates(task: TrainingTask, inputs: Inputs, display: Display, *, steps: int = STEPS) -> Sweep:
    """Take `steps` steps of training at rates that rise exponentially (Smith 2015, section 3.3), and take them back.

    The batches, the loss and the parameter groups are those of the training that `task` describes: every group's rate
    rises with the head's, in the ratios of the plan. The network is left as it was, and the same seed gives the same
    sweep.
    """
    network, config, plan = task.network, task.config, replace(task.plan, lr=1.0)
    before = weights_on_cpu(network)
    step_at = TrainStep(replace(task, plan=plan), inputs.learner)
    scale = SGD_RATE if config.optimizer == "sgd" else 1
    rates = [scale * LOWEST * (HIGHEST / LOWEST) ** (step / (steps - 1)) for step in range(steps)]
    losses: list[float] = []
    mean, smoothed, best, diverged = 0.0, list[float](), math.inf, False
    network.train()
    torch.manual_seed(view_seed(config.seed, "sweep"))
    epochs = math.ceil(steps / plan.steps_per_epoch)
    try:
        with display.bar("learning-rate sweep", epochs * len(task.data.indices)) as advance:
            for rate, batch in zip(rates, inputs.batches(0, epochs), strict=False):
                losses.append(float(step_at(batch, rate)))
                mean = KEPT * mean + (1 - KEPT) * losses[-1]
                smoothed.append(mean / (1 - KEPT ** len(losses)))
                advance(len(batch), f"rate {rate:.1g}, loss {smoothed[-1]:.3g}")
                best = min(best, smoothed[-1])
                diverged = not smoothed[-1] <= DIVERGED * best
                if diverged:
                    break
    finally:
        network.load_state_dict(before)
        network.eval()
    found, trouble = suggested(rates[: len(losses)], smoothed, diverged)
    top = len(network.backbone.stages)
    stages = {
        stage.name: plan.stage_rate(position, top)
        for position, stage in enumerate(network.backbone.stages)
        if position >= plan.lowest
    }
    return Sweep(
        tuple(rates[: len(losses)]), tuple(losses), tuple(smoothed), found, trouble, stages | {"head": 1.0}, diverged
    )


def suggested(rates: Sequence[float], losses: Sequence[float], diverged: bool) -> tuple[float | None, str | None]:
    """A rate, or the reason why smoothed `losses` at `rates` tell none."""
    if len(losses) <= TOO_SHORT:
        return None, "the loss grew without bound from the first steps on"
    start, end = valley(losses)
    if losses[start] - losses[end] < LEAST_FALL * abs(losses[start]):
        why = "it only grew" if diverged else "it stayed what it was"
        return None, f"the loss fell at no rate, {why}"
    return rates[start + round((end - start) * 2 / 3)], None


def valley(losses: Sequence[float]) -> tuple[int, int]:
    """First and last position of the longest run of ever smaller losses, which may skip over some between.

    The "valley" of fastai's `lr_find` (fastai/callback/schedule.py), which looks two thirds along it for the steepest
    place; of several as long, the first to end, and of these the last to start.
    """
    length, first = [1] * len(losses), list(range(len(losses)))
    for end in range(len(losses)):
        for before in range(end):
            through = length[before] + 1, first[before]
            if losses[end] < losses[before] and through > (length[end], first[end]):
                length[end], first[end] = through
    end = max(range(len(losses)), key=lambda position: length[position])
    return first[end], end


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
