"""The loop that trains a Siamese network: pairs inside a batch, averaged weights, validation, resume."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from lightning_fabric import Fabric
from torch import Tensor, nn

from fewshot.embedding.augmentation import distort
from fewshot.embedding.distortions import DISTORTIONS
from fewshot.embedding.framing import FramedPictures, render
from fewshot.evaluation.episodes import arrange
from fewshot.training.config import SiameseConfig
from fewshot.training.losses import Siamese
from fewshot.training.training_data import SiameseData, draw
from finetune.data.transforms import view_seed
from finetune.errors import InputError, TrainingDiverged
from finetune.files import read_tensors_and_metadata, write_tensors
from finetune.progress import Display
from finetune.training.step import schedule

# How often in a run the averaged weights are validated and everything is kept on disk, but not in fewer steps than.
LOOKS, LEAST_BETWEEN = 30, 50
# Every so many steps the loss is looked at and the parts of a step are timed: both wait for the device.
LOOK_EVERY = 16
# Seconds after which the timing of steps ends, though fewer were timed than wanted.
TIMING = 5.0
# Pictures that are timed to estimate how long a validation takes.
TIMED = 128
# Share of the steps that are at the early side, where there is one.
EARLY = 0.7


@dataclass(frozen=True, eq=False)
class Study:
    """What is to be done: the network with its loss, what it learns from and how, at `side` pixels, so many steps."""

    siamese: Siamese
    material: SiameseData
    recipe: SiameseConfig
    side: int
    steps: int

    @property
    def batch_size(self) -> float:
        """Pictures of a step, on average: a group may have fewer classes than are wanted of it."""
        sizes = torch.bincount(self.material.groups).float()
        ways = float((sizes * sizes.clamp_max(self.recipe.ways)).sum() / sizes.sum())
        return self.recipe.alphabets * ways * self.recipe.shots

    def side_at(self, step: int) -> int:
        """Of the pictures learned from at `step`, in pixels."""
        early = self.recipe.early_side
        return early if early is not None and step < EARLY * self.steps else self.side


@dataclass
class SiameseState:
    """How far training has come. best: the highest validation accuracy, at `best_step`; None where nothing judges.

    waiting: share of the time spent on making batches rather than in the network, of the steps that were timed.
    seconds: of the loop, validations included. validating: seconds of the validations.
    """

    step: int = 0
    best: float | None = None
    best_step: int = 0
    seconds: float = 0.0
    waiting: float = 0.0
    validating: float = 0.0
    interrupted: bool = False
    history: list[dict[str, float | None]] = field(default_factory=list)


def train(
    fabric: Fabric, study: Study, *, checkpoint: Path | None, resume: bool, display: Display
) -> tuple[nn.Module, SiameseState]:
    """The encoder with the averaged weights of the best validation result, or with the last where nothing judges, and
    how it went.

    checkpoint: file to keep up to date, and with `resume` to go on from, to the same weights bit for bit on one
    machine's CPU. Ctrl-C ends training early. Raises TrainingDiverged when the loss stops being finite.
    """
    loop, course, best = _Loop(fabric, study), SiameseState(), None
    if resume and checkpoint is not None and checkpoint.exists():
        course, best = _restore(checkpoint, loop)
    often = validations(study.steps)
    looks = {round(study.steps * look / often) for look in range(1, often + 1)}
    began = time.monotonic() - course.seconds
    clock, losses, total = _Clock(fabric.device), list[Tensor](), list[float]()
    try:
        with display.bar("training", round(study.steps * study.batch_size)) as advance:
            advance(round(course.step * study.batch_size), "")
            while course.step < study.steps:
                losses.append(loop.step(course.step, clock if course.step % LOOK_EVERY == 0 else None))
                course.step += 1
                advance(loop.batch_size, "")
                if len(losses) == LOOK_EVERY or course.step in looks:
                    total += _finite(losses, course.step, study.recipe)
                    losses.clear()
                if course.step not in looks:
                    continue
                before = time.monotonic()
                accuracy = loop.accuracy()
                course.validating += time.monotonic() - before
                if accuracy is not None and (course.best is None or accuracy > course.best):
                    course.best, course.best_step, best = accuracy, course.step, _copy(loop.averaged)
                course.seconds, course.waiting = time.monotonic() - began, clock.share("batch")
                mean = sum(total) / len(total)
                total.clear()
                course.history.append(
                    {"step": course.step, "loss": mean, "accuracy": accuracy, "seconds": round(course.seconds, 1)}
                )
                if checkpoint is not None:
                    _save(checkpoint, loop, course, best)
                judged = "" if accuracy is None else f", validation {study.material.judged_by} {accuracy:.1%}"
                advance(0, f"step {course.step}/{study.steps}, loss {mean:.3f}{judged}")
    except KeyboardInterrupt:
        if not course.history:
            raise
        course.interrupted = True
    if best is not None:
        loop.averaged.load_state_dict(best)
    return loop.averaged, course


def validations(steps: int) -> int:
    """How often a training of so many steps validates the averaged weights."""
    return max(1, min(LOOKS, steps // LEAST_BETWEEN))


def seconds_per_validation(fabric: Fabric, study: Study) -> float:
    """Estimated duration of one validation, from a few training pictures; 0 where nothing judges."""
    if study.material.judge is None:
        return 0.0
    loop, some = _Loop(fabric, copy.deepcopy(study)), study.material.pictures[slice(0, TIMED)]
    width = loop.vectors(some).shape[1]  # the first call sets things up
    started = time.perf_counter()
    loop.vectors(some)
    each, shown = (time.perf_counter() - started) / len(some), 0

    def stand_in(framed: FramedPictures) -> Tensor:
        nonlocal shown
        shown += len(framed)
        return torch.randn(len(framed), width, generator=torch.Generator().manual_seed(0)).to(fabric.device)

    started = time.perf_counter()
    study.material.judge(stand_in)
    return shown * each + time.perf_counter() - started


def seconds_per_step(fabric: Fabric, study: Study, steps: int = 16) -> float:
    """Mean duration of a training step on this machine as it is now, from a copy that is thrown away.

    At most `steps` steps run at each size of picture, the first quarter untimed. On a slow machine both parts end
    early, once they have taken TIMING seconds.
    """
    stages = [(study.side, 1.0)] if study.recipe.early_side is None else [(study.recipe.early_side, EARLY)]
    if study.recipe.early_side is not None:
        stages.append((study.side, 1 - EARLY))
    mean = 0.0
    for side, share in stages:
        tried = replace(copy.deepcopy(study), side=side, recipe=replace(study.recipe, early_side=None))
        loop, step = _Loop(fabric, tried), 0
        for part in (steps // 4, steps - steps // 4):
            # The first part sets things up.
            clock, first = _Clock(fabric.device), step
            while step == first or (step - first < part and sum(clock.seconds.values()) < TIMING):
                loop.step(step, clock)
                step += 1
        mean += share * sum(clock.seconds.values()) / (step - first)
    return mean


class _Loop:
    """What moves while training: the network, its optimiser, the averaged weights. Whatever is random in a step depends
    on the seed and the step alone, so that it can be done again."""

    def __init__(self, fabric: Fabric, study: Study):
        self.fabric, self.study = fabric, study
        self.siamese = study.siamese.to(fabric.device).train()
        self.siamese.encoder.to(memory_format=torch.channels_last)
        self.averaged = copy.deepcopy(self.siamese.encoder).eval()
        self.engine, self.optimizer = fabric.setup(self.siamese, optimizer_for(self.siamese, study.recipe))
        material = study.material
        self.pictures = material.pictures.to(fabric.device)
        self.pool = arrange(material.classes, material.groups[material.classes])
        self.batch_size = 0  # of the last step

    def step(self, step: int, clock: _Clock | None = None) -> Tensor:
        """One batch learned from; the loss, detached."""
        recipe = self.study.recipe
        with _part(clock, "batch"):
            pictures, labels = self.batch(step)
        self.batch_size = len(labels)
        with _part(clock, "network"):
            share = schedule(step, self.study.steps, round(recipe.warmup * self.study.steps))
            for group in self.optimizer.param_groups:
                group["lr"] = recipe.lr * share
            loss: Tensor = self.engine(pictures, labels)
            self.fabric.backward(loss)
            self.optimizer.step()
            self.optimizer.zero_grad()
            # Less is kept of the first ones, which were random.
            self._follow(min(recipe.ema, (1 + step) / (10 + step)))
        return loss.detach()

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Distorted pictures (n, channels, side, side) and labels (n,) of `step`, on the device."""
        recipe, material = self.study.recipe, self.study.material
        generator = torch.Generator().manual_seed(view_seed(recipe.seed, step, "batch"))
        drawn = draw(
            self.pool,
            groups=recipe.alphabets,
            ways=recipe.ways,
            shots=recipe.shots,
            symmetries=recipe.symmetries or material.symmetries,
            generator=generator,
        )
        distortion = DISTORTIONS[recipe.distortion or material.distortion]
        chosen = self.pictures[drawn.rows.to(self.fabric.device)]
        pictures = distort(chosen, drawn.symmetry, distortion, self.study.side_at(step), generator)
        return pictures.contiguous(memory_format=torch.channels_last), drawn.labels.to(self.fabric.device)

    def accuracy(self) -> float | None:
        """Of the averaged weights, on what judges."""
        judge = self.study.material.judge
        return None if judge is None else judge(self.vectors)

    @torch.no_grad()
    def vectors(self, framed: FramedPictures) -> Tensor:
        """Of framed pictures, by the averaged weights."""
        seen = render(framed.to(self.fabric.device), self.study.side)
        with self.fabric.autocast():
            return F.normalize(self.averaged(seen.contiguous(memory_format=torch.channels_last)).float(), dim=1)

    @torch.no_grad()
    def _follow(self, keep: float) -> None:
        """The averaged weights a step further; statistics of batch norm are averages already."""
        now = self.siamese.encoder
        torch._foreach_lerp_(list(self.averaged.parameters()), list(now.parameters()), 1 - keep)
        for buffer, current in zip(self.averaged.buffers(), now.buffers(), strict=True):
            buffer.copy_(current)


def optimizer_for(siamese: Siamese, recipe: SiameseConfig) -> torch.optim.Optimizer:
    """AdamW over the encoder and what the loss may have learn; norms and biases are not decayed."""
    parameters = list(siamese.parameters())
    return torch.optim.AdamW(
        [
            {"params": [tensor for tensor in parameters if tensor.ndim > 1], "weight_decay": recipe.weight_decay},
            {"params": [tensor for tensor in parameters if tensor.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=recipe.lr,
    )


class _Clock:
    """Adds up what the parts of a step take, the device's work included."""

    def __init__(self, device: torch.device):
        self.device = device
        self.seconds: dict[str, float] = {}

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._wait()
        started = time.perf_counter()
        yield
        self._wait()
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - started

    def share(self, name: str) -> float:
        return self.seconds.get(name, 0.0) / max(1e-9, sum(self.seconds.values()))

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def _part(clock: _Clock | None, name: str) -> AbstractContextManager[None]:
    return nullcontext() if clock is None else clock.part(name)


def _finite(losses: list[Tensor], step: int, recipe: SiameseConfig) -> list[float]:
    values = torch.stack(losses)
    if not values.isfinite().all():
        first = int((~values.isfinite()).nonzero()[0])
        raise TrainingDiverged(
            f"the training loss became {float(values[first])} at step {step - len(losses) + first + 1}: lower the "
            f"learning rate (--lr, now {recipe.lr:g}), or try --precision float32, in another --out"
        )
    return [float(value) for value in values]


def _copy(network: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().clone() for name, tensor in network.state_dict().items()}


def _save(path: Path, loop: _Loop, course: SiameseState, best: dict[str, Tensor] | None) -> None:
    """Weights, averaged weights, optimiser and course in one file, so that no crash can part them."""
    tensors = {f"now.{name}": tensor for name, tensor in loop.siamese.state_dict().items()}
    tensors |= {f"averaged.{name}": tensor for name, tensor in loop.averaged.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in (best or {}).items()}
    for position, state in loop.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{position}.{name}": tensor for name, tensor in state.items()}
    write_tensors(path, tensors, {"course": json.dumps(asdict(course)), "pictures": loop.study.material.fingerprint})


def _restore(path: Path, loop: _Loop) -> tuple[SiameseState, dict[str, Tensor] | None]:
    try:
        tensors, metadata = read_tensors_and_metadata(path)
    except InputError as error:
        raise InputError(f"{error}; remove it to train again from the start") from error
    if metadata.get("pictures") != loop.study.material.fingerprint:
        raise InputError(f"{path} is of a run on other pictures; remove it to train again from the start")
    loop.siamese.load_state_dict(_under(tensors, "now."))
    loop.averaged.load_state_dict(_under(tensors, "averaged."))
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in _under(tensors, "optimizer.").items():
        position, name = key.split(".", 1)
        state.setdefault(int(position), {})[name] = tensor
    loop.optimizer.load_state_dict({"state": state, "param_groups": loop.optimizer.state_dict()["param_groups"]})
    return SiameseState(**json.loads(metadata["course"])), _under(tensors, "best.") or None


def _under(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
