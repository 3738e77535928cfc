"""How long a training will take, estimated from a few of its pictures before it begins."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from lightning_fabric import Fabric

from finetune.config import Config
from finetune.data.loader import check_unchanged, cores
from finetune.models.backbone import Network
from finetune.models.device import engine_to_train
from finetune.training.inputs import TrainingData
from finetune.training.plan import Plan

# Pictures that are timed: enough to fill the cores, and done in a second.
TIMED = 8


def expected_seconds(fabric: Fabric, network: Network, plan: Plan, config: Config, material: TrainingData) -> float:
    """Estimated duration of a training that runs all epochs of `plan` and finds nothing in the cache.

    The stages below `plan.lowest` must be frozen already. Weights, gradients and random state are left as they are.
    InputError for a picture that changed since it was first read.
    """
    indices = material.indices[:TIMED]
    started = time.perf_counter()
    batch = material.pictures.batch(indices)
    read = (time.perf_counter() - started) / len(indices) / cores()
    check_unchanged(batch.contents, material.pictures, material.hashes)
    pixels = material.preprocessing.normalize(batch.pixels.to(fabric.device))
    engine = engine_to_train(fabric, network, config.precision)
    learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
    was_training = network.training
    network.eval()  # in training mode, statistics of batch norm and the random state would change

    def forward() -> None:
        with torch.no_grad(), engine.autocast():
            network(pixels)

    def forward_and_backward() -> None:
        with engine.autocast():
            loss = network(pixels).float().logsumexp(1).sum()
        torch.autograd.grad(loss, learning, allow_unused=True)

    try:
        seen, learned = (_seconds(once, fabric) / len(indices) for once in (forward, forward_and_backward))
    finally:
        network.train(was_training)
    shown, judged = plan.epochs * len(material.indices), plan.epochs * len(material.val)
    if plan.lowest == 0 or config.mixup:
        return shown * (read + learned) + judged * seen
    # A backward pass costs about twice the forward pass of the same layers.
    upper = min(learned, 1.5 * max(0.0, learned - seen))
    views = min(config.views, plan.epochs) * len(material.indices) + len(material.val)
    return views * (read + learned - upper) + shown * upper + judged * upper / 3


def in_words(seconds: float) -> str:
    """A duration for people, such as "about 20 s", "about 3 min" or "about 2.5 h"."""
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


def _seconds(once: Callable[[], None], fabric: Fabric) -> float:
    """Of one call, after a first one that is not timed."""
    once()
    _wait(fabric)
    started = time.perf_counter()
    once()
    _wait(fabric)
    return time.perf_counter() - started


def _wait(fabric: Fabric) -> None:
    if fabric.device.type == "cuda":
        torch.cuda.synchronize(fabric.device)
