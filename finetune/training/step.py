"""One training step: parameter groups, learning-rate schedule, loss of a batch, check of the losses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from finetune.computing.device_stream import sent
from finetune.config import Config
from finetune.errors import TrainingDiverged
from finetune.models.backbone import Network
from finetune.models.device import engine_to_train
from finetune.ranks.exchange import GlobalBatchNorm
from finetune.ranks.group import Ranks
from finetune.training.inputs import TrainingBatch
from finetune.training.plan import Plan, TrainingTask


class TrainStep:
    """Optimiser and loss of a training; a call takes one step.

    Args:
        task: The training.
        learner: Maps a batch's inputs to logits.
        ranks: The processes that take each step together, on their shares of the batch. None for this one alone.
    """

    def __init__(self, task: TrainingTask, learner: nn.Module, ranks: Ranks | None = None):
        config, classes, weights = task.config, task.network.head.out_features, task.data.class_weights
        self._ranks, self._batch_norm_trains = ranks, task.plan.batch_norm_trains
        self._fabric = engine_to_train(task.fabric, task.network, config.precision)
        if ranks is not None:
            self._fabric = ranks.engine(self._fabric)
        self._engine, self.optimizer = self._fabric.setup(learner, optimizer_for(task.network, task.plan, config))
        self._config, self._classes, self._labels = config, classes, task.data.labels
        self._class_weights = None if weights is None else weights.to(self._fabric.device)

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self._fabric.device

    def __call__(self, batch: TrainingBatch, lr_scale: float) -> Tensor:
        """Take a step at `lr_scale` times the plan's learning rates; return the loss before it, on the device."""
        scale_learning_rates(self.optimizer, lr_scale)
        loss = self._loss(batch)
        # DDP averages the gradients of the processes, whose losses add up.
        self._fabric.backward(loss if self._ranks is None else loss * self._ranks.size)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach() if self._ranks is None else self._ranks.total(loss)

    def _loss(self, batch: TrainingBatch) -> Tensor:
        config, weights = self._config, self._class_weights
        inputs = batch.inputs
        targets = sent(self._labels[batch.index], self.device)
        # A picture counts by its class. With the `weight` argument of cross_entropy, the smoothed share of each class
        # would be weighted by that class, and a common picture would pull towards the rare class.
        counts = torch.ones(len(targets), device=self.device) if weights is None else weights[targets]
        if config.mixup:
            inputs, targets, counts = mixup(inputs, targets, counts, self._classes, config.mixup)
        ranks = self._ranks
        with nullcontext() if ranks is None or not self._batch_norm_trains else GlobalBatchNorm():
            logits = self._engine(inputs).float()
        losses = nn.functional.cross_entropy(logits, targets, label_smoothing=config.label_smoothing, reduction="none")
        return (losses * counts).sum() / (counts.sum() if ranks is None else ranks.total(counts.sum()))


def optimizer_for(network: Network, plan: Plan, config: Config) -> Optimizer:
    """Optimiser with a learning rate for each stage that is trained and for the head."""
    backbone = network.backbone
    parameters = dict(backbone.model.named_parameters())
    top = len(backbone.stages)
    layers = [
        (plan.stage_rate(position, top), [parameters[name] for name in stage.parameters])
        for position, stage in enumerate(backbone.stages)
        if position >= plan.lowest
    ]
    layers.append((plan.lr, list(network.head.parameters())))
    groups = [group for rate, tensors in layers for group in parameter_groups(tensors, rate, config.weight_decay)]
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=plan.lr, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=plan.lr)


def parameter_groups(parameters: Iterable[Tensor], lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Parameter groups for an optimiser: weights, then norms and biases without decay. Empty ones are left out.

    Args:
        parameters: Parameters, kept in their order.
        lr: Full learning rate, also kept under "full_rate".
        weight_decay: Weight decay of parameters with two dimensions or more.
    """
    decayed, others = list[Tensor](), list[Tensor]()
    for tensor in parameters:
        (decayed if tensor.ndim > 1 else others).append(tensor)
    groups = (decayed, weight_decay), (others, 0.0)
    return [{"params": group, "lr": lr, "full_rate": lr, "weight_decay": decay} for group, decay in groups if group]


def scale_learning_rates(optimizer: Optimizer, lr_scale: float) -> None:
    """Set the learning rate of each of `parameter_groups` to `lr_scale` times its full one."""
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * lr_scale


def mixup(pixels: Tensor, labels: Tensor, counts: Tensor, classes: int, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Blend each picture with another of the batch; targets (n, classes) and counts (n,) likewise.

    Source: Zhang et al. (2018), section 2.
    """
    share = sent(torch.distributions.Beta(alpha, alpha).sample(), pixels.device)
    targets = nn.functional.one_hot(labels, classes).float()
    pixels, targets, counts = (tensor.lerp(tensor.flip(0), 1 - share) for tensor in (pixels, targets, counts))
    return pixels, targets, counts


def weights_on_cpu(network: nn.Module) -> dict[str, Tensor]:
    """Copy of the state dictionary, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def schedule(step: int, steps: int, warmup: int) -> float:
    """Factor of the full learning rate at `step`, from 0: linear over `warmup` steps, then a half cosine down to 0."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


def check_finite(losses: Sequence[Tensor], last_step: int, steps: int, optimizer: Optimizer, lr: float) -> list[float]:
    """Check the losses of the latest steps.

    Args:
        losses: Scalars of consecutive steps.
        last_step: Step of the last loss, counted from 0.
        steps: Number of all steps.
        optimizer: Holds the weights after the last step.
        lr: Full learning rate, named in the error.

    Returns:
        The losses as numbers.

    Raises:
        TrainingDiverged: If a loss is not finite. The message says which step it was and what to change.
    """
    values: list[float] = torch.stack(list(losses)).tolist()
    bad = next((position for position, value in enumerate(values) if not math.isfinite(value)), None)
    if bad is None:
        return values
    if all(torch.isfinite(tensor).all() for group in optimizer.param_groups for tensor in group["params"]):
        cause = "the weights are still finite, so the numbers overflowed on the way; try --precision float32"
    else:
        cause = f"the weights grew without bound; lower the learning rate (--lr, now {lr:g})"
    step = last_step - len(values) + 2 + bad
    raise TrainingDiverged(f"the training loss became {values[bad]} at step {step} of {steps}: {cause}")
