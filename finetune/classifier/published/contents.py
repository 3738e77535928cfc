"""What of a run is pushed: no picture, no name of one and no folder of this machine, unless they are asked for."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from finetune.classifier.published.fetched import ANSWERS_FILE, BOUNDS, HASHES_FILE
from finetune.classifier.run_config import CONFIG_FILE, RunConfig
from finetune.classifier.run_metrics import METRICS_FILE, RunMetrics
from finetune.classifier.stored import WEIGHTS_FILE
from finetune.errors import InputError
from finetune.files.reading import read_tensors_header
from finetune.files.tables import read_csv, write_csv
from finetune.files.writing import write_json
from finetune.open_set.unknown_model import UNKNOWN_FILE
from finetune.options.suggestions import CHOICES, did_you_mean

CARD_FILE = "README.md"
HISTORY_FILE = "history.csv"
# What is pushed where it is asked for, and what it shows to others.
EXTRAS = {
    "hashes": (HASHES_FILE, "sha256 of every picture"),
    "features": ("features.safetensors", "features and names of every picture, their folder"),
    "report": ("report.html", "small pictures, names and folders"),
}
# All names that a push may leave in a repository.
OWN = (*BOUNDS, HISTORY_FILE, CARD_FILE, *(name for name, _ in EXTRAS.values()))

# Options whose values are files or folders of this machine.
_PLACES = ("weights", "weights_dir", "unlabelled", "background")
_ANSWERS = ("split", "label", "predicted", "probability", "probability_of_label")
_HASHES = ("split", "label", "sha256", "learned")


def published_files(
    folder: Path, config: RunConfig, metrics: RunMetrics | None, include: Collection[str], stage: Path
) -> dict[str, Path]:
    """The files of a run to push, by name, without the model card.

    Args:
        folder: The run folder.
        config, metrics: Of the run.
        include: Keys of EXTRAS.
        stage: Folder for those that are not pushed as they are.

    Raises:
        InputError: If a file that is asked for is missing, or one is damaged.
    """
    check_extras(include)
    read_tensors_header(folder / WEIGHTS_FILE)
    # `extend` and `forget` ask for the folder, which the features name anyway.
    known = config if "features" in include else replace(config, folder=None, table=None)
    write_json(stage / CONFIG_FILE, _without_places(known))
    files = {CONFIG_FILE: stage / CONFIG_FILE, WEIGHTS_FILE: folder / WEIGHTS_FILE}
    if metrics is not None:
        write_json(stage / METRICS_FILE, _without_names(metrics).to_dict())
        files[METRICS_FILE] = stage / METRICS_FILE
    for name in (UNKNOWN_FILE, HISTORY_FILE):
        if (folder / name).is_file():
            files[name] = folder / name
    if (folder / ANSWERS_FILE).is_file():
        files[ANSWERS_FILE] = _columns(folder / ANSWERS_FILE, _ANSWERS, stage)
    for extra in include:
        name, _ = EXTRAS[extra]
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}, which --include {extra} pushes")
        files[name] = _columns(folder / name, _HASHES, stage) if name == HASHES_FILE else folder / name
    return files


def check_extras(include: Collection[str]) -> None:
    """InputError for a word that is no key of EXTRAS."""
    for extra in include:
        if extra not in EXTRAS:
            meant = did_you_mean(str(extra), EXTRAS, CHOICES)
            raise InputError(f"--include must be one of {', '.join(EXTRAS)}, not {extra!r}{meant}")


def left_behind(folder: Path, include: Collection[str]) -> list[str]:
    """What stays on this machine, each in words."""
    extras = [(name, what) for extra, (name, what) in EXTRAS.items() if extra not in include]
    return [f"{name} ({what})" for name, what in extras if (folder / name).is_file()]


def _without_places(config: RunConfig) -> dict[str, Any]:
    """config.json without files and folders of this machine in its options: of a file of weights, the name stays."""
    values = json.loads(json.dumps(asdict(config)))
    for options in (values["config"], values["asked"]):
        for name in _PLACES:
            if options.get(name) is not None:
                options[name] = Path(str(options[name])).name if name == "weights" else None
    return {name: value for name, value in values.items() if value is not None}


def _without_names(metrics: RunMetrics) -> RunMetrics:
    """The metrics without names of pictures and folders, and without notes, which may hold them."""
    unlabelled, unknown, backbones = metrics.unlabelled, metrics.unknown, metrics.backbones
    if unlabelled is not None:
        unlabelled = replace(unlabelled, folder="", unreadable=(), label_next=())
    if unknown is not None:
        background = unknown.background
        if background is not None:
            background = replace(background, left_out=(), most_alike=())
        unknown = replace(unknown, nearly_refused=(), nearly_accepted=(), background=background)
    if backbones is not None:
        shown = [replace(each, weights=Path(each.weights).name) for each in backbones.candidates]
        backbones = replace(backbones, candidates=tuple(shown))
    return replace(
        metrics, unreadable=(), left_out=(), notes=(), unlabelled=unlabelled, unknown=unknown, backbones=backbones
    )


def _columns(path: Path, columns: Sequence[str], stage: Path) -> Path:
    """A copy in `stage` of some columns of a CSV table: all but those of names."""
    write_csv(stage / path.name, columns, ([row[column] for column in columns] for row in read_csv(path, columns)))
    return stage / path.name
