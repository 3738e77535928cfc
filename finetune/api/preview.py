"""Before any training: `probe_folder`, the probe curve of a folder, and `find_rate`, a learning rate for it."""

from __future__ import annotations

import math

from finetune.api.backbones import choose_backbone
from finetune.api.prepare import prepare, training_curve
from finetune.config import AUTO, Config
from finetune.data.table import Source, list_pictures
from finetune.errors import InputError
from finetune.features.extraction import read_pictures
from finetune.features.table import FeatureTable
from finetune.linear.probe import ProbeCurve
from finetune.models.backbone import Backbone
from finetune.models.candidates import load_weights
from finetune.models.device import open_engine, reproducible_numerics
from finetune.models.pooled import PooledStages
from finetune.progress import Display
from finetune.random_state import restored_random_state
from finetune.training.cached_inputs import inputs_for
from finetune.training.lr_finder import STEPS, Sweep, sweep_rates
from finetune.training.plan import TrainingTask

_NO_RATE = (
    "strategy head solves its head in closed form and has no learning rate; choose another one (--strategy partial)"
)


@restored_random_state()
def probe_folder(folder: Source, *, config: Config | None = None, display: Display | None = None) -> ProbeCurve:
    """Probe curve of the training pictures of a folder; validation and test pictures are not used.

    Args:
        folder: A folder or a table, as `fit` takes it.
        config: Options of the run to come.
        display: Shows progress.

    Returns:
        Accuracy and squared error at every depth, and on all depths together.

    Raises:
        InputError: For a folder or backbone that cannot be used, and for a class with fewer than two pictures.

    Example:
        >>> from finetune import Config, probe_folder
        >>> probe_folder("photos/", config=Config(backbone="fewtune_conv4", device="cpu")).last.accuracy
        1.0
    """
    config, display = config or Config(), display or Display()
    if config.backbone == AUTO:
        raise InputError("probe_folder measures one network; compare_backbones compares several (--backbone auto)")
    listing = list_pictures(folder)
    fabric = open_engine(config.device, config.precision)
    backbone = Backbone(config.backbone, image_size=config.image_size)
    load_weights(backbone, config, display)
    stages = PooledStages(backbone.to(fabric.device))
    outputs = read_pictures(fabric, stages, listing, config, display)
    rows = FeatureTable.audited(listing, outputs, backbone.width, config)
    for line in rows.summary():
        display.say(line)
    curve = training_curve(stages, rows, config.max_pixels)
    if curve is None:
        raise InputError(f"{listing.name} has a class with fewer than two training pictures; a probe needs two of each")
    return curve


@restored_random_state()
def find_rate(folder: Source, *, config: Config | None = None, display: Display | None = None) -> Sweep:
    """Learning-rate sweep for a run on a folder, with its network and its training batches.

    Args:
        folder: A folder or a table, as `fit` takes it.
        config: Options of the run to come.
        display: Shows progress.

    Returns:
        The rates, the losses and the suggestion.

    Raises:
        InputError: For a folder, file or option that cannot be used, and for a strategy that trains no weights by
            gradient.

    Example:
        >>> from finetune import Config, find_rate
        >>> config = Config(backbone="fewtune_conv4", strategy="partial", device="cpu", workers=0)
        >>> sweep = find_rate("photos/", config=config)
        >>> len(sweep.rates) == len(sweep.losses)
        True
    """
    config, display = config or Config(), display or Display()
    if config.strategy == "head":
        raise InputError(_NO_RATE)
    listing = list_pictures(folder)
    config = choose_backbone(listing, config, display).config
    prepared = prepare(listing, config, None, display)
    strategy = prepared.choice.strategy
    if strategy.trains == "head":
        raise InputError(_NO_RATE)
    network, _ = prepared.starting_network(config)
    plan, material = prepared.plan(network, config), prepared.training_data(config)
    network.backbone.freeze_below(plan.lowest, batch_norm_trains=plan.batch_norm_trains)
    # A sweep has few steps, which need the views of few epochs.
    epochs = min(plan.epochs, math.ceil(STEPS / plan.steps_per_epoch))
    inputs = inputs_for(prepared.fabric, network, config, material, lowest=plan.lowest, epochs=epochs, display=display)
    with reproducible_numerics(prepared.fabric.device):
        return sweep_rates(TrainingTask(prepared.fabric, network, plan, config, material), inputs, display)
