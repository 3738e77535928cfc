"""What a report is made of: the files of a run, or of an evaluation, read and checked."""

from __future__ import annotations

import csv
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from finetune.classifier import CONFIG_FILE, METRICS_FILE, read_config
from finetune.errors import InputError
from finetune.files import read_json, read_tensors
from finetune.run_files import PREDICTIONS_FILE, PROBABILITIES_FILE

HISTORY_FILE = "history.csv"
# What metrics.json of an evaluation says of where it comes from.
EVALUATED = "evaluated"


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
class Findings:
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


def read_findings(path: Path) -> Findings:
    """What `path`, a run folder or one that `evaluate` left, holds. InputError where it is neither, or is damaged."""
    metrics = read_json(path / METRICS_FILE) if (path / METRICS_FILE).exists() else None
    evaluated = metrics.get(EVALUATED) if isinstance(metrics, dict) else None
    made = read_config(path) if evaluated is None else evaluated["config"]
    if metrics is None or "classes" not in made:
        raise InputError(f"{path} holds no finished run: it has no {METRICS_FILE}")
    split = str(metrics["split"])
    rows = _table(path / PREDICTIONS_FILE)
    per_split: Counter[tuple[str, str]] = Counter()
    if (path / "pictures.csv").exists():
        per_split.update((row["split"], row["label"]) for row in _table(path / "pictures.csv"))
    else:
        per_split.update((row["split"], row["label"]) for row in rows)
    if evaluated is None and "folder" not in made:
        raise InputError(f"{path / CONFIG_FILE} names no folder of pictures: it is no run's")
    return Findings(
        path=path,
        metrics=metrics,
        made=made,
        classes=tuple(made["classes"]),
        answers=_answers([row for row in rows if row["split"] == split], path),
        log_probabilities=_log_probabilities(path, split, sum(row["split"] == split for row in rows)),
        history=_history(path / HISTORY_FILE),
        pictures=Path(made["folder"] if evaluated is None else evaluated["folder"]),
        per_split=per_split,
        evaluated=evaluated,
    )


def _answers(rows: list[dict[str, str]], path: Path) -> tuple[Answer, ...]:
    try:
        return tuple(
            Answer(
                row["path"],
                row["label"],
                row["predicted"],
                float(row["probability"]),
                float(row["probability_of_label"]),
            )
            for row in rows
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path / PREDICTIONS_FILE} is not as a run leaves it ({error}); it may be damaged") from error


def _log_probabilities(path: Path, split: str, rows: int) -> Tensor | None:
    file = path / PROBABILITIES_FILE
    if not file.exists():
        return None
    found = read_tensors(file).get(split)
    if found is None or len(found) != rows:
        raise InputError(f"{file} does not belong to {path / PREDICTIONS_FILE}: they tell of different pictures")
    return found.float()


def _history(path: Path) -> tuple[dict[str, float], ...]:
    if not path.exists():
        return ()
    try:
        return tuple({name: float(value) for name, value in row.items()} for row in _table(path))
    except (TypeError, ValueError) as error:
        raise InputError(f"{path} is not as a run leaves it ({error}); it may be damaged") from error


def _table(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        raise InputError(f"{path} is missing: a report is made of it")
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
