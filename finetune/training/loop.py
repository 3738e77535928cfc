"""The one training loop: epochs, schedule, early stop, resume."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from finetune.config import AUTO, Config
from finetune.data.transforms import view_seed
from finetune.errors import TrainingDiverged
from finetune.models.backbone import Network
from finetune.progress import Advance, Display
from finetune.training.cached_inputs import inputs_for
from finetune.training.checkpoint import TrainingState, read_checkpoint, save_checkpoint
from finetune.training.inputs import Inputs, TrainingBatch, TrainingData
from finetune.training.loggers import Log
from finetune.training.lr_finder import sweep_rates
from finetune.training.plan import Plan
from finetune.training.selection import SHARES, ModelSelection, Score, between
from finetune.training.step import TrainStep, copy_of, schedule

# A loss is looked at this often in steps: each look waits for the device.
LOOK_EVERY = 16


def train(
    fabric: Fabric,
    network: Network,
    plan: Plan,
    config: Config,
    material: TrainingData,
    *,
    start: Tensor | None,
    checkpoint: Path | None,
    resume: bool,
    display: Display,
    log: Log | None = None,
    on_epoch: OnEpoch | None = None,
) -> TrainingState:
    """Train `network` and leave the best weights by validation in it.

    Training stops when validation has gained nothing for `plan.patience` epochs.

    Args:
        fabric: Device and precision.
        network: Network with a head; its stages below `plan.lowest` are frozen here.
        plan: Epochs, learning rates and patience.
        config: The run's options.
        material: Training and validation pictures.
        start: Logits (m, classes) of the validation pictures before training, where the network begins with a solved
            head. Weights between that start and the trained ones are tried at the end, and unless they are kept
            (`ModelSelection`), the weights stay as given and the best epoch is 0. None when there is nothing to beat.
        checkpoint: File that is written after every epoch, and read with `resume`.
        resume: Continue from `checkpoint` where it exists.
        display: Shows progress.
        log: Receives each epoch's figures.
        on_epoch: Called after every epoch, once its checkpoint is written.

    Returns:
        How training went. Ctrl-C ends it early, with the best weights so far and `interrupted` set.

    Raises:
        TrainingDiverged: If the loss stops being finite.
        InputError: If a picture has changed since it was first read.
        KeyboardInterrupt: On Ctrl-C before the first epoch is done; the weights are then not restored.
    """
    network.backbone.freeze_below(plan.lowest, batch_norm_trains=plan.batch_norm_trains)
    inputs = inputs_for(fabric, network, config, material, lowest=plan.lowest, epochs=plan.epochs, display=display)
    learned_from = {"pictures": material.fingerprint, "inputs": inputs.name}
    begun = copy_of(network)
    judges = ModelSelection(
        material.val_labels, material.class_weights, len(material.indices) / network.head.out_features
    )
    # What to gain on: the score that training begins with, where that is a solved head's.
    first = None if start is None else judges.score(inputs.validation_logits())
    course, best, kept = TrainingState(), begun, None
    if resume and checkpoint is not None and checkpoint.exists():
        kept = read_checkpoint(checkpoint, learned_from)
        course, best = kept.course, kept.best
    log = log or Log()
    try:
        if course.lr is None:
            if config.lr == AUTO:
                sweep = sweep_rates(fabric, network, inputs, plan, config, material, display)
                course.sweep = sweep.to_dict()
                display.say(sweep.told(plan.lr))
                plan = replace(plan, lr=sweep.suggestion or plan.lr)
            course.lr = plan.lr
        plan = replace(plan, lr=course.lr)
        steps = TrainStep(fabric, network, inputs.learner, plan, config, material)
        if kept is not None:
            kept.put_into(network, steps.optimizer)
        log.begin(course.history)
        with display.bar("training", plan.epochs * len(material.indices)) as advance:
            advance(course.epoch * len(material.indices), "")
            batches = inputs.batches(course.epoch, plan.epochs)
            while course.epoch < plan.epochs and epochs_without_gain(course.history, first) < plan.patience:
                began = time.monotonic()
                train_loss, share = _one_epoch(steps, plan, config, course.epoch, batches, advance)
                score = _validated(inputs, judges, plan, course.epoch)
                course.epoch += 1
                # Few judges would choose one epoch of many by chance: the last is taken, when the rate is low.
                if judges.few or score.beats(course.best):
                    course.best, course.best_epoch, best = score, course.epoch, copy_of(network)
                row = {
                    "epoch": course.epoch,
                    "train_loss": train_loss,
                    "val_loss": score.loss,
                    "val_accuracy": score.accuracy,
                    "lr": plan.lr * share,
                }
                course.history.append(row)
                # Before the checkpoint: an epoch that is redone after a crash replaces its line.
                log.epoch(row)
                if checkpoint is not None:
                    save_checkpoint(checkpoint, network, steps.optimizer, learned_from, course, best)
                advance(0, f"epoch {course.epoch}/{plan.epochs}, validation {score.accuracy:.1%}")
                if on_epoch is not None:
                    seconds = time.monotonic() - began
                    on_epoch(
                        EpochResult(
                            course.epoch, plan.epochs, train_loss, score.loss, score.accuracy, row["lr"], seconds
                        )
                    )
            if course.epoch < plan.epochs:
                display.say(
                    f"training stopped after epoch {course.epoch} of {plan.epochs}: "
                    f"validation has gained nothing for {plan.patience} epochs."
                )
    except KeyboardInterrupt:
        if course.best_epoch == 0 and start is None:
            raise
        course.interrupted = True
    if start is not None:
        if course.best_epoch > 0 and not course.interrupted:
            best = _best_between(network, begun, best, inputs, judges, course)
        network.load_state_dict(best)
        if course.best_epoch > 0 and not judges.keep(inputs.validation_logits(), start):
            display.say("on the validation pictures, what was trained does not do better than the head.")
            course.best_epoch, course.share, best = 0, 1.0, begun
    network.load_state_dict(best)
    network.eval()
    return course


def epochs_without_gain(history: Sequence[Mapping[str, float]], first: Score | None) -> int:
    """Epochs since the validation accuracy last rose above all before it, or the validation loss fell below.

    first: the score before training, which counts as well; None for random weights.
    """
    accuracy, loss, since = (-math.inf, math.inf, 0) if first is None else (first.accuracy, first.loss, 0)
    for row in history:
        gained = row["val_accuracy"] > accuracy or row["val_loss"] < loss
        accuracy, loss = max(accuracy, row["val_accuracy"]), min(loss, row["val_loss"])
        since = 0 if gained else since + 1
    return since


def _validated(inputs: Inputs, judges: ModelSelection, plan: Plan, epoch: int) -> Score:
    """What the network is worth after `epoch`, counted from 0."""
    score = judges.score(inputs.validation_logits())
    if not math.isfinite(score.loss):
        raise TrainingDiverged(
            f"the validation loss became {score.loss} after epoch {epoch + 1}: "
            f"the weights grew without bound; lower the learning rate (--lr, now {plan.lr:g})"
        )
    return score


def _best_between(
    network: Network,
    begun: dict[str, Tensor],
    trained: dict[str, Tensor],
    inputs: Inputs,
    judges: ModelSelection,
    course: TrainingState,
) -> dict[str, Tensor]:
    """The weights on the way from `begun` to `trained` that validation prefers, told in `course`."""
    best = trained
    for share in SHARES:
        weights = between(begun, trained, share)
        network.load_state_dict(weights)
        score = judges.score(inputs.validation_logits())
        if score.beats(course.best):
            course.best, course.share, best = score, share, weights
    return best


def _one_epoch(
    steps: TrainStep, plan: Plan, config: Config, epoch: int, batches: Iterator[TrainingBatch], advance: Advance
) -> tuple[float, float]:
    """The epoch's mean training loss, and the share of the full learning rate at its last step.

    All randomness depends on seed and epoch alone, so that it can be redone.
    """
    steps.network.train()  # not what the steps run: what is frozen in the network stays in evaluation mode
    torch.manual_seed(view_seed(config.seed, epoch, "steps"))
    losses: list[Tensor] = []
    total = torch.zeros((), device=steps.device)
    first, share = epoch * plan.steps_per_epoch, 1.0
    for step, batch in zip(range(first, first + plan.steps_per_epoch), batches, strict=False):
        share = schedule(step, plan.steps, round(config.warmup * plan.steps))
        loss = steps.take(batch, share)
        losses.append(loss)
        total += loss
        if len(losses) == LOOK_EVERY or step == first + plan.steps_per_epoch - 1:
            _stop_unless_finite(losses, step, plan, steps)
            losses.clear()
        advance(len(batch), "")
    return float(total) / plan.steps_per_epoch, share


def _stop_unless_finite(losses: list[Tensor], last_step: int, plan: Plan, steps: TrainStep) -> None:
    finite = torch.isfinite(torch.stack(losses))
    if finite.all():
        return
    first_bad = int((~finite).nonzero()[0])
    step = last_step - len(losses) + 1 + first_bad
    value = float(losses[first_bad])
    cause = (
        "the weights are still finite, so the numbers overflowed on the way; try --precision float32"
        if steps.weights_are_finite()
        else f"the weights grew without bound; lower the learning rate (--lr, now {plan.lr:g})"
    )
    epoch = step // plan.steps_per_epoch + 1
    raise TrainingDiverged(
        f"the training loss became {value} at step {step + 1} of {plan.steps} (epoch {epoch}): {cause}"
    )


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
