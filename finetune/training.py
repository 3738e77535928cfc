"""The one training loop: parameter groups, schedule, precision, early stop, resume."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from finetune.backbone import Network
from finetune.config import Config
from finetune.engine import engine_to_train
from finetune.errors import InputError, TrainingDiverged
from finetune.files import read_tensors_and_metadata, write_tensors
from finetune.frozen_inputs import inputs_for
from finetune.inputs import Inputs, Material, Shown
from finetune.loader import batches_per_epoch
from finetune.metrics import accuracy, log_loss
from finetune.progress import Advance, Display
from finetune.strategy import Strategy
from finetune.transforms import view_seed

# A run takes at least so many steps, few pictures or not, in at most so many epochs.
LEAST_STEPS, MOST_EPOCHS = 400, 40

# What SGD with momentum takes where AdamW takes 1, when neither is told its learning rate.
SGD_RATE = 30

# A loss is looked at this often in steps: each look waits for the device.
LOOK_EVERY = 16


@dataclass(frozen=True)
class Plan:
    """Every choice that the loop needs, made. lowest: position of the lowest stage that learns."""

    epochs: int
    patience: int
    steps_per_epoch: int
    lr: float
    stage_decay: float
    lowest: int
    batch_norm_trains: bool

    @property
    def steps(self) -> int:
        return self.epochs * self.steps_per_epoch


@dataclass
class Score:
    """A validation result; of two, the one with more right wins, and of equals the one with less loss."""

    accuracy: float
    loss: float

    def beats(self, other: Score | None) -> bool:
        if not math.isfinite(self.loss):
            return False
        return other is None or (self.accuracy, -self.loss) > (other.accuracy, -other.loss)


@dataclass
class Course:
    """How far training has come. best_epoch: 0 is the start that training was given."""

    epoch: int = 0
    best: Score | None = None
    best_epoch: int = 0
    since_best: int = 0
    interrupted: bool = False
    history: list[dict[str, float]] = field(default_factory=list)


def plan_for(strategy: Strategy, config: Config, network: Network, n: int) -> Plan:
    """The strategy's plan for n training pictures, where the configuration does not say otherwise."""
    stages = len(network.backbone.stages)
    if strategy.trains == "all":
        lowest = 0
    elif config.unfreeze is not None:
        lowest = network.backbone.stage_index(config.unfreeze)
    else:
        lowest = stages - max(1, round(stages / 4))
    if config.batch_size == 1 and strategy.batch_norm == "trained":
        raise InputError(
            f"--batch-size 1 leaves batch norm, which --strategy {strategy.name} trains, nothing to learn from"
        )
    steps_per_epoch = batches_per_epoch(n, config.batch_size)
    epochs = config.epochs or epochs_for(strategy, steps_per_epoch)
    return Plan(
        epochs=epochs,
        # The best results come when the learning rate has fallen: a short run goes to its end.
        patience=config.patience or max(8, math.ceil(epochs / 3)),
        steps_per_epoch=steps_per_epoch,
        lr=_default(config.lr, (strategy.learning_rate or 0.0) * (SGD_RATE if config.optimizer == "sgd" else 1)),
        stage_decay=_default(config.stage_decay, strategy.stage_decay),
        lowest=lowest,
        batch_norm_trains=strategy.batch_norm == "trained",
    )


def epochs_for(strategy: Strategy, steps_per_epoch: int) -> int:
    """The strategy's own number, or more where a small folder would otherwise give too few steps to get anywhere."""
    return max(strategy.epochs, min(MOST_EPOCHS, math.ceil(LEAST_STEPS / steps_per_epoch)))


def train(
    fabric: Fabric,
    network: Network,
    plan: Plan,
    config: Config,
    material: Material,
    *,
    start: Score | None,
    checkpoint: Path | None,
    resume: bool,
    display: Display,
) -> Course:
    """Train `network`, leave in it the weights of the best validation result, and tell how it went.

    start: the score of the weights as given, which training must beat to replace them; None when they are worth
    nothing. checkpoint: file to keep up to date after every epoch, and with `resume` to continue from. Ctrl-C ends
    training early with the best weights so far. Raises TrainingDiverged when the loss stops being finite, InputError
    for a picture that is no longer what it was.
    """
    network.backbone.freeze_below(plan.lowest, batch_norm_trains=plan.batch_norm_trains)
    inputs = inputs_for(fabric, network, config, material, lowest=plan.lowest, epochs=plan.epochs, display=display)
    optimizer = _optimizer(network, plan, config)
    learning = engine_to_train(fabric, network, config.precision)
    engine, optimizer = learning.setup(inputs.learner, optimizer)
    course, best = Course(best=start), _copy(network)
    learned_from = {"pictures": material.fingerprint, "inputs": inputs.name}
    if resume and checkpoint is not None and checkpoint.exists():
        course, best = _restore(checkpoint, network, optimizer, learned_from)
    try:
        with display.bar("training", plan.epochs * len(material.indices)) as advance:
            advance(course.epoch * len(material.indices), "")
            batches = inputs.batches(course.epoch, plan.epochs)
            while course.epoch < plan.epochs and course.since_best < plan.patience:
                train_loss = _one_epoch(
                    learning, network, engine, optimizer, plan, config, material, course.epoch, batches, advance
                )
                score = _validate(inputs, material)
                if not math.isfinite(score.loss):
                    raise TrainingDiverged(
                        f"the validation loss became {score.loss} after epoch {course.epoch + 1}: "
                        f"the weights grew without bound; lower the learning rate (--lr, now {plan.lr:g})"
                    )
                course.epoch += 1
                course.since_best += 1
                if score.beats(course.best):
                    course.best, course.best_epoch, course.since_best, best = score, course.epoch, 0, _copy(network)
                row = {
                    "epoch": course.epoch,
                    "train_loss": train_loss,
                    "val_loss": score.loss,
                    "val_accuracy": score.accuracy,
                }
                course.history.append(row)
                if checkpoint is not None:
                    _save(checkpoint, network, optimizer, learned_from, course, best)
                advance(0, f"epoch {course.epoch}/{plan.epochs}, validation {score.accuracy:.1%}")
    except KeyboardInterrupt:
        if course.best is None:
            raise
        course.interrupted = True
    network.load_state_dict(best)
    network.eval()
    return course


def _one_epoch(
    fabric: Fabric,
    network: Network,
    engine: nn.Module,
    optimizer: torch.optim.Optimizer,
    plan: Plan,
    config: Config,
    material: Material,
    epoch: int,
    batches: Iterator[Shown],
    advance: Advance,
) -> float:
    """The epoch's mean training loss. All randomness depends on seed and epoch alone, so that it can be redone."""
    network.train()  # not the engine: what is frozen in the network stays in evaluation mode
    torch.manual_seed(view_seed(config.seed, epoch, "steps"))
    weights = None if material.class_weights is None else material.class_weights.to(fabric.device)
    losses: list[Tensor] = []
    total = torch.zeros((), device=fabric.device)
    first = epoch * plan.steps_per_epoch
    for step, batch in zip(range(first, first + plan.steps_per_epoch), batches, strict=False):
        _set_rates(optimizer, schedule(step, plan.steps, round(config.warmup * plan.steps)))
        inputs = batch.inputs
        targets = material.labels[batch.index].to(fabric.device)
        # A picture counts by its class. The loss's own weights would weigh the smoothed share of each class by that
        # class, and so teach a common picture the rare one.
        counts = torch.ones(len(targets), device=fabric.device) if weights is None else weights[targets]
        if config.mixup:
            inputs, targets, counts = _mixup(inputs, targets, counts, len(network.head.bias), config.mixup)
        losses_of_batch = nn.functional.cross_entropy(
            engine(inputs).float(), targets, label_smoothing=config.label_smoothing, reduction="none"
        )
        loss = (losses_of_batch * counts).sum() / counts.sum()
        fabric.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        total += loss.detach()
        if len(losses) == LOOK_EVERY or step == first + plan.steps_per_epoch - 1:
            _stop_unless_finite(losses, step, plan, optimizer)
            losses.clear()
        advance(len(batch), "")
    return float(total) / plan.steps_per_epoch


def _validate(inputs: Inputs, material: Material) -> Score:
    logits = inputs.validation_logits()
    return Score(accuracy(logits, material.val_labels), log_loss(logits, material.val_labels, material.class_weights))


def _optimizer(network: Network, plan: Plan, config: Config) -> torch.optim.Optimizer:
    """One group for each stage and for the head, in two halves: norms and biases are not decayed."""
    backbone = network.backbone
    parameters = dict(backbone.model.named_parameters())
    top = len(backbone.stages)
    layers = [
        (plan.lr * plan.stage_decay ** (top - position), [parameters[name] for name in stage.parameters])
        for position, stage in enumerate(backbone.stages)
        if position >= plan.lowest
    ]
    layers.append((plan.lr, list(network.head.parameters())))
    groups: list[dict[str, Any]] = []
    for rate, tensors in layers:
        for decayed in (True, False):
            chosen = [tensor for tensor in tensors if (tensor.ndim > 1) is decayed]
            if chosen:
                decay = config.weight_decay if decayed else 0.0
                groups.append({"params": chosen, "lr": rate, "full_rate": rate, "weight_decay": decay})
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=plan.lr)


def schedule(step: int, steps: int, warmup: int) -> float:
    """Share of the full learning rate: a straight rise over `warmup` steps, then half a cosine down to nothing."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def _set_rates(optimizer: torch.optim.Optimizer, share: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * share


def _mixup(pixels: Tensor, labels: Tensor, counts: Tensor, classes: int, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each picture blended with another of the batch, target and count likewise (Zhang et al. 2018, section 2)."""
    share = torch.distributions.Beta(alpha, alpha).sample().to(pixels.device)
    targets = nn.functional.one_hot(labels, classes).float()
    pixels, targets, counts = (tensor.lerp(tensor.flip(0), 1 - share) for tensor in (pixels, targets, counts))
    return pixels, targets, counts


def _stop_unless_finite(losses: list[Tensor], last_step: int, plan: Plan, optimizer: torch.optim.Optimizer) -> None:
    finite = torch.isfinite(torch.stack(losses))
    if finite.all():
        return
    first_bad = int((~finite).nonzero()[0])
    step = last_step - len(losses) + 1 + first_bad
    value = float(losses[first_bad])
    broken = any(not torch.isfinite(p).all() for group in optimizer.param_groups for p in group["params"])
    cause = (
        f"the weights grew without bound; lower the learning rate (--lr, now {plan.lr:g})"
        if broken
        else "the weights are still finite, so the numbers overflowed on the way; try --precision float32"
    )
    epoch = step // plan.steps_per_epoch + 1
    raise TrainingDiverged(
        f"the training loss became {value} at step {step + 1} of {plan.steps} (epoch {epoch}): {cause}"
    )


def _copy(network: Network) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _save(
    path: Path,
    network: Network,
    optimizer: Any,
    learned_from: dict[str, str],
    course: Course,
    best: dict[str, Tensor],
) -> None:
    """Weights, optimiser and course in one file, so that no crash can part them."""
    tensors = {f"now.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for position, state in optimizer.state_dict()["state"].items():
        for name, tensor in state.items():
            if tensor is not None:
                tensors[f"optimizer.{position}.{name}"] = tensor
    write_tensors(path, tensors, {"course": json.dumps(asdict(course))} | learned_from)


def _restore(
    path: Path, network: Network, optimizer: Any, learned_from: dict[str, str]
) -> tuple[Course, dict[str, Tensor]]:
    try:
        tensors, metadata = read_tensors_and_metadata(path)
    except InputError as error:
        raise InputError(f"{error}; remove it to train again from the start") from error
    if metadata.get("pictures") != learned_from["pictures"]:
        raise InputError(f"{path} is of a run on other pictures; remove it to train again from the start")
    if metadata.get("inputs") != learned_from["inputs"]:
        raise InputError(
            f"{path} was trained on {metadata.get('inputs')}, not {learned_from['inputs']}: "
            "make room for the first, or remove it to train again from the start"
        )
    course = Course(**json.loads(metadata["course"]))
    course.best = None if course.best is None else Score(**course.best)  # type: ignore[arg-type]
    network.load_state_dict(_part(tensors, "now."))
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _part(tensors, "optimizer.").items():
        position, name = key.split(".", 1)
        state.setdefault(int(position), {})[name] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return course, _part(tensors, "best.")


def _part(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def _default(value: float | None, otherwise: float) -> float:
    return otherwise if value is None else value
