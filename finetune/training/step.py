"""One step of learning by gradient: parameter groups, the loss of a batch, the step itself."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from finetune.config import Config
from finetune.models.backbone import Network
from finetune.models.device import engine_to_train
from finetune.training.inputs import TrainingBatch, TrainingData
from finetune.training.plan import Plan


class TrainStep:
    """Steps that a network takes. learner: what maps a batch's inputs to logits, made of the network's parameters."""

    def __init__(
        self, fabric: Fabric, network: Network, learner: nn.Module, plan: Plan, config: Config, material: TrainingData
    ):
        self.network = network
        self._fabric = engine_to_train(fabric, network, config.precision)
        self._engine, self.optimizer = self._fabric.setup(learner, optimizer_for(network, plan, config))
        self._config, self._labels = config, material.labels
        weights = material.class_weights
        self._class_weights = None if weights is None else weights.to(self._fabric.device)

    @property
    def device(self) -> torch.device:
        return self._fabric.device

    def take(self, batch: TrainingBatch, share: float) -> Tensor:
        """One step at `share` of the plan's learning rates; the batch's loss before it, on the device."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_rate"] * share
        loss = self._loss(batch)
        self._fabric.backward(loss)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def _loss(self, batch: TrainingBatch) -> Tensor:
        config, weights = self._config, self._class_weights
        inputs = batch.inputs
        targets = self._labels[batch.index].to(self.device)
        # A picture counts by its class. The loss's own weights would weigh the smoothed share of each class by that
        # class, and so teach a common picture the rare one.
        counts = torch.ones(len(targets), device=self.device) if weights is None else weights[targets]
        if config.mixup:
            inputs, targets, counts = mixup(inputs, targets, counts, len(self.network.head.bias), config.mixup)
        losses = nn.functional.cross_entropy(
            self._engine(inputs).float(), targets, label_smoothing=config.label_smoothing, reduction="none"
        )
        return (losses * counts).sum() / counts.sum()

    def weights_are_finite(self) -> bool:
        return all(torch.isfinite(p).all() for group in self.optimizer.param_groups for p in group["params"])


def optimizer_for(network: Network, plan: Plan, config: Config) -> torch.optim.Optimizer:
    """One group for each stage and for the head, in two halves: norms and biases are not decayed."""
    backbone = network.backbone
    parameters = dict(backbone.model.named_parameters())
    top = len(backbone.stages)
    layers = [
        (plan.stage_rate(position, top), [parameters[name] for name in stage.parameters])
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


def mixup(pixels: Tensor, labels: Tensor, counts: Tensor, classes: int, alpha: float) -> tuple[Tensor, Tensor, Tensor]:
    """Each picture blended with another of the batch, target and count likewise (Zhang et al. 2018, section 2)."""
    share = torch.distributions.Beta(alpha, alpha).sample().to(pixels.device)
    targets = nn.functional.one_hot(labels, classes).float()
    pixels, targets, counts = (tensor.lerp(tensor.flip(0), 1 - share) for tensor in (pixels, targets, counts))
    return pixels, targets, counts


def copy_of(network: Network) -> dict[str, Tensor]:
    """The network's weights as they now are, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def schedule(step: int, steps: int, warmup: int) -> float:
    """Share of the full learning rate: a straight rise over `warmup` steps, then half a cosine down to nothing."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))
