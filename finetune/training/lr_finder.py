"""The learning-rate sweep: the loss of a few steps at rising rates, and the rate that it suggests."""

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

# Steps of a sweep, for any number of pictures, and the lowest and highest rate of the head, for AdamW.
STEPS, LOWEST, HIGHEST = 50, 1e-6, 1.0
# Weight of the previous value in the running mean of the loss.
MEMORY = 0.8
# A loss of this many times the smallest one ends the sweep.
DIVERGED = 4
# Smallest relative fall of the loss that counts.
LEAST_FALL = 0.02
# A sweep of this many steps or fewer suggests nothing.
TOO_SHORT = 5


@dataclass(frozen=True)
class Sweep:
    """The loss at rising learning rates.

    Attributes:
        rates: Rates of the head.
        losses: Loss at each rate.
        smoothed: The losses, smoothed.
        suggestion: Suggested rate of the head; None where the sweep suggests none.
        trouble: Why there is no suggestion.
        stages: Rate of each trained stage as a factor of the head's rate, by the name of the stage.
        diverged: Whether a large loss ended the sweep.

    Example:
        >>> from finetune import Config, find_rate
        >>> config = Config(backbone="fewtune_conv4", strategy="partial", device="cpu", workers=0)
        >>> sweep = find_rate("photos/", config=config)
        >>> sweep.rates == tuple(sorted(sweep.rates))
        True
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    suggestion: float | None
    trouble: str | None
    stages: dict[str, float]
    diverged: bool

    def to_dict(self) -> dict[str, Any]:
        """The sweep as JSON values; a loss that is not finite is None."""
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

    def summary(self, default: float) -> str:
        """A sentence with the rate that is used: the suggestion, or `default` where there is none."""
        if self.suggestion is None:
            return f"learning rate: {default:.2g}, the strategy's default; the sweep found none: {self.trouble}."
        return f"learning rate: {self.suggestion:.2g}, found by a sweep of {len(self.rates)} steps."


def sweep_rates(task: TrainingTask, inputs: Inputs, display: Display, *, steps: int = STEPS) -> Sweep:
    """Train for a few steps at rates that rise exponentially, and restore the network.

    Batches, loss and parameter groups are those of the training. Every group's rate rises with the head's, in the
    ratios of the plan. The same seed gives the same sweep.

    Args:
        task: The training.
        inputs: Source of its batches.
        display: Shows progress.
        steps: Number of steps.

    Source: Smith (2015), section 3.3.
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
                mean = MEMORY * mean + (1 - MEMORY) * losses[-1]
                smoothed.append(mean / (1 - MEMORY ** len(losses)))
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
    """The suggested rate for smoothed losses at rising rates, or the reason why there is none."""
    if len(losses) <= TOO_SHORT:
        return None, "the loss grew without bound from the first steps on"
    start, end = valley(losses)
    if losses[start] - losses[end] < LEAST_FALL * abs(losses[start]):
        why = "it only grew" if diverged else "it did not change"
        return None, f"the loss fell at no rate; {why}"
    return rates[start + round((end - start) * 2 / 3)], None


def valley(losses: Sequence[float]) -> tuple[int, int]:
    """First and last position of the longest decreasing subsequence of the losses.

    Among equally long ones, the first to end, and of these the last to start. This is the "valley" of fastai's
    `lr_find` (fastai/callback/schedule.py), whose suggestion lies two thirds along it.
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
