"""What a report is made of: the files of a run, or of an evaluation, read and checked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.classifier.classifier import CONFIG_FILE, METRICS_FILE, read_config
from finetune.classifier.run_folder import (
    EVALUATED,
    HISTORY_FILE,
    PICTURES_FILE,
    PREDICTIONS_FILE,
    PREDICTIONS_HEADER,
    PROBABILITIES_FILE,
)
from finetune.errors import InputError
from finetune.files import read_csv, read_json, read_tensors

# A log-probability is at most 0, and rounding does not add more than this.
_LARGEST = 1e-3
# What is read of each epoch.
_OF_AN_EPOCH = ("epoch", "train_loss", "val_loss", "val_accuracy")


@dataclass(frozen=True)
class Answer:
    """What was predicted for one picture. path: as listed, below the folder of pictures. probability: of `predicted`;
    probability_of_label: of the true class."""

    path: str
    label: str
    predicted: str
    probability: float
    probability_of_label: float

    @property
    def right(self) -> bool:
        return self.label == self.predicted


@dataclass(frozen=True)
class RunResults:
    """A run, or an evaluation of one, as its files tell it.

    made: config.json of the run. answers: the predictions on the pictures that the figures are of. log_probabilities:
    a row (classes,) for each of these, None where a run has not kept them. pictures: where `answers` are from.
    per_split: how many pictures of each (split, class) there are. evaluated: the evaluation, where it is one.
    """

    path: Path
    metrics: dict[str, Any]
    made: dict[str, Any]
    classes: tuple[str, ...]
    answers: tuple[Answer, ...]
    log_probabilities: Tensor | None
    history: tuple[dict[str, float], ...]
    pictures: Path
    per_split: Counter[tuple[str, str]]
    evaluated: dict[str, Any] | None


def read_findings(path: Path) -> RunResults:
    """What `path`, a run folder or one that `evaluate` left, holds. InputError where it is neither, or is damaged."""
    metrics = read_json(path / METRICS_FILE) if (path / METRICS_FILE).exists() else None
    if metrics is not None and not (isinstance(metrics, dict) and metrics.get("split") in ("val", "test")):
        raise InputError(f"{path / METRICS_FILE} is not as a run leaves it; it may be damaged")
    evaluated = None if metrics is None else metrics.get(EVALUATED)
    if not (evaluated is None or (isinstance(evaluated, dict) and isinstance(evaluated.get("config"), dict))):
        raise InputError(f"{path / METRICS_FILE} is not as an evaluation leaves it; it may be damaged")
    made = read_config(path) if evaluated is None else evaluated["config"]
    if metrics is None or "classes" not in made:
        raise InputError(f"{path} holds no finished run: it has no {METRICS_FILE}")
    told_in = path / (CONFIG_FILE if evaluated is None else METRICS_FILE)
    classes, options = made["classes"], made.get("config")
    named = isinstance(classes, list) and all(isinstance(name, str) for name in classes)
    if not (named and isinstance(options, dict) and {"backbone", "seed"} <= options.keys()):
        raise InputError(f"{told_in} is not as a run leaves it; it may be damaged")
    folder = (made if evaluated is None else evaluated).get("folder")
    if not isinstance(folder, str):
        raise InputError(f"{told_in} names no folder of pictures: it is no run's")
    split = str(metrics["split"])
    rows = _table(path / PREDICTIONS_FILE, PREDICTIONS_HEADER)
    per_split: Counter[tuple[str, str]] = Counter()
    if (path / PICTURES_FILE).exists():
        per_split.update((row["split"], row["label"]) for row in _table(path / PICTURES_FILE, ("split", "label")))
    else:
        per_split.update((row["split"], row["label"]) for row in rows)
    return RunResults(
        path=path,
        metrics=metrics,
        made=made,
        classes=tuple(classes),
        answers=_answers([row for row in rows if row["split"] == split], classes, path),
        log_probabilities=_log_probabilities(path, split, sum(row["split"] == split for row in rows), len(classes)),
        history=_history(path / HISTORY_FILE),
        pictures=Path(folder),
        per_split=per_split,
        evaluated=evaluated,
    )


def _answers(rows: list[dict[str, str]], classes: Sequence[str], path: Path) -> tuple[Answer, ...]:
    known = set(classes)
    try:
        answers = tuple(
            Answer(
                row["path"],
                row["label"],
                row["predicted"],
                float(row["probability"]),
                float(row["probability_of_label"]),
            )
            for row in rows
        )
        for answer in answers:
            if not known >= {answer.label, answer.predicted}:
                raise ValueError("it has a class that the run does not know")
            if not (0 <= answer.probability <= 1 and 0 <= answer.probability_of_label <= 1):
                raise ValueError("a probability is not between 0 and 1")
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path / PREDICTIONS_FILE} is not as a run leaves it ({error}); it may be damaged") from error
    return answers


def _log_probabilities(path: Path, split: str, rows: int, classes: int) -> Tensor | None:
    file = path / PROBABILITIES_FILE
    if not file.exists():
        return None
    found = read_tensors(file).get(split)
    if found is None or len(found) != rows:
        raise InputError(f"{file} does not belong to {path / PREDICTIONS_FILE}: they tell of different pictures")
    if found.shape != (rows, classes) or not bool((found <= _LARGEST).all()):
        raise InputError(f"{file} holds no log-probabilities of {classes} classes; it may be damaged")
    return found.float()


def _history(path: Path) -> tuple[dict[str, float], ...]:
    if not path.exists():
        return ()
    try:
        rows = tuple({name: float(row[name]) for name in _OF_AN_EPOCH} for row in _table(path, _OF_AN_EPOCH))
        if not all(math.isfinite(value) for row in rows for value in row.values()):
            raise ValueError("a number in it is not finite")
        return rows
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path} is not as a run leaves it ({error}); it may be damaged") from error


def _table(path: Path, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a table of the run that has these columns, and maybe others."""
    if not path.exists():
        raise InputError(f"{path} is missing: a report is made of it")
    return read_csv(path, columns)
