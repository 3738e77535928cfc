"""The loop that trains a Siamese network: pairs inside a batch, averaged weights, validation, resume."""

from __future__ import annotations

import copy
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fewshot.training.steps import EARLY, SiameseSteps, SiameseTask, opened_steps
from fewshot.training.training_data import SiameseData
from finetune.metrics import Count, Finite, Share
from finetune.progress import Display
from finetune.ranks.start import goes_on_alone
from finetune.training.checkpoint import CheckpointFile
from finetune.training.step import weights_on_cpu

# Most validations of a training, and fewest steps between two.
VALIDATIONS, LEAST_BETWEEN = 30, 50
# Pictures that are timed to estimate the duration of a validation.
TIMED = 128


@dataclass(frozen=True)
class SiameseState:
    """Progress of a training, or its result.

    Attributes:
        step: Finished steps.
        best: Highest validation accuracy. None without validation.
        best_step: Step of `best`. 0 without validation.
        seconds: Duration of the loop, validations included.
        waiting: Share of the time of a step that is spent on making the batch; on a GPU, on waiting for its numbers.
        validating: Duration of the validations in seconds.
        interrupted: Whether Ctrl-C ended the training.
        history: One row per validation.
    """

    step: Count = 0
    best: Share | None = None
    best_step: Count = 0
    seconds: Finite = 0.0
    waiting: Finite = 0.0
    validating: Finite = 0.0
    interrupted: bool = False
    history: tuple[dict[str, Finite | Count | None], ...] = ()


def train(task: SiameseTask, *, checkpoint: Path | None = None, display: Display) -> tuple[nn.Module, SiameseState]:
    """Train the network.

    Args:
        task: The network, its pictures and the number of steps.
        checkpoint: File that is written at every validation. Training continues from it where it exists; on one
            machine's CPU it ends with the same bits as a training without interruption.
        display: Shows progress.

    Returns:
        The encoder with the averaged weights of the best validation, or with the last ones without validation; and how
        training went. Ctrl-C after the first validation ends training early and sets `interrupted`.

    Raises:
        TrainingDiverged: If the loss or the embeddings stop being finite.
        InputError: If the checkpoint belongs to another run or is damaged.
        KeyboardInterrupt: On Ctrl-C before the first validation.
    """
    file = CheckpointFile(checkpoint, {"pictures": task.data.fingerprint})
    saved, state = file.read(), SiameseState()
    if saved is not None:
        state = saved.state_as(SiameseState)
    with opened_steps(task, saved, state.step, display) as loop:
        best = saved.weights_for("best", loop.averaged) if saved is not None and state.best is not None else {}
        return _trained(loop, file, state, best, display)


def _trained(
    loop: SiameseSteps, file: CheckpointFile, state: SiameseState, best: dict[str, Tensor], display: Display
) -> tuple[nn.Module, SiameseState]:
    """The steps after those of `state`. best: averaged weights of the best validation so far."""
    task, started = loop.task, time.monotonic() - state.seconds
    try:
        with display.bar("training", round(task.steps * task.batch_size)) as advance:
            advance(round(state.step * task.batch_size), "")
            for step in validation_steps(task.steps):
                if step <= state.step:
                    continue
                loss = loop.train_until(step, advance)
                validated = time.monotonic()
                accuracy = loop.accuracy()
                now = time.monotonic()
                row = {"step": step, "loss": loss, "accuracy": accuracy, "seconds": round(now - started, 1)}
                state = replace(
                    state,
                    step=step,
                    seconds=now - started,
                    waiting=loop.clock.share("batch"),
                    validating=state.validating + now - validated,
                    history=(*state.history, row),
                )
                if accuracy is not None and (state.best is None or accuracy > state.best):
                    state, best = replace(state, best=accuracy, best_step=step), weights_on_cpu(loop.averaged)
                file.save(loop.weights() | {"best": best}, loop.optimizer, asdict(state))
                advance(0, f"step {step}/{task.steps}, loss {loss:.3f}{_in_words(task.data, accuracy)}")
    except KeyboardInterrupt:
        if not state.history or not goes_on_alone():
            raise
        state = replace(state, step=loop.step, interrupted=True)
    if best:
        loop.averaged.load_state_dict(best)
    return loop.averaged, state


def _in_words(data: SiameseData, accuracy: float | None) -> str:
    return "" if data.validation is None else f", validation {data.validation.name} {accuracy:.1%}"


def validation_steps(steps: int) -> list[int]:
    """Steps of a training after which the averaged weights are validated; the last step is one."""
    count = max(1, min(VALIDATIONS, steps // LEAST_BETWEEN))
    return [round(steps * number / count) for number in range(1, count + 1)]


def seconds_per_validation(task: SiameseTask) -> float:
    """Estimated duration of one validation, from a few training pictures. 0 without validation."""
    validation = task.data.validation
    if validation is None:
        return 0.0
    loop = SiameseSteps(_copy(task))
    pictures = task.data.pictures[slice(0, TIMED)]
    width = loop.vectors(pictures).shape[1]  # the first call sets things up
    started = time.perf_counter()
    loop.vectors(pictures)
    each = (time.perf_counter() - started) / len(pictures)
    shape = len(validation.pictures), width
    vectors = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(task.fabric.device)
    started = time.perf_counter()
    validation.accuracy(vectors)
    return len(vectors) * each + time.perf_counter() - started


def seconds_per_step(task: SiameseTask, steps: int = 16) -> float:
    """Mean duration of a training step on this machine. The network is not changed.

    At most `steps` steps run at each side of the input, the first quarter untimed. Both parts end early after TIMING
    seconds.
    """
    early = task.config.early_side
    sides = [(task.side, 1.0)] if early is None else [(early, EARLY), (task.side, 1 - EARLY)]
    mean = 0.0
    for side, part in sides:
        timed = replace(_copy(task), side=side, config=replace(task.config, early_side=None))
        with opened_steps(timed) as loop:
            loop.time_steps(steps // 4)  # the first steps set things up
            mean += part * loop.time_steps(steps - steps // 4)
    return mean


def _copy(task: SiameseTask) -> SiameseTask:
    """The task with a copy of its network."""
    return replace(task, siamese=copy.deepcopy(task.siamese))
