"""A classifier as its files describe it: the tensors of model.safetensors, the description in config.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning_fabric import Fabric
from torch import Tensor

from finetune.classifier.calibrated_network import CalibratedNetwork
from finetune.classifier.run_config import CONFIG_FILE, FORMAT, RunConfig, read_run_config
from finetune.config import Config
from finetune.data.transforms import Preprocessing
from finetune.errors import InputError
from finetune.files.exchange import settled
from finetune.files.tensors import check_fits
from finetune.models.backbone import Backbone, Network
from finetune.models.device import open_engine
from finetune.models.pooled import network_of

WEIGHTS_FILE = "model.safetensors"
# Folder inside the run folder that keeps a run which is being replaced, until the new one is saved.
REPLACED = ".replaced"


def tensors_of(network: Network) -> dict[str, Tensor]:
    """The content of model.safetensors."""
    return {
        name.replace("backbone.model.", "backbone.", 1): value.detach().cpu().contiguous()
        for name, value in network.state_dict().items()
    }


def description(classifier: CalibratedNetwork) -> dict[str, Any]:
    """The part of config.json that describes a classifier."""
    return {
        "format": FORMAT,
        "config": classifier.config.to_dict(),
        "classes": list(classifier.classes),
        "preprocessing": asdict(classifier.preprocessing),
        "temperature": classifier.temperature,
        "highest_stage": classifier.network.backbone.highest,
    }


def read_finished(folder: Path) -> RunConfig:
    """config.json of a run. InputError where the run has not finished."""
    saved = read_run_config(folder)
    if saved.classes is None:
        replaced = folder / REPLACED
        older = f", or use the run that it is to replace: {replaced}" if (replaced / WEIGHTS_FILE).exists() else ""
        raise InputError(
            f"{folder} holds a run that has not finished; continue it with: finetune fit … --resume{older}"
        )
    return saved


def state_of(folder: Path) -> tuple[int, ...]:
    """Another value for each state of a run, which another process may exchange while its files are read."""
    try:
        status = (settled(folder) / CONFIG_FILE).stat()
    except OSError:
        return ()
    return status.st_ino, status.st_mtime_ns, status.st_size


class Parts(NamedTuple):
    """The arguments of a `CalibratedNetwork`."""

    network: Network
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    config: Config
    fabric: Fabric
    temperature: float


def restored(
    saved: RunConfig, tensors: Mapping[str, Tensor], names: tuple[str, str], device: str, precision: str | None
) -> Parts:
    """The parts of the classifier that its two files describe. names: of the files, for errors."""
    config_file, weights_file = names
    if saved.classes is None or saved.preprocessing is None:
        raise InputError(f"{config_file} may be damaged: classes or preprocessing is missing")
    try:
        config = Config.from_dict(saved.config)
        backbone = Backbone(config.backbone, image_size=config.image_size)
        if saved.highest_stage is not None:
            backbone.drop_above(saved.highest_stage)
    except InputError as error:
        raise InputError(f"{config_file} may be damaged: {error}") from error
    tensors = {name.replace("backbone.", "backbone.model.", 1): value for name, value in tensors.items()}
    misfit = f"{weights_file} does not fit {config_file}"
    try:
        network = network_of(backbone, tensors, len(saved.classes))
    except InputError as error:
        raise InputError(f"{misfit}: {error}") from error
    check_fits(tensors, network.state_dict(), misfit)
    network.load_state_dict(tensors)
    if saved.preprocessing.size != backbone.preprocessing.size:
        _check_size(network.eval(), saved.preprocessing.size, config_file)
    fabric = open_engine(device, precision or config.precision)
    return Parts(network, saved.classes, saved.preprocessing, config, fabric, saved.temperature)


def _check_size(network: Network, size: int, config_file: str) -> None:
    """InputError where the network does not take pictures of this size."""
    try:
        with torch.inference_mode():
            network(torch.zeros(1, 3, size, size))
    # Models raise different errors for a size that they do not take.
    except (RuntimeError, ValueError, AssertionError) as error:
        what = f"preprocessing.size: {network.backbone.name} takes no pictures of {size} pixels"
        raise InputError(f"{config_file} may be damaged: {what}") from error
