"""What an epoch of training gave, as a callback receives it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class EpochResult:
    """Figures of one finished epoch, given to `fit(..., on_epoch=...)`.

    Attributes:
        epoch: Number of the epoch, counted from 1.
        epochs: Number of epochs planned; training may stop earlier.
        train_loss: Mean training loss in nats, on augmented pictures.
        val_loss: Loss on the validation pictures in nats.
        val_accuracy: Accuracy on the validation pictures, in [0, 1].
        lr: Learning rate of the head at the last step.
        seconds: Duration of the epoch, validation included.
    """

    epoch: int
    epochs: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float


OnEpoch = Callable[[EpochResult], None]
