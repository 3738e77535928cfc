"""Expected duration of a training, estimated from a few of its pictures before it starts."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from finetune.data.loader import check_unchanged, cores
from finetune.models.device import engine_to_train
from finetune.training.plan import TrainingTask

# Number of pictures that are timed: enough to fill the cores, and done in a second.
TIMED = 8


def expected_seconds(task: TrainingTask) -> float:
    """Estimated duration of a training in seconds, for all epochs of the plan and an empty cache.

    Args:
        task: The stages below `task.plan.lowest` must be frozen already. Weights, gradients and the random state are
            not changed.

    Raises:
        InputError: If a picture has changed since it was first read.
    """
    fabric, network, plan, config, data = task.fabric, task.network, task.plan, task.config, task.data
    indices = data.indices[:TIMED]
    started = time.perf_counter()
    batch = data.pictures.batch(indices)
    read = (time.perf_counter() - started) / len(indices) / cores()
    check_unchanged(batch.contents, data.pictures, data.hashes)
    pixels = data.preprocessing.normalize(batch.pixels.to(fabric.device))
    was_training = network.training
    network.eval()  # in training mode, the statistics of batch norm and the random state would change
    try:
        forward, step = (_seconds(task, pixels, backward=backward) / len(indices) for backward in (False, True))
    finally:
        network.train(was_training)
    trained, validated = plan.epochs * len(data.indices), plan.epochs * len(data.val)
    if plan.lowest == 0 or config.mixup:
        return trained * (read + step) + validated * forward
    # A backward pass costs about twice the forward pass of the same layers.
    upper = min(step, 1.5 * max(0.0, step - forward))
    views = min(config.views, plan.epochs) * len(data.indices) + len(data.val)
    return views * (read + step - upper) + trained * upper + validated * upper / 3


def in_words(seconds: float) -> str:
    """A duration in words.

    Example:
        >>> in_words(100)
        'about 2 min'
    """
    if seconds < 90:
        return f"about {max(5, 5 * round(seconds / 5))} s"
    if seconds < 5400:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"


def _seconds(task: TrainingTask, pixels: Tensor, *, backward: bool) -> float:
    """Duration of one pass over a batch, the second of two: the first sets things up."""
    engine = engine_to_train(task.fabric, task.network, task.config.precision)
    trained = [parameter for parameter in task.network.parameters() if parameter.requires_grad]
    started = 0.0
    for _ in range(2):
        synchronize(task.fabric.device)
        started = time.perf_counter()
        with torch.set_grad_enabled(backward), engine.autocast():
            loss = task.network(pixels).float().logsumexp(1).sum()
        if backward:
            torch.autograd.grad(loss, trained, allow_unused=True)
        synchronize(task.fabric.device)
    return time.perf_counter() - started


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
