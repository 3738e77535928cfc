"""The training loop: epochs, validation, early stop, resume; then the choice of the weights to keep."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from finetune.config import AUTO
from finetune.data.transforms import view_seed
from finetune.errors import TrainingDiverged
from finetune.models.backbone import Network
from finetune.progress import Advance, Display
from finetune.ranks.group import Ranks, current
from finetune.ranks.start import goes_on_alone
from finetune.training.budget import MORE_VALIDATIONS, Deadline
from finetune.training.cached_inputs import inputs_for
from finetune.training.checkpoint import Checkpoint, CheckpointFile, LoopState
from finetune.training.inputs import Inputs, TrainingBatch, take_all
from finetune.training.loggers import Log
from finetune.training.lr_finder import sweep_rates
from finetune.training.plan import Plan, TrainingTask
from finetune.training.selection import SHARES, ModelSelection, Score, between
from finetune.training.shared_steps import share_of, shared_steps
from finetune.training.step import TrainStep, check_finite, schedule, weights_on_cpu

# Steps between two checks of the loss: each check waits for the device.
CHECK_EVERY = 16


@dataclass(frozen=True, eq=False)
class TrainingResult:
    """Result of a training, so far or at its end.

    Attributes:
        weights: Weights to keep, on the CPU. Empty where nothing was trained.
        history: One row per finished epoch.
        best: Validation score of `weights`. None before the first epoch.
        best_epoch: Epoch that gave `weights`, counted from 1. 0 for the weights before training.
        share: Position of `weights` on the line from the weights before training (0) to those of `best_epoch` (1).
        lr: Full learning rate of the head. None before it is known.
        sweep: The learning-rate sweep that found `lr`, as `Sweep.to_dict`. None without one.
        interrupted: Whether Ctrl-C ended the training.
        planned: Epochs of the plan at the end. 0 where nothing was trained.
        out_of_time: Whether the deadline ended the last epoch before all of its steps were taken.
    """

    weights: Mapping[str, Tensor] = field(default_factory=dict, repr=False)
    history: tuple[dict[str, float], ...] = ()
    best: Score | None = None
    best_epoch: int = 0
    share: float = 1.0
    lr: float | None = None
    sweep: dict[str, Any] | None = None
    interrupted: bool = False
    planned: int = 0
    out_of_time: bool = False

    @property
    def epochs(self) -> int:
        """Number of finished epochs."""
        return len(self.history)

    def to_state(self) -> dict[str, Any]:
        """The values that a checkpoint keeps beside the weights, as JSON."""
        best = None if self.best is None else asdict(self.best)
        rest = {
            name: getattr(self, name) for name in ("history", "best_epoch", "lr", "sweep", "planned", "out_of_time")
        }
        return {**rest, "best": best}

    @staticmethod
    def from_checkpoint(saved: Checkpoint) -> TrainingResult:
        """The result so far that a checkpoint holds."""
        state = saved.state_as(LoopState)
        result = TrainingResult(saved.weights.get("best", {}), tuple(saved.state["history"]), state.best)
        names = ("best_epoch", "lr", "sweep", "planned", "out_of_time")
        return replace(result, **{name: getattr(state, name) for name in names})


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

    Example:
        >>> from finetune import fit
        >>> results = []
        >>> options = {"strategy": "full", "epochs": 1, "backbone": "fewtune_conv4", "device": "cpu", "workers": 0}
        >>> _ = fit("photos/", on_epoch=results.append, **options)
        >>> results[0].epoch
        1
    """

    epoch: int
    epochs: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    lr: float
    seconds: float


OnEpoch = Callable[[EpochResult], None]


def train(
    task: TrainingTask,
    *,
    start_logits: Tensor | None = None,
    checkpoint: Path | None = None,
    display: Display,
    log: Log | None = None,
    on_epoch: OnEpoch | None = None,
    deadline: Deadline | None = None,
) -> TrainingResult:
    """Train `task.network`; on return it holds the weights that are kept.

    The weights of the best epoch by validation are kept. With `start_logits`, weights between the start and the trained
    ones are tried as well, and the start is kept where training does not improve on it.

    Args:
        task: The network, its pictures and the training schedule.
        start_logits: Logits (m, classes) of the validation pictures before training, where the network starts with a
            solved head. None where there is nothing to compare with, or the trained weights are kept in any case.
        checkpoint: File that is written after every epoch. Training continues from it where it exists.
        display: Shows progress.
        log: Receives the figures of every epoch.
        on_epoch: Called after every epoch, once its checkpoint is written.
        deadline: When the training must end. The number of epochs follows their measured duration, and the
            learning-rate schedule follows the number of epochs.

    Returns:
        The kept weights and the history. Ctrl-C after the first epoch ends training early and sets `interrupted`; with
        `start_logits` it does so from the first step on.

    Raises:
        TrainingDiverged: If the loss stops being finite.
        InputError: If a picture has changed since it was first read, or the checkpoint belongs to another run.
        OutOfTime: If the frozen stages take too long for the deadline.
        KeyboardInterrupt: On Ctrl-C at another moment. The network then holds any weights.
    """
    network, plan, data = task.network, task.plan, task.data
    network.backbone.freeze_below(plan.lowest, batch_norm_trains=plan.batch_norm_trains)
    inputs = inputs_for(
        task.fabric,
        network,
        task.config,
        data,
        lowest=plan.lowest,
        epochs=plan.epochs,
        display=display,
        deadline=deadline,
    )
    file = CheckpointFile(checkpoint, {"pictures": data.fingerprint, "inputs": inputs.name})
    selection = ModelSelection(data.val_labels, data.class_weights, len(data.indices) / network.head.out_features)
    start = weights_on_cpu(network)
    began = time.monotonic()
    start_score = None if start_logits is None else selection.score(inputs.validation_logits())
    if deadline is not None:
        deadline = deadline.before(MORE_VALIDATIONS * (time.monotonic() - began))

    saved = file.read()
    if saved is None:
        lr, sweep = _learning_rate(task, inputs, display)
        result = TrainingResult(start, lr=lr, sweep=sweep, planned=plan.epochs)
    else:
        result = TrainingResult.from_checkpoint(saved)
        lr = result.lr or plan.lr
    task = replace(task, plan=replace(plan, lr=lr, epochs=result.planned or plan.epochs))
    ranks = current()
    most = task.plan.epochs if deadline is None else deadline.most_epochs

    def make_step(ranks: Ranks | None = None) -> TrainStep:
        step = TrainStep(task, inputs.learner, ranks)
        if saved is not None:
            _restore(saved, network, step)
        return step

    with (
        nullcontext(make_step())
        if ranks is None
        else shared_steps(ranks, task, inputs, make_step, first_epoch=result.epochs, epochs=most)
    ) as step:
        loop = _Loop(task, inputs, selection, step, file, display, deadline, most, ranks)
        result = loop.run(result, start_score, log or Log(), on_epoch)

    if start_logits is not None and result.best_epoch > 0:
        if not result.interrupted:
            result = _interpolated(result, start, network, inputs, selection)
        network.load_state_dict(result.weights)
        if not selection.keep(inputs.validation_logits(), start_logits):
            display.say("training does not improve on the head on the validation pictures; the head is kept.")
            result = replace(result, weights=start, best_epoch=0, share=1.0)
    network.load_state_dict(result.weights)
    network.eval()
    return result


def _restore(saved: Checkpoint, network: Network, step: TrainStep) -> None:
    """Load the weights and the optimiser's state after the last finished epoch."""
    saved.restore("now", network)
    saved.weights_for("best", network)
    saved.restore_optimizer(step.optimizer)


def _learning_rate(task: TrainingTask, inputs: Inputs, display: Display) -> tuple[float, dict[str, Any] | None]:
    """The plan's learning rate, or with `--lr auto` that of a sweep, and the sweep."""
    if task.config.lr != AUTO:
        return task.plan.lr, None
    sweep = sweep_rates(task, inputs, display)
    display.say(sweep.summary(task.plan.lr))
    return sweep.suggestion or task.plan.lr, sweep.to_dict()


@dataclass(frozen=True)
class _Loop:
    """The parts of a training that every epoch uses."""

    task: TrainingTask
    inputs: Inputs
    selection: ModelSelection
    step: TrainStep
    checkpoint: CheckpointFile
    display: Display
    deadline: Deadline | None
    most_epochs: int
    ranks: Ranks | None

    def run(self, result: TrainingResult, start: Score | None, log: Log, on_epoch: OnEpoch | None) -> TrainingResult:
        """Train the epochs after those in `result`. start: the score of a solved head before training."""
        plan, pictures = self.task.plan, len(self.task.data.indices)
        try:
            log.begin(result.history)
            with self.display.bar("training", plan.epochs * pictures) as advance:
                advance(result.epochs * pictures, "")
                share = take_all if self.ranks is None else share_of(self.ranks, self.task.config)
                batches = self.inputs.batches(result.epochs, self.most_epochs, share)
                while self._goes_on(plan, result, start):
                    began = time.monotonic()
                    result = self._after_epoch(plan, result, batches, advance)
                    row = result.history[-1]
                    plan = self._replanned(plan, result, time.monotonic() - began)
                    result = replace(result, planned=plan.epochs)
                    # Before the checkpoint: an epoch that is repeated after a crash replaces its line.
                    log.epoch(row)
                    self._save(result)
                    advance(0, f"epoch {result.epochs}/{plan.epochs}, validation {row['val_accuracy']:.1%}")
                    if on_epoch is not None:
                        on_epoch(_epoch_result(row, plan.epochs, time.monotonic() - began))
        except KeyboardInterrupt:
            if (result.best_epoch == 0 and start is None) or not goes_on_alone():
                raise
            return replace(result, interrupted=True)
        if result.out_of_time or (result.epochs < plan.epochs and self._late):
            self.display.say(f"training stopped in epoch {result.epochs} of {plan.epochs}: its time is over.")
        elif result.epochs < plan.epochs:
            self.display.say(
                f"training stopped after epoch {result.epochs} of {plan.epochs}: "
                f"validation has not improved for {plan.patience} epochs."
            )
        return result

    @property
    def _late(self) -> bool:
        return self.deadline is not None and self.deadline.passed

    def _goes_on(self, plan: Plan, result: TrainingResult, start: Score | None) -> bool:
        """Whether another epoch is trained."""
        if result.out_of_time or (self._late and (start is not None or result.epochs > 0)):
            return False
        return result.epochs < plan.epochs and epochs_without_gain(result.history, start) < plan.patience

    def _replanned(self, plan: Plan, result: TrainingResult, seconds: float) -> Plan:
        """The plan after an epoch that took `seconds`; one line where its number of epochs has changed."""
        if self.deadline is None or result.out_of_time:
            return plan
        found = self.deadline.replanned(plan, result.epochs, seconds)
        if found.epochs != plan.epochs:
            self.display.say(f"an epoch takes {seconds:.0f} s: {found.epochs} epochs instead of {plan.epochs}.")
        return found

    def _after_epoch(
        self, plan: Plan, result: TrainingResult, batches: Iterator[TrainingBatch], advance: Advance
    ) -> TrainingResult:
        """Train one epoch and validate."""
        train_loss, lr, late = self._train_epoch(plan, result.epochs, batches, advance)
        score = self.selection.score(self.inputs.validation_logits())
        epoch = result.epochs + 1
        if not math.isfinite(score.loss):
            raise TrainingDiverged(
                f"the validation loss became {score.loss} after epoch {epoch}: "
                f"the weights grew without bound; lower the learning rate (--lr, now {self.task.plan.lr:g})"
            )
        row = {
            "epoch": epoch,
            "train_loss": train_loss,
            "val_loss": score.loss,
            "val_accuracy": score.accuracy,
            "lr": lr,
        }
        result = replace(result, history=(*result.history, row), out_of_time=late)
        # With few validation pictures, choosing an epoch is noise: keep the last, whose learning rate is low.
        if self.selection.few or score.beats(result.best):
            return replace(result, best=score, best_epoch=epoch, weights=weights_on_cpu(self.task.network))
        return result

    def _train_epoch(
        self, plan: Plan, epoch: int, batches: Iterator[TrainingBatch], advance: Advance
    ) -> tuple[float, float, bool]:
        """Mean training loss of an epoch, counted from 0, the head's learning rate at its last step, and whether the
        deadline ended it.

        All randomness depends on the seed and the epoch alone, so that an epoch can be repeated.
        """
        task, step = self.task, self.step
        task.network.train()  # frozen parts of the learner stay in evaluation mode
        torch.manual_seed(view_seed(task.config.seed, epoch, "steps"))
        total, unchecked = torch.zeros((), device=step.device), list[Tensor]()
        first, lr_scale, late = epoch * plan.steps_per_epoch, 1.0, False
        number, last = first, first + plan.steps_per_epoch - 1
        for number, batch in zip(range(first, last + 1), batches, strict=False):
            lr_scale = schedule(number, plan.steps, round(task.config.warmup * plan.steps))
            with nullcontext() if self.ranks is None else self.ranks.step(epoch, lr_scale):
                loss = step(batch, lr_scale)
            total += loss
            unchecked.append(loss)
            late = number < last and self._late
            if len(unchecked) == CHECK_EVERY or number == last or late:
                check_finite(unchecked, number, plan.steps, step.optimizer, plan.lr)
                unchecked.clear()
            advance(len(batch), "")
            if late:
                break
        return float(total) / (number - first + 1), plan.lr * lr_scale, late

    def _save(self, result: TrainingResult) -> None:
        weights = {"now": self.task.network.state_dict(), "best": result.weights}
        self.checkpoint.save(weights, self.step.optimizer, result.to_state())


def _epoch_result(row: Mapping[str, float], epochs: int, seconds: float) -> EpochResult:
    return EpochResult(
        int(row["epoch"]), epochs, row["train_loss"], row["val_loss"], row["val_accuracy"], row["lr"], seconds
    )


def epochs_without_gain(history: Sequence[Mapping[str, float]], start: Score | None) -> int:
    """Number of epochs since validation last improved: accuracy above all before, or loss below all before.

    start: the score before training, which counts as well; None for random weights.
    """
    accuracy, loss, since = (-math.inf, math.inf, 0) if start is None else (start.accuracy, start.loss, 0)
    for row in history:
        gained = row["val_accuracy"] > accuracy or row["val_loss"] < loss
        accuracy, loss = max(accuracy, row["val_accuracy"]), min(loss, row["val_loss"])
        since = 0 if gained else since + 1
    return since


def _interpolated(
    result: TrainingResult, start: Mapping[str, Tensor], network: Network, inputs: Inputs, selection: ModelSelection
) -> TrainingResult:
    """`result` with the weights between `start` and the trained ones that score best on validation."""
    best = result
    for share in SHARES:
        weights = between(start, result.weights, share)
        network.load_state_dict(weights)
        score = selection.score(inputs.validation_logits())
        if score.beats(best.best):
            best = replace(best, weights=weights, best=score, share=share)
    return best
