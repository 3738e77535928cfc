"""Duration of a training: estimated from a few of its pictures before it starts, and fitted to a time."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from finetune.config import AUTO
from finetune.data.loader import check_unchanged, cores
from finetune.models.device import engine_to_train, synchronize
from finetune.progress import Advance
from finetune.training.lr_finder import STEPS
from finetune.training.plan import Plan, TrainingTask
from finetune.training.selection import SHARES

# Number of pictures that are timed: enough to fill the cores, and done in a second.
TIMED = 8
# Fewest augmented views of a picture, before the number of epochs is reduced.
LEAST_VIEWS = 2
# Passes over the validation pictures beside those of the epochs: before training, of weights between the start and the
# trained ones, and of the weights that are kept.
MORE_VALIDATIONS = 2 + len(SHARES)
# Share of the remaining time that an epoch may be planned for: the rest is for epochs that take longer than the last.
_PLANNED = 0.95
# Share of the pictures, and seconds, after which the speed of the frozen stages is known.
_KNOWN, _KNOWN_SECONDS = 0.05, 2.0


@dataclass(frozen=True)
class TrainingCosts:
    """Estimated durations of the parts of a training in seconds, for an empty cache.

    Attributes:
        once: Parts that do not depend on the number of epochs: frozen stages on the validation pictures, the
            learning-rate sweep.
        view: One augmented view of every training picture through the frozen stages. 0 where nothing is computed once.
        epoch: One epoch, without validation.
        validation: One pass over the validation pictures.
        picture: One picture, read and classified by the whole network.
    """

    once: float
    view: float
    epoch: float
    validation: float
    picture: float

    def seconds(self, epochs: int, views: int) -> float:
        """Duration of a training of so many epochs; `views` is the most that a picture has."""
        validations = (epochs + MORE_VALIDATIONS) * self.validation
        return self.once + min(views, epochs) * self.view + epochs * self.epoch + validations

    def fitted(self, epochs: int, views: int, seconds: float) -> tuple[int, int] | None:
        """Epochs and views of the longest training that takes at most `seconds`.

        Args:
            epochs: Most epochs.
            views: Most views of a picture.
            seconds: Time for the training.

        Returns:
            Fewer views, down to LEAST_VIEWS, then fewer epochs; None where not one epoch fits.
        """
        views = min(views, epochs)
        fewest = min(views, LEAST_VIEWS)
        candidates = [(epochs, fewer) for fewer in range(views, fewest - 1, -1)]
        candidates += [(fewer, min(fewest, fewer)) for fewer in range(epochs - 1, 0, -1)]
        return next((found for found in candidates if self.seconds(*found) <= seconds), None)


def training_costs(task: TrainingTask) -> TrainingCosts:
    """Costs of a training, from one batch of its pictures.

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
    trained, validated = len(data.indices), len(data.val)
    swept = STEPS * config.batch_size if config.lr == AUTO else 0
    if plan.lowest == 0 or config.mixup:
        picture = read + step
        return TrainingCosts(swept * picture, 0.0, trained * picture, validated * forward, read + forward)
    # A backward pass costs about twice the forward pass of the same layers.
    upper = min(step, 1.5 * max(0.0, step - forward))
    frozen = read + step - upper
    once = validated * frozen + swept * upper
    return TrainingCosts(once, trained * frozen, trained * upper, validated * upper / 3, read + forward)


def expected_seconds(task: TrainingTask) -> float:
    """Estimated duration of a training in seconds, for all epochs of the plan. As for `training_costs`."""
    return training_costs(task).seconds(task.plan.epochs, task.config.views)


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


# --- a training that must end at a time -------------------------------------------------------------------------------


class OutOfTime(Exception):
    """The frozen stages take longer than the training may; nothing has been trained yet.

    Attributes:
        share: Share of their work for which the time that is left suffices, in [0, 1).
    """

    def __init__(self, share: float):
        super().__init__(f"time for {share:.0%} of the frozen stages")
        self.share = share


@dataclass(frozen=True)
class Deadline:
    """When a training must end.

    Attributes:
        ends: Time by `time.monotonic` at which the weights must be chosen.
        most_epochs: Epochs of a training without a deadline.
        epoch: Estimated seconds of an epoch.
    """

    ends: float
    most_epochs: int
    epoch: float

    def before(self, seconds: float) -> Deadline:
        """The deadline so many seconds earlier."""
        return replace(self, ends=self.ends - seconds)

    @property
    def passed(self) -> bool:
        return time.monotonic() >= self.ends

    def replanned(self, plan: Plan, done: int, seconds: float) -> Plan:
        """The plan with the number of epochs that fit, after `done` epochs of which the last took `seconds`.

        After the first epoch its measured duration replaces the estimate, and the number may rise. Later it only falls.
        """
        more = int(_PLANNED * max(0.0, self.ends - time.monotonic()) / seconds)
        most = self.most_epochs if done == 1 else plan.epochs
        return replace(plan, epochs=max(done, min(most, done + more)))

    def watched(self, advance: Advance, pictures: int) -> Advance:
        """`advance`, which raises OutOfTime once `pictures` will not be done an epoch before the deadline."""
        began, count, first = time.monotonic(), 0, (0, 0.0)

        def watching(done: int, note: str) -> None:
            nonlocal count, first
            advance(done, note)
            count += done
            now = time.monotonic()
            if not first[0]:  # the first pictures wait for the network to be prepared
                first = (count, now)
            measured, seconds = count - first[0], now - first[1]
            if self.passed or (measured >= _KNOWN * pictures and seconds >= _KNOWN_SECONDS):
                needed = (pictures - count) * seconds / max(1, measured)
                if now + needed > self.ends - self.epoch:
                    whole = now - began + needed
                    raise OutOfTime(max(0.0, (self.ends - self.epoch - now) / whole))

        return watching
