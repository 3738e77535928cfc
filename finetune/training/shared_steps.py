"""Training steps on several processes: rank 0 runs the loop, and the others take each step with it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from finetune.config import Config
from finetune.data.transforms import view_seed
from finetune.features.cache import Activations
from finetune.features.cache_keys import DTYPES
from finetune.models.backbone import Network
from finetune.models.device import open_engine
from finetune.ranks.exchange import mirrored_share, share
from finetune.ranks.group import Ranks
from finetune.training.cached_inputs import KEPT_AS, FrozenInputs, cut_below
from finetune.training.inputs import Inputs, PictureInputs, Share, TrainingData
from finetune.training.plan import Plan, TrainingTask
from finetune.training.step import TrainStep

# Bytes of activations that are sent at once.
_AT_ONCE = 64 << 20


@dataclass(frozen=True)
class _Job:
    """What other ranks need for a training. shape: of all activations; None for inputs that are pictures."""

    network: Network
    plan: Plan
    config: Config
    data: TrainingData
    first_epoch: int
    epochs: int
    shape: tuple[int, int, int] | None


@contextmanager
def shared_steps(
    ranks: Ranks,
    task: TrainingTask,
    inputs: Inputs,
    make_step: Callable[[Ranks], TrainStep],
    *,
    first_epoch: int,
    epochs: int,
) -> Iterator[TrainStep]:
    """Inside, the others take every step of rank 0 with it.

    Args:
        ranks: All processes.
        task: The training.
        inputs: Source of its batches.
        make_step: Makes the step of rank 0. All ranks start with its weights and its optimiser's state.
        first_epoch: First epoch that is trained.
        epochs: Most epochs.

    Yields:
        The step of rank 0, to be taken inside `ranks.step`.
    """
    data, frozen = task.data, inputs if isinstance(inputs, FrozenInputs) else None
    job = _Job(
        deepcopy(task.network).cpu(),
        task.plan,
        task.config,
        replace(data, val=replace(data.val, sources=()), val_labels=data.val_labels[:0], val_hashes=()),
        first_epoch,
        epochs,
        None if frozen is None else _shape(frozen.train),
    )
    with ranks.asked(_take_steps, job):
        if frozen is not None:
            _send(ranks, frozen.train)
        step = make_step(ranks)
        _same_state(ranks, task.network, step)
    with ranks.stepping():
        yield step


def _same_state(ranks: Ranks, network: Network, step: TrainStep) -> None:
    """All ranks continue with the weights and the optimiser's state of rank 0."""
    weights, moments = ranks.broadcast((network.state_dict(), step.optimizer.state_dict()) if ranks.rank == 0 else None)
    if ranks.rank > 0:
        network.load_state_dict(weights)
        step.optimizer.load_state_dict(moments)


def share_of(ranks: Ranks, config: Config) -> Share:
    """The part of each batch that this process takes."""
    part = mirrored_share if config.mixup else share
    return lambda n: part(n, ranks.rank, ranks.size)


def _take_steps(ranks: Ranks, job: _Job) -> None:
    """Take the steps of rank 0, on another rank."""
    fabric = open_engine(ranks.device.type, job.config.precision)
    network = job.network.to(fabric.device)
    task = TrainingTask(fabric, network, job.plan, job.config, job.data)
    inputs: Inputs
    if job.shape is None:
        inputs = PictureInputs(fabric, network, job.config, job.data)
    else:
        cut, none = cut_below(network, job.plan.lowest), Activations([], *_rows(0))
        train = Activations([_received(ranks, job.shape)], *_rows(job.shape[0]))
        inputs = FrozenInputs(fabric, network, cut, job.config, job.data, job.shape[1], train, none)
    step = TrainStep(task, inputs.learner, ranks)
    _same_state(ranks, network, step)
    batches = inputs.batches(job.first_epoch, job.epochs, share_of(ranks, job.config))
    last = -1
    for epoch, lr_scale in ranks.steps():
        if epoch != last:
            last = epoch
            network.train()
            torch.manual_seed(view_seed(job.config.seed, epoch, "steps"))
        step(next(batches), lr_scale)


# --- frozen activations, sent once ------------------------------------------------------------------------------------


def _rows(n: int) -> tuple[np.ndarray[tuple[int], np.dtype[np.int64]], np.ndarray[tuple[int], np.dtype[np.int64]]]:
    return np.zeros(n, dtype=np.int64), np.arange(n, dtype=np.int64)


def _shape(activations: Activations) -> tuple[int, int, int]:
    first = activations[:1]
    return len(activations), first.shape[1], first.shape[2]


def _parts(shape: tuple[int, int, int]) -> Iterator[slice]:
    count = max(1, _AT_ONCE // max(1, shape[1] * shape[2] * DTYPES[KEPT_AS].itemsize))
    return (slice(at, min(at + count, shape[0])) for at in range(0, shape[0], count))


def _send(ranks: Ranks, activations: Activations) -> None:
    for part in _parts(_shape(activations)):
        ranks.broadcast_tensor(activations[part])


def _received(ranks: Ranks, shape: tuple[int, int, int]) -> Tensor:
    found = torch.empty(shape, dtype=DTYPES[KEPT_AS])
    for part in _parts(shape):
        ranks.broadcast_tensor(found[part])
    return found
