"""The main job of training: what is learned from, the network, so many steps, and the run folder that remains."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from lightning_fabric import Fabric

from fewshot.embedding.distortions import SYMMETRIES
from fewshot.embedding.embedder import Embedder
from fewshot.embedding.encoder import EncoderSpec, create, embedding_width, round_to_half
from fewshot.embedding.encoder_files import CONFIG_FILE, FORMAT, WEIGHTS_FILE
from fewshot.evaluation.threshold import calibrate
from fewshot.evaluation.verification import labelled_pairs, pairs_within, similarity
from fewshot.omniglot.dataset import read_omniglot
from fewshot.omniglot.splits import BACKGROUND, SPLITS
from fewshot.training.config import SiameseConfig
from fewshot.training.loop import SiameseState, Study, seconds_per_step, seconds_per_validation, train, validations
from fewshot.training.losses import siamese
from fewshot.training.training_data import TRAINED, HeldOut, SiameseData, folder_material, omniglot_material
from finetune.errors import InputError
from finetune.files import alone_in, read_json, write_csv, write_json
from finetune.models.device import describe, open_engine, reproducible_numerics
from finetune.options.fields import flag
from finetune.processes import require_one_process
from finetune.progress import Display, Stopwatch
from finetune.random_state import restored_random_state
from finetune.training.expected_time import in_words

METRICS_FILE, HISTORY_FILE = "metrics.json", "history.csv"
STATE = "state"  # what only a continuation needs
MINUTES = 10.0  # of training, where neither minutes nor epochs are given


def learn_omniglot(
    out: Path,
    split: str = "lake",
    *,
    recipe: SiameseConfig | None = None,
    everything: bool = False,
    examples: int | None = None,
    self_supervised: bool = False,
    data: Path | None = None,
    resume: bool = False,
    display: Display | None = None,
) -> Embedder:
    """Train an encoder on Omniglot and leave it in `out`; `split`: what of it, "lake", "lake-minimal", "vinyals" or
    "koch".

    everything: learn also from what weights would be chosen by, and keep the last ones. examples: pictures of each
    character that are learned from. self_supervised: without labels, every picture a class. data: as in
    fewshot.omniglot.dataset.locate. InputError for what cannot be used, before anything is written.
    """
    if split not in TRAINED:
        raise InputError(f"--split must be one of {', '.join(TRAINED)}, not {split!r}")
    request: dict[str, Any] = {
        "source": "omniglot",
        "split": split,
        "everything": everything,
        "examples": examples,
        "self_supervised": self_supervised,
    }

    def material(side: int) -> SiameseData:
        needed = [SPLITS[name] for name in TRAINED[split] if name is not None]
        background = all(character.alphabet in BACKGROUND for part in needed for character in part.characters)
        omniglot = read_omniglot(data, ("background",) if background else ("background", "evaluation"))
        return omniglot_material(
            omniglot, split, side, everything=everything, examples=examples, labels=not self_supervised
        )

    return _learn(out, request, "drawing", material, recipe or SiameseConfig(), resume, display or Display())


def learn_folder(
    folder: Path,
    out: Path,
    *,
    recipe: SiameseConfig | None = None,
    everything: bool = False,
    self_supervised: bool = False,
    resume: bool = False,
    display: Display | None = None,
) -> Embedder:
    """Train an encoder on a folder of pictures, one sub-folder a class, and leave it in `out`.

    everything: learn also from the classes that weights would be chosen by, and keep the last ones.
    self_supervised: any folder will do; a picture is pulled towards its own distorted copies and parts, and the others
    are pushed away. InputError for what cannot be used, before anything is written.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give one with pictures, or omniglot")
    display = display or Display()

    def material(side: int) -> SiameseData:
        found, unreadable = folder_material(folder, side, labels=not self_supervised, everything=everything)
        for line in unreadable:
            display.say(f"left out: {line}")
        return found

    request = {
        "source": str(folder.resolve()),
        "everything": everything,
        "self_supervised": self_supervised,
    }
    recipe = recipe or SiameseConfig()
    if recipe.network == "fewtune_drawing" and recipe.side is None:
        recipe = replace(recipe, side=64)  # a photograph shows more than a drawing
    return _learn(out, request, "whole", material, recipe, resume, display)


@restored_random_state()
def _learn(
    out: Path,
    request: dict[str, Any],
    framing: Literal["drawing", "whole"],
    read: Callable[[int], SiameseData],
    recipe: SiameseConfig,
    resume: bool,
    display: Display,
) -> Embedder:
    require_one_process("fewshot train")
    display.say_without_effect(recipe.without_effect(), f"--loss {recipe.loss}")
    request = {"format": FORMAT, **request, "recipe": recipe.to_dict()}
    with alone_in(out):
        kept = _begin(out, request, resume)
        if kept is not None and (out / WEIGHTS_FILE).exists() and not (out / STATE).exists():
            display.say(f"{out}: this run has finished already")
            return Embedder.load(out, device=recipe.device)
        return _trained(out, request, kept, framing, read, recipe, display)


def _trained(
    out: Path,
    request: dict[str, Any],
    kept: dict[str, Any] | None,
    framing: Literal["drawing", "whole"],
    read: Callable[[int], SiameseData],
    recipe: SiameseConfig,
    display: Display,
) -> Embedder:
    """Start the run in `out`, or continue it where it is `kept`, and finish it."""
    parts = Stopwatch()
    torch.manual_seed(recipe.seed)
    spec = EncoderSpec(recipe.network, recipe.side or _usual_side(recipe.network), framing)
    network = create(spec)
    width = embedding_width(network, spec)
    if recipe.early_side is not None:
        embedding_width(network, replace(spec, side=recipe.early_side))
    with parts.part("reading"):
        material = read(spec.side)
    labels = len(material.groups) * SYMMETRIES
    study = Study(
        siamese(
            network,
            width,
            labels,
            loss=recipe.loss,
            margin=recipe.margin,
            hardest=recipe.hardest,
            miner=recipe.miner,
            distance=recipe.distance,
        ),
        material,
        recipe,
        spec.side,
        steps=1,
    )
    fabric = open_engine(recipe.device, recipe.precision)
    with parts.part("timing a step"), reproducible_numerics(fabric.device):
        steps = _steps(fabric, study) if kept is None else int(kept["steps"])
        study = replace(study, steps=steps)
        announced = _announced(fabric, study) if kept is None and display.console is not None else ""
    if kept is None:
        # From here on there is something to lose.
        write_json(out / CONFIG_FILE, request | {"steps": steps})
    display.say(
        f"{len(material.pictures):,} pictures, {len(material.groups):,} classes, {steps:,} steps of about "
        f"{study.batch_size:.0f} pictures"
        + (f"; weights chosen by {material.judged_by} on held-out classes" if material.judge else "")
    )
    if announced:
        display.say(announced)
    with reproducible_numerics(fabric.device):
        encoder, course = train(
            fabric, study, checkpoint=out / STATE / "checkpoint.safetensors", resume=kept is not None, display=display
        )
    return _finish(out, request, spec, material, study, encoder, course, fabric, parts, display)


def _finish(
    out: Path,
    request: dict[str, Any],
    spec: EncoderSpec,
    material: SiameseData,
    study: Study,
    encoder: torch.nn.Module,
    course: SiameseState,
    fabric: Fabric,
    parts: Stopwatch,
    display: Display,
) -> Embedder:
    round_to_half(encoder)
    embedder = Embedder(encoder, spec, trained_on=material.trained_on, device=study.recipe.device)
    if material.held_out is not None:
        with parts.part("threshold"):
            _carry_thresholds(embedder, material.held_out)
    if course.history:
        write_csv(out / HISTORY_FILE, list(course.history[0]), [list(row.values()) for row in course.history])
    metrics = {
        "steps": course.step,
        "seconds": round(course.seconds, 1),
        "waiting": round(course.waiting, 4),
        "validation": None if course.best is None else {"of": material.judged_by, "accuracy": course.best},
        "kept_step": course.best_step or course.step,
        "interrupted": course.interrupted,
    }
    write_json(out / METRICS_FILE, metrics)
    embedder.save(out, **request, steps=study.steps, engine=describe(fabric))
    # Last, because a run without its state is a finished run.
    if not course.interrupted:
        gone = out / f".{STATE}"
        (out / STATE).rename(gone)  # in one step: half a state would be taken for a whole one
        shutil.rmtree(gone, ignore_errors=True)
    learning = course.seconds - course.validating
    minutes, rate = learning / 60, course.step * study.batch_size / max(learning, 1e-9)
    chosen = "" if course.best is None else f"; {material.judged_by} {course.best:.1%} at step {course.best_step:,}"
    display.say(
        f"{course.step:,} steps in {minutes:.1f} min, about {rate:,.0f} pictures/s, {course.waiting:.1%} of it on "
        f"making batches{chosen}"
    )
    display.say(
        f"time: training steps {learning:.0f} s, validation {course.validating:.0f} s, {parts.told()}; "
        f"{parts.total():.0f} s since the command began"
    )
    return embedder


def _carry_thresholds(embedder: Embedder, held_out: HeldOut) -> None:
    """What the encoder needs to tell same from different, and known from unknown, chosen on what is held out."""
    vectors = embedder.embed_framed(held_out.pictures)
    rows, same = labelled_pairs(held_out.classes)
    embedder.verification = calibrate(similarity(vectors, rows), same).to_dict()
    rows, same = pairs_within(held_out.classes, held_out.groups)
    embedder.recognition = calibrate(similarity(vectors, rows), same).to_dict()


def _begin(out: Path, request: dict[str, Any], resume: bool) -> dict[str, Any] | None:
    """The configuration of the run that `out` holds and that is to go on, None for a new one.

    InputError, changing nothing, when there is something else, or a run that was asked for otherwise.
    """
    if not (out / CONFIG_FILE).exists():
        # What a write that was killed leaves behind begins with a dot and is nobody's.
        if out.is_dir() and any(not path.name.startswith(".") for path in out.iterdir()):
            raise InputError(f"{out} (--out) is not empty and holds no run; choose another folder")
        return None
    if not resume:
        raise InputError(f"{out} (--out) already holds a run; continue it with --resume or choose another folder")
    found: dict[str, Any] = read_json(out / CONFIG_FILE)
    for name, value in request.items():
        before = found.get(name)
        if name != "recipe" and before != value:
            option = "" if name == "source" else f" with {'--all' if name == 'everything' else flag(name)}"
            raise InputError(f"the run in {out} was started{option} {before}, not {value}; choose another --out")
    for name, value in request["recipe"].items():
        before = found["recipe"].get(name)
        if before != value:
            raise InputError(
                f"the run in {out} was started with {flag(name)} {before}, not {value}; --resume goes on with the same "
                "options only"
            )
    return found


def _steps(fabric: Fabric, study: Study) -> int:
    """The number of steps of the recipe's epochs, or of those that fit in its minutes at the speed measured now."""
    if study.recipe.epochs is not None:
        return max(1, round(study.recipe.epochs * len(study.material.pictures) / study.batch_size))
    minutes = MINUTES if study.recipe.minutes is None else study.recipe.minutes
    return max(1, round(minutes * 60 / seconds_per_step(fabric, study)))


def _announced(fabric: Fabric, study: Study) -> str:
    """What the minutes of training cover, and what comes on top, before training begins."""
    on_top = validations(study.steps) * seconds_per_validation(fabric, study)
    if study.material.held_out is not None:
        on_top += seconds_per_validation(fabric, study)
    if study.recipe.epochs is None:
        minutes = MINUTES if study.recipe.minutes is None else study.recipe.minutes
        begins = f"{minutes:g} minute{'' if minutes == 1 else 's'} of training steps"
    else:
        begins = f"{study.recipe.epochs} epoch{'' if study.recipe.epochs == 1 else 's'} of training steps"
    if not on_top:
        return f"{begins}; nothing is held out, so no validation comes on top"
    times = validations(study.steps)
    also = " and the threshold" if study.material.held_out is not None else ""
    return f"{begins}; {times} validation{'' if times == 1 else 's'}{also} come on top, {in_words(on_top)}"


def _usual_side(network: str) -> int:
    """The side that timm knows for the network."""
    try:
        found = timm.get_pretrained_cfg(network)
    except RuntimeError as error:
        raise InputError(f"timm knows no network {network!r}") from error
    return int(found.input_size[-1]) if found is not None else 64


def metrics_of(out: Path) -> dict[str, Any]:
    """How the training of the run in `out` went."""
    return read_json(out / METRICS_FILE)  # type: ignore[no-any-return]
