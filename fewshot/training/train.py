"""Siamese training as a run: training data, network, number of steps, loop, and the run folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from fewshot.embedding.distortions import SYMMETRIES
from fewshot.embedding.embedder import Embedder
from fewshot.embedding.encoder import EncoderSpec, create, embedding_width, round_to_half
from fewshot.embedding.encoder_files import CONFIG_FILE, FORMAT, WEIGHTS_FILE, read_siamese_config
from fewshot.evaluation.threshold import calibrate
from fewshot.evaluation.verification import labelled_pairs, pairs_within, similarity
from fewshot.training.config import SiameseConfig
from fewshot.training.loop import (
    SiameseState,
    seconds_per_step,
    seconds_per_validation,
    train,
    validation_steps,
)
from fewshot.training.losses import siamese
from fewshot.training.steps import SiameseTask
from fewshot.training.training_data import FolderSource, HeldOut, OmniglotSource
from finetune.classifier.run_state import STATE, check_same_options, continues_run, has_finished, remove_state
from finetune.errors import InputError, TrainingDiverged
from finetune.files.folders import alone_in
from finetune.files.reading import as_type, read_json
from finetune.files.tables import write_csv
from finetune.files.writing import write_json
from finetune.metrics import Count, Finite, Share
from finetune.models.device import describe, open_engine, reproducible_numerics
from finetune.options.fields import no_effect
from finetune.progress import Display, Stopwatch, in_words
from finetune.random_state import restored_random_state
from finetune.ranks.start import joined

METRICS_FILE, HISTORY_FILE = "metrics.json", "history.csv"
MINUTES = 10.0  # default duration of the training steps
FOLDER_SIDE = 64  # default side of fewtune_drawing on a folder: photographs have more detail than drawings


def train_omniglot(
    out: Path,
    split: str = "lake",
    *,
    config: SiameseConfig | None = None,
    everything: bool = False,
    examples: int | None = None,
    self_supervised: bool = False,
    data: Path | None = None,
    resume: bool = False,
    display: Display | None = None,
    devices: int = 1,
) -> Embedder:
    """Train an encoder on Omniglot.

    Args:
        out: Run folder.
        split: Part of Omniglot: "lake", "lake-minimal", "vinyals" or "koch".
        config: Options of the training.
        everything: Also train on the validation alphabets; keep the last weights.
        examples: Drawings of each character. None for all 20.
        self_supervised: Train without labels; every drawing is its own class.
        data: Folder of the archives, as for `fewshot.omniglot.dataset.locate`.
        resume: Continue the run in `out`, to the same weights as without interruption.
        display: Shows progress. None for no output.
        devices: Number of processes to train in on this machine, as for `finetune.fit`.

    Returns:
        The trained encoder.

    Raises:
        InputError: If an option, the data or `out` cannot be used; nothing is written then.
        TrainingDiverged: If the loss stops being finite.

    Example:
        >>> from fewshot import SiameseConfig, train_omniglot
        >>> encoder = train_omniglot(Path("runs/lake"), "lake", config=SiameseConfig(minutes=40))  # doctest: +SKIP
    """
    source = OmniglotSource(split, everything, examples, self_supervised, data)
    return _Run(out, source, config or SiameseConfig(), display or Display()).embedder(resume, devices)


def train_folder(
    folder: Path,
    out: Path,
    *,
    config: SiameseConfig | None = None,
    everything: bool = False,
    self_supervised: bool = False,
    resume: bool = False,
    display: Display | None = None,
    devices: int = 1,
) -> Embedder:
    """Train an encoder on a folder of pictures.

    Args:
        folder: One sub-folder of pictures per class.
        out: Run folder.
        config: Options of the training.
        everything: Also train on the classes that are held out otherwise; keep the last weights.
        self_supervised: Train without labels, on any folder: a picture and its distorted copies are one class.
        resume: Continue the run in `out`, to the same weights as without interruption.
        display: Shows progress. None for no output.
        devices: Number of processes to train in on this machine, as for `finetune.fit`.

    Returns:
        The trained encoder.

    Raises:
        InputError: If an option, the folder or `out` cannot be used; nothing is written then.
        TrainingDiverged: If the loss stops being finite.

    Example:
        >>> from fewshot import SiameseConfig, train_folder
        >>> config = SiameseConfig(epochs=1, network="fewtune_conv4", side=16, ways=2, shots=2, device="cpu")
        >>> encoder = train_folder(Path("signs"), Path("runs/other"), config=config)
        >>> encoder.embed(["sign.png"]).shape
        (1, 384)
    """
    config = config or SiameseConfig()
    if config.network == "fewtune_drawing" and config.side is None:
        config = replace(config, side=FOLDER_SIDE)
    return _Run(out, FolderSource(folder, everything, self_supervised), config, display or Display()).embedder(
        resume, devices
    )


@dataclass(frozen=True)
class _Run:
    """A training and its run folder."""

    out: Path
    source: OmniglotSource | FolderSource
    config: SiameseConfig
    display: Display

    @restored_random_state()
    def embedder(self, resume: bool, devices: int) -> Embedder:
        """Train, continue, or load what a finished run holds, in one or in several processes."""
        with joined(self.config.device, devices) as ranks:
            if ranks is not None and ranks.rank > 0:
                return Embedder.load(ranks.serve(), device=self.config.device)
            embedder = self._embedder_of_run(resume)
            if ranks is not None:
                ranks.finish((self.out,))
            return embedder

    def _embedder_of_run(self, resume: bool) -> Embedder:
        if unused := self.config.without_effect():
            self.display.say(no_effect(unused, f"--loss {self.config.loss}"))
        with alone_in(self.out):
            if not continues_run(self.out, resume=resume):
                return self._trained(None)
            plan = self._plan_of_same_run()
            if has_finished(self.out, (WEIGHTS_FILE,)):
                self.display.say(f"{self.out}: this run has finished already")
                return Embedder.load(self.out, device=self.config.device)
            return self._trained(plan)

    def _request(self) -> dict[str, Any]:
        return {"format": FORMAT, **self.source.request(), "recipe": self.config.to_dict()}

    def _plan_of_same_run(self) -> _Plan:
        """What the run in `out` was to do. InputError if it was started with other options."""
        (run, found), request = read_siamese_config(self.out), self._request()
        if run.source != request["source"]:
            raise InputError(f"{self.out} (--out) holds a run on {run.source}, not on {request['source']}")
        check_same_options(self.out, _options(found), _options(request))
        if run.steps is None:
            raise InputError(f"{self.out / CONFIG_FILE} may be damaged: steps is missing")
        return _Plan(run.steps, run.groups)

    def _trained(self, plan: _Plan | None) -> Embedder:
        """Train and save. plan: of the run that is continued; None for a new run."""
        config, display, times = self.config, self.display, Stopwatch()
        torch.manual_seed(config.seed)
        spec = EncoderSpec(config.network, config.side or _default_side(config.network), self.source.framing)
        network = create(spec)
        width = embedding_width(network, spec)
        if config.early_side is not None:
            embedding_width(network, replace(spec, side=config.early_side))  # raises for a side that does not fit
        with times.part("reading"):
            data = self.source.read(spec.side, display)
        model = siamese(network, width, len(data.groups) * SYMMETRIES, config)
        task = SiameseTask(open_engine(config.device, config.precision), model, data, config, spec.side, 1)
        expected = ""
        if plan is None:
            with times.part("timing a step"), reproducible_numerics(task.fabric.device):
                task = _planned(task)
                if display.console is not None:
                    expected = _expected_time(task)
            write_json(self.out / CONFIG_FILE, self._request() | vars(_Plan.of(task)))
        else:
            task = plan.applied(task)
        display.say(_summary(task))
        if expected:
            display.say(expected)
        try:
            with reproducible_numerics(task.fabric.device):
                encoder, state = train(task, checkpoint=self.out / STATE / "checkpoint.safetensors", display=display)
        except TrainingDiverged as error:
            raise TrainingDiverged(f"{error}; train again in another --out") from error
        embedder = self._embedder(encoder, spec, task, times)
        self._save(embedder, task, state)
        for line in _times(task, state, times):
            display.say(line)
        return embedder

    def _embedder(self, encoder: nn.Module, spec: EncoderSpec, task: SiameseTask, times: Stopwatch) -> Embedder:
        """The encoder with thresholds that are chosen on what is held out."""
        round_to_half(encoder)
        embedder = Embedder(encoder, spec, trained_on=task.data.trained_on, device=self.config.device)
        if task.data.held_out is not None:
            with times.part("threshold"):
                _set_thresholds(embedder, task.data.held_out)
        return embedder

    def _save(self, embedder: Embedder, task: SiameseTask, state: SiameseState) -> None:
        """Write the run folder. A finished run has no folder of state, so that is removed last."""
        if state.history:
            rows = [list(row.values()) for row in state.history]
            write_csv(self.out / HISTORY_FILE, list(state.history[0]), rows)
        validation = task.data.validation
        metrics = {
            "steps": state.step,
            "seconds": round(state.seconds, 1),
            "waiting": round(state.waiting, 4),
            "validation": None if validation is None else {"of": validation.name, "accuracy": state.best},
            "kept_step": state.best_step or state.step,
            "interrupted": state.interrupted,
        }
        write_json(self.out / METRICS_FILE, metrics)
        embedder.save(self.out, **self._request(), **vars(_Plan.of(task)), engine=describe(task.fabric))
        if not state.interrupted:
            remove_state(self.out)


def _options(request: Mapping[str, Any]) -> dict[str, Any]:
    """Values of a run's options by name."""
    own = {name: value for name, value in request.items() if name not in ("source", "recipe", "everything")}
    return {**own, "all": request.get("everything"), **request["recipe"]}


def _set_thresholds(embedder: Embedder, held_out: HeldOut) -> None:
    """Choose the thresholds of verification (same or different) and of recognition (known or unknown)."""
    vectors = embedder.embed_framed(held_out.pictures)
    rows, same = labelled_pairs(held_out.classes)
    embedder.verification = calibrate(similarity(vectors, rows), same).to_dict()
    rows, same = pairs_within(held_out.classes, held_out.groups)
    embedder.recognition = calibrate(similarity(vectors, rows), same).to_dict()


@dataclass(frozen=True)
class _Plan:
    """What a run chose at its start.

    Attributes:
        steps: Number of training steps.
        groups: Number of groups drawn for a batch; None in runs of earlier versions, whose options say it.
    """

    steps: int
    groups: int | None

    @classmethod
    def of(cls, task: SiameseTask) -> _Plan:
        """The plan of a task."""
        return cls(task.steps, task.alphabets)

    def applied(self, task: SiameseTask) -> SiameseTask:
        """The task by this plan."""
        return replace(task, steps=self.steps, config=replace(task.config, alphabets=self.groups or task.alphabets))


def _planned(task: SiameseTask) -> SiameseTask:
    """The task with its number of steps, and with smaller batches where these would be few.

    A short training gains more from steps than from the pictures in each of them, a long one from both
    (benchmarks/siamese_batches.py).
    """
    steps = _affordable_steps(task)
    if task.config.alphabets is None and steps < task.data.fewest_steps:
        share = steps / task.data.fewest_steps
        task = replace(task, config=replace(task.config, alphabets=max(1, int(share * task.alphabets))))
        steps = _affordable_steps(task)
    return _Plan(steps, task.alphabets).applied(task)


def _affordable_steps(task: SiameseTask) -> int:
    """Steps of the config's epochs, or those that fit in its minutes at the speed of this machine."""
    if task.config.epochs is not None:
        return max(1, round(task.config.epochs * len(task.data.pictures) / task.batch_size))
    minutes = MINUTES if task.config.minutes is None else task.config.minutes
    return max(1, round(minutes * 60 / seconds_per_step(task)))


def _summary(task: SiameseTask) -> str:
    """The training in one line."""
    data = task.data
    chosen = "" if data.validation is None else f"; weights chosen by {data.validation.name} on held-out classes"
    return (
        f"{len(data.pictures):,} pictures, {len(data.groups):,} classes, {task.steps:,} steps of about "
        f"{task.batch_size:.0f} pictures{chosen}"
    )


def _expected_time(task: SiameseTask) -> str:
    """What the minutes of training cover, and what comes on top."""
    validations, held_out = len(validation_steps(task.steps)), task.data.held_out is not None
    on_top = (validations + held_out) * seconds_per_validation(task)  # a threshold takes about as long
    if task.config.epochs is None:
        minutes = MINUTES if task.config.minutes is None else task.config.minutes
        covered = f"{minutes:g} minute{'' if minutes == 1 else 's'} of training steps"
    else:
        covered = f"{task.config.epochs} epoch{'' if task.config.epochs == 1 else 's'} of training steps"
    if not on_top:
        return f"{covered}; nothing is held out, so no validation comes on top"
    also = " and the threshold" if held_out else ""
    return f"{covered}; {validations} validation{'' if validations == 1 else 's'}{also} come on top, {in_words(on_top)}"


def _times(task: SiameseTask, state: SiameseState, times: Stopwatch) -> tuple[str, str]:
    """Speed of the training, and where the time went."""
    training = state.seconds - state.validating
    speed = state.step * task.batch_size / max(training, 1e-9)
    validation = task.data.validation
    chosen = "" if validation is None else f"; {validation.name} {state.best:.1%} at step {state.best_step:,}"
    return (
        f"{state.step:,} steps in {training / 60:.1f} min, about {speed:,.0f} pictures/s; "
        f"{state.waiting:.1%} of the time for making batches{chosen}",
        f"time: training steps {training:.0f} s, validation {state.validating:.0f} s, {times.summary()}; "
        f"{times.total():.0f} s since the command began",
    )


def _default_side(network: str) -> int:
    """Input side of a network by timm, in pixels."""
    try:
        found = timm.get_pretrained_cfg(network)
    except RuntimeError as error:
        raise InputError(f"timm knows no network {network!r}") from error
    return int(found.input_size[-1]) if found is not None else 64


@dataclass(frozen=True, kw_only=True)
class _Validation:
    of: str
    accuracy: Share


@dataclass(frozen=True, kw_only=True)
class _Metrics:
    """metrics.json of a run."""

    steps: Count
    seconds: Finite
    waiting: Finite
    validation: _Validation | None
    kept_step: Count
    interrupted: bool


def metrics_of(out: Path) -> dict[str, Any]:
    """Figures of the training in the run folder `out`, as in its metrics.json. InputError where it is damaged."""
    metrics: dict[str, Any] = read_json(out / METRICS_FILE)
    as_type(metrics, _Metrics, str(out / METRICS_FILE))
    return metrics
