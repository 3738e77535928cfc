"""Training schedule, resolved before the first step: epochs, learning rates, trained stages."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lightning_fabric import Fabric

from finetune.config import AUTO, Config
from finetune.data.loader import batches_per_epoch
from finetune.errors import InputError
from finetune.models.backbone import Network
from finetune.strategies import Strategy
from finetune.training.inputs import TrainingData

# Fewest steps of a run, by kind of start, and most epochs. From pretrained weights, twice as many steps gain nothing.
LEAST_STEPS, MOST_EPOCHS = {"pretrained": 100, "random": 200}, 40

# Default learning rate of SGD with momentum, as a multiple of that of AdamW.
SGD_RATE = 30


@dataclass(frozen=True)
class Plan:
    """Resolved training schedule.

    Attributes:
        epochs: Most epochs.
        patience: Epochs without a better validation result after which training stops.
        steps_per_epoch: Batches of an epoch.
        lr: Full learning rate of the head. With `--lr auto` the strategy's own, which the sweep replaces.
        stage_decay: Factor from the learning rate of one stage to that of the stage below it.
        lowest: Position of the lowest stage that is trained.
        batch_norm_trains: Whether the statistics of batch norm are updated.
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
        """Steps of all epochs."""
        return self.epochs * self.steps_per_epoch

    def stage_rate(self, position: int, stages: int) -> float:
        """Full learning rate of the stage at `position` of `stages`; that of the head for position == stages."""
        return self.lr * self.stage_decay ** (stages - position)


@dataclass(frozen=True, eq=False)
class TrainingTask:
    """A network and everything that its training depends on.

    Attributes:
        fabric: Device and precision.
        network: Network with a head. Training changes its weights.
        plan: Training schedule.
        config: The run's options.
        data: Training and validation pictures.
    """

    fabric: Fabric
    network: Network
    plan: Plan
    config: Config
    data: TrainingData


def plan_for(strategy: Strategy, config: Config, network: Network, n: int) -> Plan:
    """Training schedule of a strategy for `n` training pictures; options in `config` come first.

    Raises:
        InputError: If an option names no stage, or the batch size does not allow training batch norm.
    """
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
        raise InputError(f"--batch-size must be at least 2 with --strategy {strategy.name}, which trains batch norm")
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
    """Default number of epochs: the strategy's own, more where few pictures would give fewer than LEAST_STEPS steps."""
    return max(strategy.epochs, min(MOST_EPOCHS, math.ceil(LEAST_STEPS[strategy.start] / steps_per_epoch)))


def patience_for(strategy: Strategy, epochs: int) -> int:
    """Default patience of a training of so many epochs."""
    # From random weights, validation improves in leaps, the last of them when the learning rate is low.
    return max(8, math.ceil(epochs / 3)) if strategy.start == "random" else max(3, math.ceil(epochs / 5))
