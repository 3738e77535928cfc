"""What a training will be, decided before its first step: epochs, learning rates, which stages learn."""

from __future__ import annotations

import math
from dataclasses import dataclass

from finetune.config import AUTO, Config
from finetune.data.loader import batches_per_epoch
from finetune.errors import InputError
from finetune.models.backbone import Network
from finetune.strategies import Strategy

# A run takes at least so many steps, few pictures or not, in at most so many epochs. From pretrained weights, twice as
# many gain nothing.
LEAST_STEPS, MOST_EPOCHS = {"pretrained": 100, "random": 200}, 40

# What SGD with momentum takes where AdamW takes 1, when neither is told its learning rate.
SGD_RATE = 30


@dataclass(frozen=True)
class Plan:
    """Every choice that the loop needs, made. lowest: position of the lowest stage that learns.

    lr: learning rate of the head; with --lr auto it is the strategy's own, which the sweep then replaces.
    """

    epochs: int
    patience: int
    steps_per_epoch: int
    lr: float
    stage_decay: float
    lowest: int
    batch_norm_trains: bool

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def stage_rate(self, position: int, stages: int) -> float:
        """Learning rate of the stage at `position` of so many `stages`; that of the head for position == stages."""
        return self.lr * self.stage_decay ** (stages - position)


def plan_for(strategy: Strategy, config: Config, network: Network, n: int) -> Plan:
    """The strategy's plan for n training pictures, where the configuration does not say otherwise."""
    stages = len(network.backbone.stages)
    if strategy.trains == "all":
        lowest = 0
    elif config.unfreeze is not None:
        lowest = network.backbone.stage_index(config.unfreeze)
    else:
        lowest = stages - max(1, round(stages / 4))
        if strategy.lowest is not None:
            lowest = min(lowest, network.backbone.stage_index(strategy.lowest))
    if config.batch_size == 1 and strategy.batch_norm == "trained":
        raise InputError(
            f"--batch-size 1 leaves batch norm, which --strategy {strategy.name} trains, nothing to learn from"
        )
    steps_per_epoch = batches_per_epoch(n, config.batch_size)
    epochs = config.epochs or epochs_for(strategy, steps_per_epoch)
    own_rate = (strategy.learning_rate or 0.0) * (SGD_RATE if config.optimizer == "sgd" else 1)
    return Plan(
        epochs=epochs,
        patience=config.patience or patience_for(strategy, epochs),
        steps_per_epoch=steps_per_epoch,
        lr=own_rate if config.lr is None or config.lr == AUTO else float(config.lr),
        stage_decay=strategy.stage_decay if config.stage_decay is None else config.stage_decay,
        lowest=lowest,
        batch_norm_trains=strategy.batch_norm == "trained",
    )


def epochs_for(strategy: Strategy, steps_per_epoch: int) -> int:
    """The strategy's own number, or more where a small folder would otherwise give too few steps to get anywhere."""
    return max(strategy.epochs, min(MOST_EPOCHS, math.ceil(LEAST_STEPS[strategy.start] / steps_per_epoch)))


def patience_for(strategy: Strategy, epochs: int) -> int:
    """Epochs without a gain on validation after which a training of so many epochs stops."""
    # Random weights improve in leaps, the last of them when the learning rate has fallen.
    return max(8, math.ceil(epochs / 3)) if strategy.start == "random" else max(3, math.ceil(epochs / 5))
