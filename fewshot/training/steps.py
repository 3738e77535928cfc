"""The steps of Siamese training: the network, its optimiser and averaged weights, batches, and what they embed."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from timm.utils import ModelEmaV3
from torch import Tensor, nn

from fewshot.embedding.augmentation import changed, draw_changes
from fewshot.embedding.distortions import DISTORTIONS
from fewshot.embedding.framing import FramedPictures, render
from fewshot.evaluation.episodes import arrange
from fewshot.training.batches import draw
from fewshot.training.captured import CapturedSteps
from fewshot.training.config import SiameseConfig
from fewshot.training.losses import Contrastive, Siamese
from fewshot.training.step_clock import StepClock
from fewshot.training.step_numbers import THREADS, Layout, StepNumbers, drawn_ahead
from fewshot.training.training_data import SiameseData
from finetune.computing.device_stream import copied_ahead, sent
from finetune.data.transforms import view_seed
from finetune.errors import TrainingDiverged
from finetune.models.device import open_engine
from finetune.progress import Advance, Display
from finetune.ranks.exchange import GlobalBatchNorm, share
from finetune.ranks.group import Ranks, current
from finetune.training.checkpoint import Checkpoint
from finetune.training.step import check_finite, parameter_groups, scale_learning_rates, schedule

# Steps between two checks of the loss, which wait for the device; on a CPU also between two timings of a step.
CHECK_EVERY = 16
# Seconds after which the timing of steps ends early.
TIMING = 5.0
# Pictures that are embedded at once.
AT_ONCE = 512
# Share of the steps with the early side, where there is one.
EARLY = 0.7


@dataclass(frozen=True, eq=False)
class SiameseTask:
    """A Siamese network and everything that its training depends on.

    Attributes:
        fabric: Device and precision.
        siamese: Encoder and loss. Training changes their weights.
        data: Training and validation pictures.
        config: The run's options.
        side: Side of the input in pixels.
        steps: Number of training steps.
    """

    fabric: Fabric
    siamese: Siamese
    data: SiameseData
    config: SiameseConfig
    side: int
    steps: int

    @property
    def alphabets(self) -> int:
        """Number of groups drawn for a batch."""
        return self.config.alphabets or self.data.alphabets

    @property
    def ways(self) -> int:
        """Most classes drawn from each group."""
        return self.config.ways or self.data.ways

    @property
    def batch_size(self) -> float:
        """Mean number of pictures in a step: groups with fewer than `ways` classes give fewer."""
        sizes = torch.bincount(self.data.groups).float()
        ways = float((sizes * sizes.clamp_max(self.ways)).sum() / sizes.sum())
        return self.alphabets * ways * self.config.shots

    def side_at(self, step: int) -> int:
        """Side of the training pictures at `step`, in pixels."""
        early = self.config.early_side
        return early if early is not None and step < EARLY * self.steps else self.side


@contextmanager
def opened_steps(
    task: SiameseTask, saved: Checkpoint | None = None, step: int = 0, display: Display | None = None
) -> Iterator[SiameseSteps]:
    """The loop of a training, whose steps all processes of the job take together.

    saved: A checkpoint to continue from, written after `step`.
    """
    ranks = current()
    if ranks is None:
        loop = SiameseSteps(task, display=display)
        loop.restore(saved, step)
        try:
            yield loop
        finally:
            loop.close()
        return
    data = replace(task.data, validation=None, held_out=None)
    sent = replace(task, fabric=None, siamese=copy.deepcopy(task.siamese).cpu(), data=data)  # type: ignore[arg-type]
    with ranks.asked(_take_steps, sent):
        loop = SiameseSteps(task, ranks)
        loop.restore(saved, step)
        ranks.broadcast((loop.siamese.state_dict(), loop.optimizer.state_dict()))
    with ranks.stepping():
        yield loop


def _take_steps(ranks: Ranks, task: SiameseTask) -> None:
    """Take the steps of rank 0, on another rank."""
    loop = SiameseSteps(replace(task, fabric=open_engine(ranks.device.type, task.config.precision)), ranks)
    weights, moments = ranks.broadcast(None)
    loop.siamese.load_state_dict(weights)
    loop.optimizer.load_state_dict(moments)
    for step, _ in ranks.steps():
        loop.step = step
        loop.take_step()


class SiameseSteps:
    """What training changes: the network, its optimiser, the averaged weights, the number of steps.

    All randomness of a step depends on the seed and the step alone, so that a step can be repeated.

    ranks: The processes that take each step together. Each embeds its share of the batch; the loss is that of the pairs
    of all. None for this process alone.

    streamed: Whether the numbers of a batch are drawn ahead in threads, and all else happens on the device, without
    waiting for it. None for what suits the device: one process with a GPU.
    """

    def __init__(
        self,
        task: SiameseTask,
        ranks: Ranks | None = None,
        *,
        streamed: bool | None = None,
        display: Display | None = None,
    ):
        self.task, config, data, device = task, task.config, task.data, task.fabric.device
        self.streamed = ranks is None and device.type == "cuda" if streamed is None else streamed
        self.siamese = task.siamese.to(device).train()
        self.siamese.encoder.to(memory_format=torch.channels_last)
        self._ema = ModelEmaV3(self.siamese.encoder, exclude_buffers=True)
        groups = parameter_groups(self.siamese.parameters(), config.lr, config.weight_decay)
        self.ranks, self._fabric = ranks, task.fabric if ranks is None else ranks.engine(task.fabric)
        optimizer = torch.optim.AdamW(groups, lr=config.lr, fused=True if self.streamed else None)
        self.engine, self.optimizer = self._fabric.setup(self.siamese, optimizer)
        self.pictures = data.pictures.to(device)
        self.pool = arrange(data.classes, data.groups[data.classes])
        self.step, self.batch_size, self.clock = 0, 0, StepClock(device)
        self._batches: Iterator[tuple[Layout, Tensor]] | None = None
        self._threads: ThreadPoolExecutor | None = None
        loss, steady = self.siamese.loss, self.siamese.miner is None and isinstance(self.siamese.loss, Contrastive)
        if isinstance(loss, Contrastive):
            loss.fixed_shapes = self.streamed
        self.steps = CapturedSteps[Layout](
            lambda memory, layout: self._learn(*self._shown(layout.unpacked(memory))),
            list(self.siamese.parameters()),
            capture=self.streamed and steady and device.type == "cuda",
            say=(display or Display()).say,
        )

    def close(self) -> None:
        """End the threads that draw ahead."""
        if self._threads is not None:
            self._threads.shutdown(cancel_futures=True)
        self._threads = self._batches = None

    @property
    def averaged(self) -> nn.Module:
        """The encoder with the averaged weights, in evaluation mode."""
        encoder: nn.Module = self._ema.module
        return encoder

    def weights(self) -> dict[str, dict[str, Tensor]]:
        """State dictionaries for a checkpoint."""
        return {"now": self.siamese.state_dict(), "averaged": self.averaged.state_dict()}

    def restore(self, saved: Checkpoint | None, step: int) -> None:
        """Continue from a checkpoint that was written after `step`, if there is one."""
        if saved is None:
            return
        saved.restore("now", self.siamese)
        saved.restore("averaged", self.averaged)
        saved.restore_optimizer(self.optimizer)
        self.step = step

    def train_until(self, step: int, advance: Advance) -> float:
        """Train up to `step`; return the mean loss."""
        losses, unchecked = list[float](), list[Tensor]()
        on_cpu = self.task.fabric.device.type == "cpu"
        self.clock.stop()
        while self.step < step:
            unchecked.append(self.train_step(timed=not on_cpu or self.step % CHECK_EVERY == 0))
            advance(self.batch_size, "")
            if len(unchecked) == CHECK_EVERY or self.step == step:
                losses += check_finite(unchecked, self.step - 1, self.task.steps, self.optimizer, self.task.config.lr)
                unchecked.clear()
        return sum(losses) / len(losses)

    def train_step(self, *, timed: bool = False) -> Tensor:
        """Train on the next batch, with the other processes; return its loss, detached."""
        with nullcontext() if self.ranks is None else self.ranks.step(self.step, 0.0):
            return self.take_step(timed=timed)

    def take_step(self, *, timed: bool = False) -> Tensor:
        """The part of this process in a step; its loss, detached."""
        config, ranks = self.task.config, self.ranks
        if timed:
            self.clock.begin()
        if self.streamed:
            layout, memory = self._next()
            self.batch_size = layout.parts[0][1][0]
        else:
            pictures, labels = self.batch(self.step)
            self.batch_size = len(labels)
        if timed:
            self.clock.end("batch")
        warmup = round(config.warmup * self.task.steps)
        scale_learning_rates(self.optimizer, schedule(self.step, self.task.steps, warmup))
        loss = self.steps(memory, layout) if self.streamed else self._learn(pictures, labels)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if ranks is None or ranks.rank == 0:
            # The first weights are random, so their share falls faster.
            self._ema.decay = min(config.ema, (1 + self.step) / (10 + self.step))
            self._ema.update(self.siamese.encoder)
        if timed:
            self.clock.end("network")
        self.step += 1
        return loss

    def _learn(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """The loss of a batch, detached; gradients are set."""
        ranks = self.ranks
        counts = None if ranks is None else [len(share(len(labels), rank, ranks.size)) for rank in range(ranks.size)]
        with nullcontext() if ranks is None else GlobalBatchNorm():
            loss: Tensor = self.engine(pictures, labels, counts)
        self._fabric.backward(loss)
        return loss.detach()

    def time_steps(self, most: int) -> float:
        """Train at least one step and at most `most`, for about TIMING seconds; return the mean duration of a step."""
        self.clock, first, started = StepClock(self.task.fabric.device), self.step, time.perf_counter()
        while self.step == first or (self.step - first < most and time.perf_counter() - started < TIMING):
            self.train_step(timed=True)
        return self.clock.total() / (self.step - first)

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Distorted pictures (n, channels, side, side) and labels (n,) of `step`, on the device.

        With other processes, the pictures are the share of this one, and the labels are those of all.
        """
        return self._shown(self._numbers(step))

    def _next(self) -> tuple[Layout, Tensor]:
        """The numbers of the current step, packed, on the device."""
        if self._batches is None:
            self._threads = ThreadPoolExecutor(THREADS)
            drawn = drawn_ahead(lambda step: self._numbers(step).packed(), self.step, self._threads)
            self._batches = copied_ahead(drawn, self.task.fabric.device)
        return next(self._batches)

    def _shown(self, numbers: StepNumbers) -> tuple[Tensor, Tensor]:
        device = self.task.fabric.device
        pictures = changed(self.pictures[sent(numbers.rows, device)], numbers.changes, numbers.side)
        return pictures.contiguous(memory_format=torch.channels_last), sent(numbers.labels, device)

    def _numbers(self, step: int) -> StepNumbers:
        """What is random in `step`, on the CPU."""
        config, data = self.task.config, self.task.data
        generator = torch.Generator().manual_seed(view_seed(config.seed, step, "batch"))
        drawn = draw(
            self.pool,
            groups=self.task.alphabets,
            ways=self.task.ways,
            shots=config.shots,
            symmetries=config.symmetries or data.symmetries,
            generator=generator,
        )
        distortion = DISTORTIONS[config.distortion or data.distortion]
        part = slice(None)
        if self.ranks is not None:
            own = share(len(drawn.rows), self.ranks.rank, self.ranks.size)
            part = slice(own.start, own.stop)
        changes = draw_changes(drawn.symmetry, distortion, data.pictures.pictures.shape[1], generator)
        return StepNumbers(drawn.rows[part], drawn.labels, changes[part], self.task.side_at(step))

    def accuracy(self) -> float | None:
        """Validation accuracy of the averaged weights. None without validation."""
        validation = self.task.data.validation
        if validation is None:
            return None
        vectors = self.vectors(validation.pictures)
        if not vectors.isfinite().all():
            raise TrainingDiverged(
                f"the embeddings of the validation pictures are not finite after step {self.step}: "
                f"lower the learning rate (--lr, now {self.task.config.lr:g})"
            )
        return validation.accuracy(vectors)

    @torch.no_grad()
    def vectors(self, pictures: FramedPictures) -> Tensor:
        """Embeddings (n, d) of unit length by the averaged weights, on the device."""
        return torch.cat([self._embed(pictures[slice(at, at + AT_ONCE)]) for at in range(0, len(pictures), AT_ONCE)])

    def _embed(self, pictures: FramedPictures) -> Tensor:
        fabric = self.task.fabric
        rendered = render(pictures.to(fabric.device), self.task.side).contiguous(memory_format=torch.channels_last)
        with fabric.autocast():
            return F.normalize(self.averaged(rendered).float(), dim=1)
