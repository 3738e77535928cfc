"""The probe curve of a folder of pictures: how near they are to what a backbone knows, before any training."""

from __future__ import annotations

import math

from finetune.api.prepare import prepare, training_curve
from finetune.config import Config
from finetune.data.table import Source, list_pictures
from finetune.errors import InputError
from finetune.features.extraction import read_pictures
from finetune.features.table import FeatureTable
from finetune.linear.probe import ProbeCurve
from finetune.models.backbone import Backbone
from finetune.models.device import open_engine, reproducible_numerics
from finetune.models.pooled import PooledStages
from finetune.models.pretrained import load_pretrained
from finetune.progress import Display
from finetune.random_state import restored_random_state
from finetune.training.cached_inputs import inputs_for
from finetune.training.lr_finder import STEPS, Sweep, sweep_rates
from finetune.training.plan import TrainingTask

_NO_RATE = "strategy head solves its head at once and has no learning rate; choose another one (--strategy partial)"


@restored_random_state()
def probe_folder(folder: Source, *, config: Config | None = None, display: Display | None = None) -> ProbeCurve:
    """The curve of the pictures that a run on `folder` would learn from; those that judge it are left alone.

    InputError for a folder or backbone that cannot be used, and where a class has fewer than two pictures.
    """
    config, display = config or Config(), display or Display()
    listing = list_pictures(folder)
    fabric = open_engine(config.device, config.precision)
    backbone = Backbone(config.backbone, image_size=config.image_size)
    load_pretrained(backbone, config.weights, display)
    stages = PooledStages(backbone.to(fabric.device))
    outputs = read_pictures(fabric, stages, listing, config, display)
    rows = FeatureTable.audited(listing, outputs, backbone.width, config)
    for line in rows.summary():
        display.say(line)
    curve = training_curve(stages, rows)
    if curve is None:
        raise InputError(f"{listing.name} has a class with fewer than two training pictures; a probe needs two of each")
    return curve


@restored_random_state()
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
    network, _ = prepared.starting_network(config)
    plan, material = prepared.plan(network, config), prepared.training_data(config)
    network.backbone.freeze_below(plan.lowest, batch_norm_trains=plan.batch_norm_trains)
    # No more views than the sweep shows: it takes few steps.
    epochs = min(plan.epochs, math.ceil(STEPS / plan.steps_per_epoch))
    inputs = inputs_for(prepared.fabric, network, config, material, lowest=plan.lowest, epochs=epochs, display=display)
    with reproducible_numerics(prepared.fabric.device):
        return sweep_rates(TrainingTask(prepared.fabric, network, plan, config, material), inputs, display)
