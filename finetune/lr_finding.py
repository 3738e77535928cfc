"""The learning rate for a folder of pictures: what a run on it would start with, and a sweep from there."""

from __future__ import annotations

import math

from finetune.config import Config
from finetune.data.table import Source, list_pictures
from finetune.errors import InputError
from finetune.preparation import prepare
from finetune.progress import Display
from finetune.training.cached_inputs import inputs_for
from finetune.training.lr_finder import STEPS, Sweep, sweep_rates

_NO_RATE = "strategy head solves its head at once and has no learning rate; choose another one (--strategy partial)"


def find_rate(folder: Source, *, config: Config | None = None, display: Display | None = None) -> Sweep:
    """The sweep of the training that a run on `folder` would make, with the batches that it would learn from.

    InputError for a folder, file or option that cannot be used, and for a strategy that learns nothing by gradient.
    """
    config, display = config or Config(), display or Display()
    if config.strategy == "head":
        raise InputError(_NO_RATE)
    listing = list_pictures(folder)
    prepared = prepare(listing, config, None, display)
    strategy = prepared.choice.strategy
    if strategy.trains == "head":
        raise InputError(_NO_RATE)
    network, _ = prepared.beginning(config)
    plan, material = prepared.plan(network, config), prepared.material(config)
    network.backbone.freeze_below(plan.lowest, batch_norm_trains=plan.batch_norm_trains)
    # No more views than the sweep shows: it takes few steps.
    epochs = min(plan.epochs, math.ceil(STEPS / plan.steps_per_epoch))
    inputs = inputs_for(prepared.fabric, network, config, material, lowest=plan.lowest, epochs=epochs, display=display)
    return sweep_rates(prepared.fabric, network, inputs, plan, config, material, display)
